"""Runs the app in one process with one worker: sockets, signals and shutdown."""

import asyncio
import contextlib
import errno
import functools
import logging
import os
import socket
import stat
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import uvicorn
from starlette.types import ASGIApp
from uvicorn.server import HANDLED_SIGNALS

from optwrap_exporter.http.own_file import own_file
from optwrap_exporter.http.serving.connection_timeout import Connection
from optwrap_exporter.http.serving.connections import (
    BACKLOG,
    FEWEST_FILES,
    MOST_CONNECTIONS,
    Connections,
    connection_limit,
)
from optwrap_exporter.http.serving.log_limit import LogLimit
from optwrap_exporter.settings import Address
from optwrap_exporter.wire.errors import ExporterError

_log = logging.getLogger(__name__)

GRACE_SECONDS: Final = 6
"""Seconds that running requests have at shutdown: more than a report may take to arrive. Streams end at once."""

KEEP_ALIVE_SECONDS: Final = 75
"""Seconds until an idle connection is closed: longer than most intervals between reports."""

_FILES: Final = 65_536
_CAUSED_BY_CLIENTS: Final = ("uvicorn.error", "asyncio", Connections.__module__)
"""Loggers whose messages clients can cause."""
_SOCKET_PATH_BYTES: Final = 107
"""The longest path that fits a Linux sockaddr_un."""


class StartError(ExporterError):
    """The exporter cannot start. The message is one line: why, and what to do."""


def bind_all(addresses: Sequence[Address]) -> tuple[list[socket.socket], tuple[Address, ...]]:
    """`bind_tcp` for several addresses.

    Returns:
      The sockets, and the addresses with the ports that were chosen.

    Raises:
      StartError: as in `bind_tcp`. Then nothing listens.
    """
    sockets: list[socket.socket] = []
    bound: list[Address] = []
    for address in addresses:
        try:
            found = bind_tcp(address, taken=[one.port for one in bound])
        except StartError:
            for sock in sockets:
                sock.close()
            raise
        sockets += found
        bound.append(Address(address.host, found[0].getsockname()[1]))
    return sockets, tuple(bound)


def bind_tcp(address: Address, *, taken: Collection[int] = ()) -> list[socket.socket]:
    """Listen on every address that `address` resolves to, on one port.

    Args:
      address: where to listen.
      taken: the ports of other addresses of this exporter, for the message if the port is in use.

    Raises:
      StartError: the address does not resolve to an address of this machine, or the port is in use or not allowed.
    """
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise StartError(f"--listen {address}: cannot resolve {address.host!r}: {error.strerror or error}") from error
    bound: list[socket.socket] = []
    port = address.port
    failure: OSError | None = None
    for family, kind, protocol, _, target in dict.fromkeys(found):
        sock = socket.socket(family, kind, protocol)
        try:
            # Allows a port on which only closed connections linger. A port with a listener stays refused.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if address.wildcard else 1)
            sock.bind((target[0], port, *target[2:]))
            # With SO_REUSEADDR two processes may bind, but only one may listen.
            sock.listen(BACKLOG)
            port = sock.getsockname()[1]
            bound.append(sock)
        except OSError as error:
            sock.close()
            failure = error
            if error.errno in {errno.EADDRINUSE, errno.EACCES}:
                break
    if failure is not None and (not bound or failure.errno in {errno.EADDRINUSE, errno.EACCES}):
        for sock in bound:
            sock.close()
        remedy = {
            errno.EADDRINUSE: "another --listen has this port: give each address once, or choose another port"
            if address.port in taken
            else "the port is in use: stop the other program, or choose another --listen port",
            errno.EACCES: "permission denied: choose a port above 1023",
            errno.EADDRNOTAVAIL: "no interface of this machine has this address",
        }.get(failure.errno or 0, os.strerror(failure.errno or 0))
        raise StartError(f"--listen {address}: {remedy}") from failure
    return bound


@contextlib.contextmanager
def bound_unix(path: Path, *, mode: int | None = None, group: int | None = None) -> Iterator[socket.socket]:
    """Listen on a Unix socket during the block, and delete the file afterwards.

    A missing directory is created, for those alone who may use the socket. A socket file without
    a listener is replaced.

    Args:
      path: of the socket file.
      mode: of the socket file; None for 0600, or 0660 with a group.
      group: number of the group of the socket file; None leaves it as it is.

    Raises:
      StartError: the path is too long, is not a socket, cannot be written, or another process listens on it, or the
        group is not allowed.
    """
    if mode is None:
        mode = 0o600 if group is None else 0o660
    label = f"--ingest-socket {path}"
    path = path.absolute()
    if len(os.fsencode(path)) > _SOCKET_PATH_BYTES:
        raise StartError(f"{label}: the path is longer than {_SOCKET_PATH_BYTES} bytes: choose a shorter one")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _make_directory(path.parent, mode, group)
        _remove_stale(path, label)
        # Only the owner may write to the file until it has its final group and mode.
        before = os.umask(0o177)
        try:
            sock.bind(os.fspath(path))
        finally:
            os.umask(before)
        try:
            _give(path, mode, group)
            _say_if_closed(path)
            sock.listen(BACKLOG)
        except BaseException:
            path.unlink()
            raise
    except OSError as error:
        sock.close()
        raise StartError(f"{label}: {error.strerror or error}") from error
    except StartError:
        sock.close()
        raise
    with own_file(path), sock:
        yield sock


def _make_directory(path: Path, mode: int, group: int | None) -> None:
    """Create a missing directory, which those may enter who may use a socket of this mode and group in it."""
    try:
        path.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        return
    _give(path, 0o700 | (mode & 0o020) >> 1 | (mode & 0o002) >> 1, group)


def _say_if_closed(path: Path) -> None:
    """Log a directory that keeps out whom the socket lets in: it may be older than the option that opens the socket."""
    file, directory = path.stat(), path.parent.stat()
    if directory.st_mode & stat.S_IXOTH:
        return
    if file.st_mode & stat.S_IWOTH:
        who, remedy = "other users", f"chmod o+x {path.parent}"
    elif file.st_mode & stat.S_IWGRP and not (directory.st_mode & stat.S_IXGRP and directory.st_gid == file.st_gid):
        who, remedy = f"the group {file.st_gid}", f"chgrp {file.st_gid} {path.parent} && chmod g+x {path.parent}"
    else:
        return
    _log.warning("--ingest-socket %s: its directory keeps out %s, whom the socket lets in: %s", path, who, remedy)


def _give(path: Path, mode: int, group: int | None) -> None:
    if group is not None:
        try:
            os.chown(path, -1, group)
        except PermissionError as error:
            remedy = "its user must be root or a member of the group"
            raise StartError(f"--ingest-socket-group {group}: not permitted for {path}: {remedy}") from error
    path.chmod(mode)


def _remove_stale(path: Path, label: str) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise StartError(f"{label}: the path exists and is not a socket: choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except TimeoutError:
            pass
    raise StartError(f"{label}: another process listens on this socket: stop it, or choose another path")


def allow_connections() -> int:
    """Raise the limit of open files, one for each connection, as far as the system allows.

    The default is often 1,024, and a large job has more processes.

    Returns:
      How many connections there may be at once.

    Raises:
      StartError: the system allows too few to run at all.
    """
    try:
        import resource  # noqa: PLC0415  # not on Windows
    except ImportError:
        return connection_limit(None)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY:
        most = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
        with contextlib.suppress(OSError, ValueError):  # some systems report no limit but refuse to set it
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < FEWEST_FILES:
            raise StartError(
                f"this process may open {soft} files (ulimit -n); allowed: at least {FEWEST_FILES}, and one more for "
                "each process that reports, so raise the limit, for example to 1024"
            )
    return connection_limit(None if soft == resource.RLIM_INFINITY else soft)


class Server(uvicorn.Server):
    """uvicorn's server with callbacks for the start and the end of serving."""

    def __init__(self, config: uvicorn.Config, *, started: Callable[[], None], stopping: Callable[[], None]) -> None:
        super().__init__(config)
        self._started = started
        self._stopping = stopping

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start serving, then call `started`."""
        await super().startup(sockets)
        self._started()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop on SIGTERM and SIGINT. uvicorn would raise the signal again and turn a clean stop into a crash."""
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread can handle signals
            return
        loop = asyncio.get_running_loop()
        for number in HANDLED_SIGNALS:
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in HANDLED_SIGNALS:
                loop.remove_signal_handler(number)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the streams first, because uvicorn waits for every open response."""
        self._stopping()
        await super().shutdown(sockets)


def server_of(
    app: ASGIApp,
    *,
    started: Callable[[], None],
    stopping: Callable[[], None],
    most_connections: int = MOST_CONNECTIONS,
) -> Server:
    """A server for `app`. Its `run(sockets)` serves on the sockets of `bind_tcp` and `bound_unix` and closes them.

    Args:
      app: the ASGI application.
      started: called once when the server accepts requests.
      stopping: called once, in the event loop, when the server stops.
      most_connections: how many connections may be open at once.
    """
    # uvicorn calls this for each connection.
    protocol: Any = functools.partial(Connection, connections=Connections(most_connections))
    config = uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        loop="auto",  # uvloop where it is installed
        interface="asgi3",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        backlog=BACKLOG,
    )
    return Server(config, started=started, stopping=stopping)


def configure_logging(level: str) -> None:
    """Log one line per message to standard error. uvicorn's messages below warning need level debug.

    What clients can cause, such as requests that are no HTTP, is logged at most once a minute.
    """
    logging.basicConfig(level=level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True)
    for handler in logging.getLogger().handlers:
        handler.addFilter(LogLimit(_CAUSED_BY_CLIENTS))
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).setLevel(logging.DEBUG if level == "debug" else logging.WARNING)
