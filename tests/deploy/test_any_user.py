"""A trainer that runs as root or as any user reports to the sidecar, as the manifest has it.

What a pod does is done here with other users: the exporter has the user of the manifest and its options, in directories
that everybody may write to, as that of an emptyDir is. Beside what their users may, these programs may read every file,
so that they find this Python. The right to write, which a socket asks for, is not among that.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.deploy.kube import EXPORTER, container, one, options, pod, rendered
from tests.polling import wait_until

pytestmark = [
    pytest.mark.programs("kubectl", "setpriv"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user"),
]

TRAINER: Final = """
import json, socket, sys
report = json.dumps({report}).encode()
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect({path!r})
    head = ["POST /v1/reports HTTP/1.1", "Host: localhost", "Content-Type: application/json",
            f"Content-Length: {{len(report)}}"]
    connection.sendall("\\r\\n".join([*head, "", ""]).encode() + report)
    print(connection.recv(12).decode())
"""


def as_user(user: int, *command: str) -> list[str]:
    """The command line that runs a command as a user without the capabilities that pods drop, but that to read."""
    reading = "-all,+dac_read_search"
    return [
        *("setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "--no-new-privs"),
        *(f"--bounding-set={reading}", f"--inh-caps={reading}", f"--ambient-caps={reading}", *command),
    ]


@contextmanager
def sidecar(*left_out: str) -> Iterator[Path]:
    """The sidecar of the manifest; its socket. `left_out` are arguments that it does not get."""
    template = pod(one(rendered("sidecar"), "Job"))
    exporter = container(template, EXPORTER)
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        places = {}
        for mount in exporter["volumeMounts"]:
            places[mount["mountPath"]] = Path(directory) / mount["name"]
            places[mount["mountPath"]].mkdir()
            places[mount["mountPath"]].chmod(0o777)
        arguments, variables = options(exporter, template, places)
        kept = [argument for argument in arguments if argument not in left_out]
        environment = os.environ | variables | {"OPTWRAP_EXPORTER_LISTEN": "127.0.0.1:0", "HOME": "/nonexistent"}
        user = exporter["securityContext"]["runAsUser"]
        command = as_user(user, sys.executable, "-m", "optwrap_exporter", *kept)
        log = Path(directory) / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        try:

            def ready() -> bool:
                assert process.poll() is None, log.read_text()
                return "listening on" in log.read_text()

            wait_until(ready, problem=log.read_text)
            yield places["/run/optwrap"] / "ingest.sock"
        finally:
            process.terminate()
            process.wait(30)


def report(socket: Path, user: int) -> str:
    """What a trainer of this user gets for a report: the status line, or the last line of its exception."""
    from tests.exporter.running import Job

    program = TRAINER.format(report=Job("lm", clock=lambda: 1.7e9).report(), path=str(socket))
    ran = subprocess.run(as_user(user, sys.executable, "-c", program), capture_output=True, text=True, check=False)
    return (ran.stdout.strip() or ran.stderr.strip()).splitlines()[-1]


def test_the_trainer_of_any_user_reports_to_the_sidecar() -> None:
    """Root without capabilities, a user whom nobody knows, and the exporter's own."""
    with sidecar() as socket:
        assert [report(socket, user) for user in (0, 4711, 10425)] == ["HTTP/1.1 200"] * 3


def test_the_mode_of_the_manifest_is_what_lets_other_users_in() -> None:
    """With the default of the exporter they are refused: so the test above would notice."""
    with sidecar("--ingest-socket-mode", "0666") as socket:
        found = [report(socket, user) for user in (0, 4711, 10425)]
        assert found == ["PermissionError: [Errno 13] Permission denied"] * 2 + ["HTTP/1.1 200"]
