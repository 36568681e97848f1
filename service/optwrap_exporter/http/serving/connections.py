"""Limits the open connections of the server, so that it never runs out of file descriptors.

Beyond the limit a new connection takes the place of the one that has been idle longest. A Monitor or a browser opens a
closed connection again without a loss. If none is idle, the new connection is answered with 503.
"""

import logging
from typing import Final, Protocol

_log = logging.getLogger(__name__)

MOST_CONNECTIONS: Final = 8192
"""The most connections at once: two for each process of a large job. Each may hold some 100 KB of memory."""
BACKLOG: Final = 256
"""Connections that the kernel holds until they are accepted. All of them may be accepted at once."""
RESERVED_FILES: Final = 64
"""File descriptors for the database, the log and the event loop."""
FEWEST_CONNECTIONS: Final = 16
FEWEST_FILES: Final = RESERVED_FILES + FEWEST_CONNECTIONS
"""File descriptors without which the exporter does not start."""


class Droppable(Protocol):
    """A connection."""

    def drop(self) -> None:
        """Close it. Called only while it is idle."""
        ...


class Connections:
    """The open connections, and which of them are idle. For the event loop only.

    Args:
      most: how many there may be.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._busy: set[Droppable] = set()
        self._idle: dict[Droppable, None] = {}
        """In the order in which they became idle."""

    def __len__(self) -> int:
        return len(self._busy) + len(self._idle)

    def opened(self, connection: Droppable) -> bool:
        """Add a connection, which is idle until its request has arrived. False if there is no room: then close it."""
        if len(self) >= self._most:
            _log.warning("%d connections are open, which is the limit: the longest idle one is closed", len(self))
            if not self._idle:
                return False
            oldest = next(iter(self._idle))
            del self._idle[oldest]
            oldest.drop()
        self._idle[connection] = None
        return True

    def became_busy(self, connection: Droppable) -> None:
        """Note that a request has arrived."""
        if connection in self._idle:
            del self._idle[connection]
            self._busy.add(connection)

    def became_idle(self, connection: Droppable) -> None:
        """Note that the last request is answered."""
        if connection in self._busy:
            self._busy.discard(connection)
            self._idle[connection] = None

    def closed(self, connection: Droppable) -> None:
        """Remove a connection. Nothing happens if it was dropped before."""
        self._busy.discard(connection)
        self._idle.pop(connection, None)


def connection_limit(files: int | None) -> int:
    """The most connections for a process that may open so many files; None: the system has no limit."""
    if files is None:
        return MOST_CONNECTIONS
    return max(FEWEST_CONNECTIONS, min(MOST_CONNECTIONS, files - RESERVED_FILES - BACKLOG))
