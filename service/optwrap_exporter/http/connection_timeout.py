"""Connections that bring no request end: otherwise whoever opens many and says nothing takes them all."""

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS: Final = 10.0
"""What the head of a request may take to arrive, from the connection's begin or the head's first byte."""


class Connection(H11Protocol):
    """uvicorn's, which by itself limits only how long a connection is idle after a request."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._began: float | None = None
        """When the request began that is still to come whole; None while there is none or one is being answered."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request."""
        super().connection_made(transport)
        self._hurry()

    def data_received(self, data: bytes) -> None:
        """Go on as uvicorn does, which forgets its own limit here."""
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._hurry()
        else:
            self._began = None

    def _hurry(self) -> None:
        """End the connection if the request is not here by its time."""
        now = self.loop.time()
        if self._began is None:
            self._began = now
        self._unset_keepalive_if_required()
        left = max(0.0, self._began + HEAD_SECONDS - now)
        self.timeout_keep_alive_task = self.loop.call_later(left, self.timeout_keep_alive_handler)
