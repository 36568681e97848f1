"""The Slurm job script, run by bash with a stand-in for srun: real exporter, real report, real scrape."""

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.deploy.places import DEPLOY
from tests.exporter.running import Job
from tests.polling import wait_until

SCRIPT = DEPLOY / "slurm" / "train.sbatch"
SRUN = """#!/bin/sh
exec {python} - <<'PROGRAM'
import os, urllib.request
token = open(os.environ["OPTWRAP_TOKEN_FILE"]).read().strip()
headers = {{"Authorization": f"Bearer {{token}}", "Content-Type": "application/json"}}
opener = urllib.request.build_opener(urllib.request.ProxyHandler({{}}))
request = urllib.request.Request(os.environ["OPTWRAP_ENDPOINT"] + "/v1/reports", {report!r}.encode(), headers)
assert opener.open(request).status == 200
raise SystemExit(65)
PROGRAM
"""


def resolves() -> bool:
    try:
        socket.getaddrinfo(socket.gethostname(), 1)
    except OSError:
        return False
    return True


@pytest.mark.programs("bash", "openssl")
@pytest.mark.skipif(not resolves(), reason="the name of this machine does not resolve")
def test_the_job_script_reports_is_drained_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """Its exit status is that of the training, 65 for a job that stopped itself."""
    job = Job("lm")
    job.step("accepted_not_finite", "NaN", w=1)
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "srun").write_text(SRUN.format(python=sys.executable, report=json.dumps(job.report("stopped"))))
    (programs / "srun").chmod(0o755)
    shared, home = tmp_path / "shared", tmp_path / "home"
    home.mkdir()
    environment = os.environ | {
        "HOME": str(home),
        "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OPTWRAP_SHARED": str(shared),
        "TMPDIR": str(tmp_path),
        "SLURM_JOB_ID": "77",
        "SLURM_JOB_NAME": "lm",
    }
    seen: list[str] = []
    bash = shutil.which("bash")
    assert bash is not None
    with subprocess.Popen([bash, SCRIPT], env=environment, stderr=subprocess.PIPE, text=True) as script:
        target = shared / "targets" / "77.json"
        wait_until(lambda: target.exists() or script.poll() is not None)
        token = home / ".optwrap" / "token-77"
        assert [stat.S_IMODE(path.stat().st_mode) for path in (token, token.parent)] == [0o600, 0o700]
        (entry,) = json.loads(target.read_text())
        assert entry["labels"]["__meta_optwrap_slurm_job_id"] == "77"
        url = f"http://{entry['targets'][0]}"

        def ended_in_metrics() -> bool:
            seen.append(httpx.get(f"{url}/metrics", trust_env=False).text)
            return 'optwrap_run_health{health="gave_up",run="lm"} 1.0' in seen[-1]

        wait_until(ended_in_metrics, pause=0.2)
        assert script.wait(60) == 65, script.stderr and script.stderr.read()
    assert [path.name for kept in (shared, home) for path in kept.rglob("*") if path.is_file()] == []
