"""Limits how long and how large a request head may be, so that idle or slow clients cannot take all connections."""

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from optwrap_exporter.http.serving.admission import PATH, Admission
from optwrap_exporter.http.serving.connections import Connections

_REPORTS: Final = PATH.encode()
HEAD_SECONDS: Final = 10.0
"""Seconds in which a whole request head must arrive, from the opening of the connection or its first byte."""
HEAD_BYTES: Final = 64 << 10
"""The most bytes of a request head that arrives in several parts. A part is at most 256 KiB."""
REQUEST_BYTES: Final = 16 << 20
"""The most bytes of a request with everything around its body, such as the sizes and extensions of chunks."""
MOST_PIPELINED: Final = 16
"""The most requests of a connection that wait for the answer to an earlier one. Each takes some 2 KB of memory."""

_NO_ROOM: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: %d\r\nRetry-After: 1\r\n"
    b"Connection: close\r\n\r\n%s"
)
_NO_ROOM_BODY: Final = b'{"detail":[{"field":"connection","value":"one more","allowed":"the same request later"}]}'


class Connection(HttpToolsProtocol):
    """uvicorn's connection with a limit on the arrival of a request. uvicorn only limits idle time after a request.

    Args:
      connections: the open connections of the server.
    """

    def __init__(self, *args: Any, connections: Connections, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._connections = connections
        self._began: float | None = None
        """When the request that is arriving began; None if none is arriving."""
        self._in_head = False
        self._head_bytes = 0
        """Bytes of the head that is arriving, without its first part."""
        self._part_bytes = 0
        self._request_bytes = 0
        """Bytes received since the head of the last request began."""
        self._admission: Admission | None = self.app_state.get("admission")
        self._refused = False
        """Whether the last report was refused before its body was read. What comes of the body is thrown away."""
        self._lost = False
        self.complete = False
        """Whether the body of the last request has arrived."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timeout for the first request."""
        super().connection_made(transport)
        if not self._connections.opened(self):
            transport.write(_NO_ROOM % (len(_NO_ROOM_BODY), _NO_ROOM_BODY))
            transport.close()
            return
        self._limit_arrival()

    def connection_lost(self, exc: Exception | None) -> None:
        """Note that the client is gone."""
        self._lost = True
        self._connections.closed(self)
        super().connection_lost(exc)

    def drop(self) -> None:
        """Close the connection, because others need its place."""
        self.transport.close()

    def is_lost(self) -> bool:
        """Whether the client is gone. May be called from any thread."""
        return self._lost

    def data_received(self, data: bytes) -> None:
        """Let uvicorn handle the data, then renew the timeout, which uvicorn drops here."""
        if self.transport.is_closing():
            return
        self._part_bytes = len(data)
        self._request_bytes += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._request_bytes > REQUEST_BYTES:
            self.transport.close()
            return
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES:  # the parser has no limit of its own
                self.send_400_response(f"The request head is larger than {HEAD_BYTES} bytes.")
                return
        if self._refused and self.complete and not self._in_head:
            self._began = None
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
        elif self.cycle is None or self.cycle.response_complete:
            self._limit_arrival()
        else:
            self._began = None

    def on_message_begin(self) -> None:
        """Note that a head has begun. The parser calls it."""
        super().on_message_begin()
        self.scope["state"]["connection"] = self
        self.complete = False
        self._in_head = True
        self._head_bytes = -self._part_bytes
        self._request_bytes = self._part_bytes

    def on_headers_complete(self) -> None:
        """Refuse a report if too many wait; else let uvicorn start the app. The parser calls it.

        The app would answer the same after ten times the work. The connection stays open: a client that sends its body
        before it reads the answer would lose the answer otherwise. To throw the body away costs less than to connect.
        """
        self._in_head = False
        self._connections.became_busy(self)
        self._refused = self.transport.is_closing()
        # uvicorn reads no more while requests wait, but one part of 256 KiB can have 10,000 of them.
        if self._refused or len(self.pipeline) >= MOST_PIPELINED:
            self._refused = True
            self.transport.close()
            return
        admission = self._admission
        if (
            admission is not None
            and self.url == _REPORTS
            and self.parser.get_method() == b"POST"
            and (self.cycle is None or self.cycle.response_complete)  # else this report waits for another answer
        ):
            # A client that does not read its answers gets no more of them from here: the app waits until it does.
            plain = self.parser.should_keep_alive() and not self.expect_100_continue
            if admission.full and plain and not self.flow.write_paused:
                self._refused = True
                self.transport.write(admission.refuse())
                self._connections.became_idle(self)
                return
            admission.expect()
        super().on_headers_complete()
        if self.expect_100_continue:
            # A client that waits for 100 may send its body after a refusal, or not: what follows cannot be told apart.
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """Take a part of the body. The parser calls it."""
        if not self._refused:
            super().on_body(body)

    def on_response_complete(self) -> None:
        """Note that the request is answered. uvicorn calls it, and starts the next request of a pipeline."""
        super().on_response_complete()
        if self.cycle is None or self.cycle.response_complete:
            self._connections.became_idle(self)

    def on_message_complete(self) -> None:
        """Note that the body has arrived. The parser calls it."""
        self.complete = True
        if not self._refused:
            super().on_message_complete()

    def _limit_arrival(self) -> None:
        """Close the connection if the request has not arrived by its deadline."""
        now = self.loop.time()
        if self._began is None:
            self._began = now
        self._unset_keepalive_if_required()
        left = max(0.0, self._began + HEAD_SECONDS - now)
        self.timeout_keep_alive_task = self.loop.call_later(left, self.timeout_keep_alive_handler)
