"""The exporter's sockets: their mode, when a file is replaced, and when binding is refused."""

import os
import socket
import stat
from pathlib import Path

import pytest
from optwrap_exporter.http.server import StartError, bind_all, bind_tcp, bound_unix
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
