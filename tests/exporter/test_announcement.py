"""The file with the exporter's address for Prometheus' file_sd."""

import json
import os
import socket
import stat
from pathlib import Path

import pytest
from optwrap_exporter.http.announcement import announced, entry, target
from optwrap_exporter.settings import Settings, parse_addresses

FORBIDDEN = {"job", "instance", "cluster", "env", "namespace", "pod", "container", "node", "location", "project_id"}


def listening(text: str, *allowed: str) -> Settings:
    return Settings(parse_addresses(text), Path("unused"), allowed_hosts=allowed)


@pytest.mark.parametrize(
    ("listen", "allowed", "found"),
    [
        ("127.0.0.1:1", (), "127.0.0.1:1"),
        ("127.0.0.1:1,192.0.2.7:2", (), "192.0.2.7:2"),
        ("[fd00::1]:3", (), "[fd00::1]:3"),
        (":4", ("a.example", "b.example"), "a.example:4"),
        (":5", ("fd00::1",), "[fd00::1]:5"),
        ("127.0.0.1:1,:6", (), f"{socket.gethostname().lower()}:6"),
    ],
)
def test_the_target_is_an_address_that_others_can_reach(listen: str, allowed: tuple[str, ...], found: str) -> None:
    assert str(target(listening(listen, *allowed))) == found


@pytest.mark.parametrize("environ", [{}, {"SLURM_JOB_ID": "77"}])
def test_labels_are_for_relabelling_only(environ: dict[str, str]) -> None:
    ((one,),) = [json.loads(entry(listening("127.0.0.1:1"), environ))]
    assert one["targets"] == ["127.0.0.1:1"]
    assert all(name.startswith("__meta_optwrap_") for name in one["labels"])
    assert FORBIDDEN.isdisjoint(one["labels"])
    assert one["labels"].get("__meta_optwrap_slurm_job_id") == environ.get("SLURM_JOB_ID")


def test_everybody_may_read_the_file_and_nothing_else_is_left_behind(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("left by an exporter that was killed")
    before = os.umask(0o077)
    try:
        with announced(path, listening("127.0.0.1:1")):
            assert stat.S_IMODE(path.stat().st_mode) == 0o644
            assert json.loads(path.read_text())[0]["targets"] == ["127.0.0.1:1"]
            assert list(tmp_path.iterdir()) == [path]
    finally:
        os.umask(before)
    assert list(tmp_path.iterdir()) == []


def test_the_file_of_a_successor_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with announced(path, listening("127.0.0.1:2")):
        with announced(path, listening("127.0.0.1:1")):
            other = tmp_path / "other"
            other.write_text("successor")
            other.replace(path)
        assert path.read_text() == "successor"
    assert path.exists()
