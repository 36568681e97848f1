"""The systemd unit: systemd's own checks, the options against the real command, and the socket's group in use."""

import configparser
import grp
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import click
import httpx
import pytest
from optwrap_exporter.cli.main import main

from tests.deploy.places import DEPLOY
from tests.exporter.running import Job
from tests.polling import wait_until

UNIT = DEPLOY / "systemd" / "optwrap-exporter.service"
USERS = DEPLOY / "systemd" / "optwrap-exporter.sysusers"
MOST_EXPOSED = 20
"""Tenths of systemd's exposure level, which goes from 0 to 10. `systemd-analyze security` calls a level up to 2 OK."""


def service() -> dict[str, str]:
    parser = configparser.ConfigParser(interpolation=None, delimiters="=", comment_prefixes="#")
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # keys keep their case
    parser.read(UNIT)
    return dict(parser["Service"])


def arguments(state: Path, runtime: Path, group: str) -> list[str]:
    """The options of ExecStart, with systemd's directories and the group replaced."""
    words = shlex.split(service()["ExecStart"])[1:]
    assert words[words.index("--ingest-socket-group") + 1] == service()["Group"]
    words[words.index("--ingest-socket-group") + 1] = group
    return [word.replace("%S", str(state)).replace("%t", str(runtime)) for word in words]


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The unit with an exporter that exists."""
    unit = tmp_path / UNIT.name
    program = shlex.split(service()["ExecStart"])[0]
    exporter = Path(sys.executable).with_name("optwrap-exporter")
    unit.write_text(UNIT.read_text().replace(program, str(exporter)))
    return unit


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_finds_nothing_in_the_unit(installed: Path) -> None:
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", installed], capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_calls_the_service_well_confined(installed: Path) -> None:
    command = [
        "systemd-analyze",
        "security",
        "--offline=true",
        f"--threshold={MOST_EXPOSED}",
        "--no-pager",
        str(installed),
    ]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout[-200:]


def test_the_exporter_knows_the_options_and_the_variables(tmp_path: Path) -> None:
    own = grp.getgrgid(os.getgid()).gr_name
    context = main.make_context("optwrap-exporter", arguments(tmp_path, tmp_path, own))
    known = {
        option.envvar or f"OPTWRAP_EXPORTER_{str(option.name).upper()}"
        for option in context.command.params
        if isinstance(option, click.Option)
    }
    assert {pair.split("=", 1)[0] for pair in service()["Environment"].split()} <= known


def test_the_directories_are_those_that_systemd_makes() -> None:
    words = shlex.split(service()["ExecStart"])
    assert words[words.index("--data-dir") + 1] == f"%S/{service()['StateDirectory']}"
    assert Path(words[words.index("--ingest-socket") + 1]).parent == Path(f"%t/{service()['RuntimeDirectory']}")


@pytest.mark.skipif(shutil.which("systemd-sysusers") is None, reason="needs systemd-sysusers")
def test_sysusers_makes_the_user_and_the_group(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    subprocess.run(["systemd-sysusers", f"--root={tmp_path}", USERS], check=True, capture_output=True)
    users = {line.split(":")[0] for line in (tmp_path / "etc" / "passwd").read_text().splitlines()}
    groups = {line.split(":")[0] for line in (tmp_path / "etc" / "group").read_text().splitlines()}
    assert service()["User"] in users
    assert service()["Group"] in groups


# --- who may report, with real users


EXPORTER, TRAINER, STRANGER, MEMBERS = 20_001, 20_002, 20_003, 20_004
REPORTER = """
import httpx, sys
with httpx.Client(transport=httpx.HTTPTransport(uds=sys.argv[1])) as client:
    print(client.post("http://localhost/v1/reports", content=sys.argv[2],
                      headers={"Content-Type": "application/json"}).status_code)
"""
CONFINED = """
import ctypes, os, sys
os.umask(0o077)
ctypes.CDLL(None).prctl(65, 1, 0, 0, 0)  # no memory that is writable and executable, from Linux 6.3 on
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def as_user(user: int, group: int, *groups: int) -> list[str]:
    """Runs Python as somebody without privileges. To read this environment, wherever it is, is all that is left."""
    more = [f"--groups={','.join(map(str, groups))}"] if groups else ["--clear-groups"]
    kept = [
        "--bounding-set=-all,+dac_read_search",
        "--inh-caps=-all,+dac_read_search",
        "--ambient-caps=+dac_read_search",
    ]
    return ["setpriv", f"--reuid={user}", f"--regid={group}", *more, *kept, "--no-new-privs", sys.executable]


@pytest.fixture
def running() -> Iterator[Path]:
    """The unit's exporter as its user; the path of its socket."""
    top = Path(tempfile.mkdtemp())  # pytest's own directories are closed to others
    top.chmod(0o755)
    state, runtime = top / "state", top / "runtime"
    for parent, kind in ((state, "StateDirectory"), (runtime, "RuntimeDirectory")):
        directory = parent / service()[kind]
        directory.mkdir(parents=True)
        directory.chmod(int(service()[f"{kind}Mode"], 8))
        os.chown(directory, EXPORTER, MEMBERS)
    socket = runtime / service()["RuntimeDirectory"] / "ingest.sock"
    options = [*arguments(state, runtime, str(MEMBERS)), "--listen", "127.0.0.1:0"]
    command = [*as_user(EXPORTER, MEMBERS), "-c", CONFINED, "-m", "optwrap_exporter", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: socket.exists() or process.poll() is not None)
        assert process.poll() is None, process.stderr and process.stderr.read()
        yield socket
    finally:
        process.terminate()
        process.communicate(timeout=30)
        shutil.rmtree(top)
    assert process.returncode == 0


@pytest.mark.programs("setpriv")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become other users")
def test_members_of_the_group_report_and_others_do_not(running: Path) -> None:
    assert (running.stat().st_gid, running.stat().st_mode & 0o777) == (MEMBERS, 0o660)
    report = json.dumps(Job("lm", clock=time.time).report())

    def reports(*user: int) -> subprocess.CompletedProcess[str]:
        command = [*as_user(*user), "-c", REPORTER, str(running), report]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert reports(TRAINER, TRAINER, MEMBERS).stdout == "200\n"
    refused = reports(STRANGER, STRANGER)
    assert refused.returncode != 0
    assert "Permission denied" in refused.stderr
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(running))) as client:
        assert client.get("http://localhost/v1/runs/lm").status_code == 200
