"""Closes connections on which no request arrives, so that idle clients cannot take all connections."""

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS: Final = 10.0
"""Seconds in which a whole request head must arrive, from the opening of the connection or its first byte."""


class Connection(H11Protocol):
    """uvicorn's connection with a limit on the arrival of a request. uvicorn only limits idle time after a request."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._began: float | None = None
        """When the request that is arriving began; None if none is arriving."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timeout for the first request."""
        super().connection_made(transport)
        self._limit_arrival()

    def data_received(self, data: bytes) -> None:
        """Let uvicorn handle the data, then renew the timeout, which uvicorn drops here."""
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._limit_arrival()
        else:
            self._began = None

    def _limit_arrival(self) -> None:
        """Close the connection if the request has not arrived by its deadline."""
        now = self.loop.time()
        if self._began is None:
            self._began = now
        self._unset_keepalive_if_required()
        left = max(0.0, self._began + HEAD_SECONDS - now)
        self.timeout_keep_alive_task = self.loop.call_later(left, self.timeout_keep_alive_handler)
