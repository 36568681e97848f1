"""A disk that is full, and then is not: a real one of a few MiB, where the machine allows to mount one."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.conftest import RunningExporter
from tests.exporter.running import Job
from tests.exporter.test_store_condition import SAID, health, send
from tests.polling import wait_until


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "none", path], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"cannot mount a small file system: {made.stderr.strip()}")
    yield path
    subprocess.run(["umount", "--lazy", path], check=True)


def remount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", disk], check=True)


@pytest.mark.programs("mount")
def test_a_full_disk_is_said_and_reports_are_stored_again_once_there_is_room(disk: Path) -> None:
    exporter = RunningExporter(disk / "data")
    try:
        job = Job()
        assert send(exporter.url, job).status_code == 200
        with contextlib.suppress(OSError), (disk / "filler").open("ab", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        process = 0
        while (answer := send(exporter.url, job)).status_code == 200:  # the log has some room left
            process += 1
            job = Job(process=process, incarnation=f"e{process}")
        assert answer.status_code == 503
        (detail,) = answer.json()["detail"]
        assert detail["value"].startswith("full: ")
        assert "free disk space" in detail["allowed"]
        assert health(exporter.url)[1]["store"]["condition"] == "full"
        assert exporter.log.count(SAID) == 1
        assert httpx.get(f"{exporter.url}/v1/runs/lm", trust_env=False).json()["health"] != "stale"
        remount(disk, "size=30m")
        wait_until(lambda: health(exporter.url)[0] == 200)
        assert send(exporter.url, job).status_code == 200
        assert exporter.log.count(SAID) == 1
    finally:
        exporter.kill9()
