"""The exporter's sockets: their mode, when a file is replaced, and when binding is refused."""

import os
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from optwrap_exporter.http.serving.server import StartError, bind_all, bind_tcp, bound_unix
from optwrap_exporter.settings import parse_address


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_unix_socket_is_private_to_its_owner_and_removed_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "made" / "ingest.sock"
    before = os.umask(0)
    try:
        with bound_unix(path):
            assert mode(path) == 0o600
            assert mode(path.parent) == 0o700
    finally:
        os.umask(before)
    assert not path.exists()


@pytest.mark.parametrize(
    ("given", "found", "directory"),
    [
        ({"mode": 0o640}, 0o640, 0o700),
        ({"mode": 0o660}, 0o660, 0o710),
        ({"mode": 0o666}, 0o666, 0o711),
        ({"group": os.getgid()}, 0o660, 0o710),
        ({"group": os.getgid(), "mode": 0o600}, 0o600, 0o700),
    ],
)
def test_a_new_directory_lets_in_those_who_may_use_the_socket(
    given: dict[str, int], found: int, directory: int, tmp_path: Path
) -> None:
    path = tmp_path / "made" / "s"
    with bound_unix(path, **given):
        assert (mode(path), mode(path.parent)) == (found, directory)
        assert {place.stat().st_gid for place in (path, path.parent)} == {os.getgid()}
    assert not path.exists()


@pytest.mark.parametrize(
    ("given", "directory", "remedy"),
    [
        ({}, 0o700, None),
        ({"mode": 0o666}, 0o700, "chmod o+x"),
        ({"mode": 0o666}, 0o711, None),
        ({"group": os.getgid()}, 0o700, f"chgrp {os.getgid()}"),
        ({"group": os.getgid()}, 0o710, None),
    ],
)
def test_a_directory_that_keeps_out_whom_the_socket_lets_in_is_one_warning(
    given: dict[str, int], directory: int, remedy: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The directory of a first try with mode 0600 stays closed when the option for another user is added."""
    path = tmp_path / "made" / "s"
    path.parent.mkdir()
    path.parent.chmod(directory)
    with bound_unix(path, **given):
        assert mode(path.parent) == directory
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == (remedy is not None)
    assert all(f"{remedy} {path.parent}" in line for line in said)


def test_nobody_can_connect_before_the_socket_has_its_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until then the file has mode 0600. If the group is not allowed, nothing is left."""
    path = tmp_path / "s"
    seen: list[int] = []

    def refuse(*_: object) -> None:
        seen.append(mode(path))
        raise PermissionError

    monkeypatch.setattr(os, "chown", refuse)
    with pytest.raises(StartError, match="--ingest-socket-group 7: not permitted"), bound_unix(path, group=7):
        pass
    assert seen == [0o600]
    assert not path.exists()


NOBODY = 65534


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize(
    ("given", "may"),
    [({}, False), ({"mode": 0o660}, False), ({"mode": 0o666}, True), ({"group": NOBODY}, True)],
    ids=["0600", "0660", "0666", "its group"],
)
def test_another_user_connects_if_mode_and_group_allow_it(given: dict[str, int], may: bool) -> None:
    # The directories of tmp_path are closed to other users.
    with tempfile.TemporaryDirectory() as base:
        Path(base).chmod(0o755)
        path = Path(base) / "run" / "s"
        become = f"import os, socket; os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})"
        connect = f"socket.socket(socket.AF_UNIX).connect({str(path)!r})"
        with bound_unix(path, **given):
            ran = subprocess.run([sys.executable, "-c", f"{become}; {connect}"], capture_output=True, check=False)
    assert (ran.returncode == 0) is may, ran.stderr
    assert may or b"PermissionError" in ran.stderr


def test_a_socket_file_without_a_listener_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    with bound_unix(path), socket.socket(socket.AF_UNIX) as client:
        assert client.connect_ex(str(path)) == 0


def test_a_socket_with_a_listener_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with bound_unix(path):
        with pytest.raises(StartError, match="listens"), bound_unix(path):
            pass
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


def test_a_file_at_the_socket_path_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    path.write_text("keep me")
    with pytest.raises(StartError, match="is not a socket"), bound_unix(path):
        pass
    assert path.read_text() == "keep me"


def test_a_stopping_exporter_leaves_the_socket_of_its_successor(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with bound_unix(path):
        path.unlink()
        successor = socket.socket(socket.AF_UNIX)
        successor.bind(str(path))
    assert path.exists()
    successor.close()


def test_a_socket_path_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="107 bytes"), bound_unix(tmp_path / ("x" * 120)):
        pass


def test_a_port_in_use_is_refused_with_the_address_and_the_remedy() -> None:
    (first,) = bind_tcp(parse_address("127.0.0.1:0"))
    port = first.getsockname()[1]
    with first, pytest.raises(StartError, match=f"127.0.0.1:{port}.*in use.*--listen"):
        bind_tcp(parse_address(f"127.0.0.1:{port}"))


def test_port_zero_is_a_free_port_for_each_address() -> None:
    sockets, bound = bind_all([parse_address("127.0.0.1:0"), parse_address("127.0.0.2:0")])
    assert [sock.getsockname() for sock in sockets] == [(one.host, one.port) for one in bound]
    assert len(bound) == 2
    for sock in sockets:
        sock.close()


@pytest.mark.parametrize("second", ["127.0.0.1", "0.0.0.0"])
def test_two_addresses_that_overlap_are_refused_and_the_first_is_free_again(second: str) -> None:
    (probe,) = bind_tcp(parse_address("127.0.0.1:0"))
    port = probe.getsockname()[1]
    probe.close()
    with pytest.raises(StartError, match=f"--listen {second}:{port}: another --listen has this port"):
        bind_all([parse_address(f"127.0.0.1:{port}"), parse_address(f"{second}:{port}")])
    (again,) = bind_tcp(parse_address(f"127.0.0.1:{port}"))
    again.close()


@pytest.mark.parametrize(("listen", "why"), [("192.0.2.1:0", "no interface"), ("no-such-host.invalid:1", "resolve")])
def test_an_address_that_is_not_this_machines_is_refused(listen: str, why: str) -> None:
    with pytest.raises(StartError, match=why):
        bind_tcp(parse_address(listen))


def test_localhost_is_one_port_on_every_loopback_address() -> None:
    sockets = bind_tcp(parse_address("localhost:0"))
    assert len({sock.getsockname()[1] for sock in sockets}) == 1
    for sock in sockets:
        sock.close()
