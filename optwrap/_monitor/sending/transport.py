"""HTTP from a training process to its exporter, over TCP, TLS or a Unix socket, with the standard library only.

One connection, kept open between reports. Proxies in the environment are ignored, and redirects are not followed.
"""

import contextlib
import dataclasses
import http.client
import json
import os
import re
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any, Final, Protocol, cast

from optwrap._core.errors import OptwrapError
from optwrap._monitor.settings import Endpoint, read_token

_MAX_ANSWER_BYTES: Final = 64 * 1024
"""The exporter's answers are smaller."""
MAX_RETRY_AFTER: Final = 300
"""Longest Retry-After that is followed, in seconds. The exporter asks for less."""
_WAIT_SLICE: Final = 0.05
"""Seconds between two calls of `meanwhile` while a request waits."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """An HTTP response."""

    status: int
    body: bytes
    retry_after: float | None = None
    """The Retry-After header, in seconds; None if there is none that is to be followed."""

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of the fields that the exporter's error lists."""
        return tuple(str(one["field"]) for one in self._details())

    @property
    def message(self) -> str:
        """The status and the error text, in one printable line of at most 500 characters."""
        parts = [f"{one['field']}: got {one['value']}, allowed: {one['allowed']}" for one in self._details()]
        text = "; ".join(parts) or self.body[:200].decode("utf-8", "replace")
        return _one_line(f"{self.status} {text}")

    def acknowledged(self, sent: int) -> int:
        """The `acknowledged` of a 200. Other keys are ignored.

        Args:
          sent: the highest seq that was sent.

        Raises:
          TransportError: it is no integer from 0 to `sent`, so the answer is not from an exporter.
        """
        found = self._json()
        number = found.get("acknowledged") if isinstance(found, dict) else None
        if type(number) is not int or not 0 <= number <= sent:
            raise TransportError(f"the answer is not from an exporter: {self.message}")
        return number

    def _details(self) -> list[dict[str, Any]]:
        """The entries of the exporter's error; none if this is not the error of an exporter."""
        found = self._json()
        details = found.get("detail") if isinstance(found, dict) else None
        if not isinstance(details, list):
            return []
        keys = {"field", "value", "allowed"}
        return [one for one in details if isinstance(one, dict) and keys <= one.keys()]

    def _json(self) -> Any:
        """The body; None if it is not JSON."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None


class TransportError(OptwrapError):
    """A report got no answer, or an answer that is not from an exporter. The message has the cause."""


class Transport(Protocol):
    """Sends reports to an exporter."""

    def post(self, body: bytes, *, within: float | None = None, meanwhile: Callable[[], None] | None = None) -> Answer:
        """Send one report.

        Args:
          body: the report, as JSON.
          within: limit in seconds, if that is less than the transport's own timeouts.
          meanwhile: called repeatedly while the request waits; must not raise.

        Raises:
          TransportError: there is no answer.
        """
        ...

    def close(self) -> None:
        """Close the connection. The next `post` opens a new one."""
        ...

    def abandon(self) -> None:
        """Drop the connection that a forked process inherited, without taking any lock."""
        ...


class _Deadline(socket.socket):
    """A socket with one deadline for the whole exchange, not a timeout for each read and write.

    Its methods call those of the next class, which is another one under TLS.
    """

    deadline: float = 0.0
    """Monotonic seconds."""
    meanwhile: Callable[[], None] | None = None
    """Called repeatedly while the socket waits."""

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        receive = super().recv_into
        return self._until_deadline(lambda: receive(*args, **kwargs))

    def sendall(self, data: Any, *flags: Any) -> None:
        send, rest = super().send, memoryview(data).cast("B")
        while rest:
            rest = rest[self._until_deadline(lambda rest=rest: send(rest, *flags)) :]  # type: ignore[misc]

    def _until_deadline(self, work: Callable[[], int]) -> int:
        while True:
            remaining = self.deadline - time.monotonic()
            if remaining <= 0:
                raise TimeoutError("timed out")
            self.settimeout(remaining if self.meanwhile is None else min(remaining, _WAIT_SLICE))
            try:
                return work()
            except TimeoutError:
                if self.meanwhile is not None:
                    self.meanwhile()


class _DeadlineSocket(_Deadline):
    """Without TLS."""


class _DeadlineTls(_Deadline, ssl.SSLSocket):
    """Under TLS."""


class _Connection(http.client.HTTPConnection):
    """An HTTP connection over an open socket."""

    def __init__(self, opened: _Deadline, endpoint: Endpoint) -> None:
        super().__init__(endpoint.host, endpoint.port or None)
        self.opened = self.sock = opened
        # http.client must not reconnect: its new socket would have no deadline and could not be a Unix socket.
        self.auto_open = 0


class NoTransport:
    """Takes every report and sends none: steps are read for this program only."""

    def post(self, body: bytes, *, within: float | None = None, meanwhile: Callable[[], None] | None = None) -> Answer:
        """Accept the report."""
        del within, meanwhile
        return Answer(200, json.dumps({"acknowledged": json.loads(body)["seq"]}).encode())

    def close(self) -> None:
        """Do nothing."""

    def abandon(self) -> None:
        """Do nothing."""


class HttpTransport:
    """Sends reports with POST /v1/reports.

    Args:
      endpoint: the exporter.
      token_file: path of a file with the bearer token. It is read for every report, so it may be replaced, or
        appear later. While it cannot be read, the last token is sent, if there was one.
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
            except (ConnectionError, ssl.SSLEOFError, http.client.BadStatusLine, http.client.NotConnected):
                if not kept_open:
                    raise
                # The exporter has closed the idle connection, or has restarted. Sending a report twice is harmless.
                self.close()
                return self._exchange(body, deadline, meanwhile)
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.close()
            # http.client quotes what the server said.
            raise TransportError(_one_line(str(error)) or type(error).__name__) from error
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
                self._open_socket(_within(self._connect_timeout, deadline)), self._endpoint
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
            content = response.read(_MAX_ANSWER_BYTES + 1)
            if len(content) > _MAX_ANSWER_BYTES:
                raise http.client.HTTPException(f"the answer has more than {_MAX_ANSWER_BYTES} bytes")
            if response.length:
                # read(n) returns fewer bytes without an error if the connection breaks.
                raise http.client.IncompleteRead(content, response.length)
            if response.will_close:
                self.close()
            return Answer(response.status, content, _seconds(response.headers.get("Retry-After")))

    def _open_socket(self, timeout: float) -> _Deadline:
        endpoint = self._endpoint
        if endpoint.socket_path is not None:
            opened = _DeadlineSocket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                opened.settimeout(timeout)
                opened.connect(endpoint.socket_path)
            except BaseException:
                opened.close()
                raise
            return opened
        plain = socket.create_connection((endpoint.host, endpoint.port), timeout)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if endpoint.secure:
            try:
                context = endpoint.tls()
                context.sslsocket_class = _DeadlineTls
                return cast(_DeadlineTls, context.wrap_socket(plain, server_hostname=endpoint.host))
            except BaseException:
                plain.close()
                raise
        return _DeadlineSocket(fileno=plain.detach())

    def _read_token(self) -> str | None:
        if self._token_file is not None:
            # The file may be missing for a moment while it is replaced. A wrong token is answered with 401.
            with contextlib.suppress(OSError, ValueError):
                self._token = read_token(self._token_file)
        return self._token


def _within(limit: float, deadline: float | None) -> float:
    """`limit` seconds, or the time left until `deadline` if that is less; raises TimeoutError if none is left."""
    left = limit if deadline is None else min(limit, deadline - time.monotonic())
    if left <= 0:
        raise TimeoutError("timed out")
    return left


def _one_line(text: str) -> str:
    """The text as one printable line of at most 500 characters. It must not control the terminal of a log."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split())[:500])


def _seconds(header: str | None) -> float | None:
    """A Retry-After header in seconds; None for anything but an integer from 0 to MAX_RETRY_AFTER."""
    if header is None or re.fullmatch("[0-9]{1,4}", header) is None or int(header) > MAX_RETRY_AFTER:
        return None
    return float(header)
