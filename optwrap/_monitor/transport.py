"""HTTP from a training process to its exporter: loopback TCP or a Unix socket, the standard library alone.

One connection, kept open between reports. No proxy from the environment, no redirect followed: a report goes where it
was told to go or nowhere.
"""

import contextlib
import dataclasses
import http.client
import json
import os
import socket
import time
from collections.abc import Callable
from typing import Any, Final, Protocol

from optwrap._monitor.settings import Endpoint, read_token

_LARGEST_ANSWER: Final = 8 * 1024 * 1024
"""An answer holds one count per parameter at most; more than this is not the exporter's."""
_PORTION: Final = 0.05
"""Seconds of waiting after which something else gets its turn."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """What the exporter said."""

    status: int
    body: bytes
    retry_after: float | None = None
    """Seconds it asks to be left alone for."""

    @property
    def fields(self) -> tuple[str, ...]:
        """What it says is wrong, without the values."""
        try:
            return tuple(str(one["field"]) for one in json.loads(self.body)["detail"])
        except (ValueError, TypeError, KeyError):
            return ()

    @property
    def message(self) -> str:
        """Its own words about what is wrong, in one line."""
        try:
            parts = [
                f"{one['field']}: got {one['value']}, allowed: {one['allowed']}"
                for one in json.loads(self.body)["detail"]
            ]
        except (ValueError, TypeError, KeyError):
            parts = [self.body[:200].decode("utf-8", "replace")]
        return " ".join(f"{self.status} {'; '.join(parts)}".split())[:500]


class TransportError(Exception):
    """No answer, or none that HTTP knows; the message says why."""


class Transport(Protocol):
    """Takes a report to the exporter and brings its answer."""

    def post(self, body: bytes, *, within: float | None = None, meanwhile: Callable[[], None] | None = None) -> Answer:
        """Send one report.

        Args:
          body: the report, as JSON.
          within: seconds this may take, where that is less than the transport's own limits.
          meanwhile: called again and again while the exporter lets us wait; must not raise.

        Raises:
          TransportError: there was no answer.
        """
        ...

    def close(self) -> None:
        """Close what is open. The next `post` opens it again."""
        ...

    def abandon(self) -> None:
        """Let go of what a forked process inherited, touching nothing that a thread of its parent may have locked."""
        ...


class _DeadlineSocket(socket.socket):
    """A socket that is done at a point in time, however the other side portions out its bytes, or takes ours."""

    deadline: float = 0.0
    meanwhile: Callable[[], None] | None = None
    """What else there is to do while it waits."""

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        receive = super().recv_into
        return self._patiently(lambda: receive(*args, **kwargs))

    def sendall(self, data: Any, *flags: Any) -> None:
        send, rest = super().send, memoryview(data).cast("B")
        while rest:
            rest = rest[self._patiently(lambda rest=rest: send(rest, *flags)) :]  # type: ignore[misc]

    def _patiently(self, work: Callable[[], int]) -> int:
        while True:
            remaining = self.deadline - time.monotonic()
            if remaining <= 0:
                raise TimeoutError("timed out")
            self.settimeout(remaining if self.meanwhile is None else min(remaining, _PORTION))
            try:
                return work()
            except TimeoutError:
                if self.meanwhile is not None:
                    self.meanwhile()


class _Connection(http.client.HTTPConnection):
    """An HTTP connection over a socket that is open already."""

    def __init__(self, opened: _DeadlineSocket, endpoint: Endpoint) -> None:
        super().__init__(endpoint.host, endpoint.port or None)
        self.opened = self.sock = opened
        # It is not for http.client to open another one: that would know neither our deadline nor Unix sockets.
        self.auto_open = 0


class HttpTransport:
    """POST /v1/reports at an endpoint.

    Args:
      endpoint: where.
      token_file: path of a file with the bearer token, read again for every report so that it can be replaced.
      connect_timeout: seconds.
      answer_timeout: seconds from the first byte sent to the last byte received.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        token_file: str | None = None,
        *,
        connect_timeout: float = 1.0,
        answer_timeout: float = 5.0,
    ) -> None:
        self._endpoint = endpoint
        self._token_file = token_file
        self._token: str | None = None
        self._connect_timeout = connect_timeout
        self._answer_timeout = answer_timeout
        self._connection: _Connection | None = None

    def post(self, body: bytes, *, within: float | None = None, meanwhile: Callable[[], None] | None = None) -> Answer:
        """Send one report; see `Transport`."""
        deadline = None if within is None else time.monotonic() + within
        kept_open = self._connection is not None
        try:
            try:
                return self._exchange(body, deadline, meanwhile)
            except (ConnectionError, http.client.BadStatusLine, http.client.NotConnected):
                if not kept_open:
                    raise
                # The exporter may close an idle connection at any time, or be a new one after a restart. Sending the
                # same report twice does no harm.
                self.close()
                return self._exchange(body, deadline, meanwhile)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise TransportError(str(error) or type(error).__name__) from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the connection, if one is open."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def abandon(self) -> None:
        """Close this process's copy of the connection and nothing else; see `Transport`."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(OSError):
                os.close(connection.opened.detach())

    def _exchange(self, body: bytes, deadline: float | None, meanwhile: Callable[[], None] | None) -> Answer:
        connection = self._connection
        if connection is None:
            connection = self._connection = _Connection(
                self._dial(_within(self._connect_timeout, deadline)), self._endpoint
            )
        limit = _within(self._answer_timeout, deadline)
        connection.opened.deadline = time.monotonic() + limit
        connection.opened.meanwhile = meanwhile
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        token = self._read_token()
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        connection.request("POST", f"{self._endpoint.prefix}/v1/reports", body, headers)
        with connection.getresponse() as response:
            content = response.read(_LARGEST_ANSWER + 1)
            if len(content) > _LARGEST_ANSWER:
                raise http.client.HTTPException(f"an answer of more than {_LARGEST_ANSWER} bytes")
            if response.length:
                # A read of so many bytes at most is content with fewer.
                raise http.client.IncompleteRead(content, response.length)
            if response.will_close:
                self.close()
            return Answer(response.status, content, _seconds(response.headers.get("Retry-After")))

    def _dial(self, timeout: float) -> _DeadlineSocket:
        endpoint = self._endpoint
        if endpoint.socket_path is not None:
            dialled = _DeadlineSocket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                dialled.settimeout(timeout)
                dialled.connect(endpoint.socket_path)
            except BaseException:
                dialled.close()
                raise
            return dialled
        plain = socket.create_connection((endpoint.host, endpoint.port), timeout)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return _DeadlineSocket(fileno=plain.detach())

    def _read_token(self) -> str | None:
        if self._token_file is not None:
            # While it is being replaced the last one may do, and the exporter says so if it does not.
            with contextlib.suppress(OSError, ValueError):
                self._token = read_token(self._token_file)
        return self._token


def _within(limit: float, deadline: float | None) -> float:
    """`limit` seconds, or what is left until `deadline`; raises TimeoutError where that is nothing."""
    left = limit if deadline is None else min(limit, deadline - time.monotonic())
    if left <= 0:
        raise TimeoutError("timed out")
    return left


def _seconds(header: str | None) -> float | None:
    """A Retry-After in seconds; one that is a date is left alone, as no exporter of ours sends it."""
    try:
        seconds = float(int(header or ""))
    except ValueError:
        return None
    return seconds if seconds >= 0 else None
