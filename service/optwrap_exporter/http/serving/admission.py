"""Decides whether a report is taken before any of its body is read, so that a refusal costs next to nothing."""

from typing import Final

from optwrap_exporter.http.errors import refusal
from optwrap_exporter.http.middleware import HEADERS
from optwrap_exporter.ingest.ingest import Ingest
from optwrap_exporter.ingest.load import Load
from optwrap_exporter.metrics.own import Statistics

PATH: Final = "/v1/reports"
"""Where reports are sent."""
MOST_BYTES: Final = 32 << 20
"""The most bytes of all reports that are being received or wait for the writer. Beyond it clients get 429."""


class Admission:
    """Counts what is in flight. For the event loop only.

    Args:
      ingest: where reports wait.
      load: how soon refused clients may come back.
      statistics: where refused reports are counted.
    """

    def __init__(self, ingest: Ingest, load: Load, statistics: Statistics) -> None:
        self._ingest = ingest
        self._load = load
        self._statistics = statistics
        self._bytes = 0
        self._coming = 0
        body = bytes(refusal(429, "request", None, "the same report later").body)
        self._head = b"HTTP/1.1 429 Too Many Requests\r\nretry-after: %d\r\n"
        headers = {
            **HEADERS,
            "cache-control": "no-store",
            "content-type": "application/json",
            "content-length": str(len(body)),
        }
        self._rest = "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode() + b"\r\n" + body

    @property
    def full(self) -> bool:
        """Whether the next report would have to be refused."""
        return self._ingest.room <= self._coming or self._bytes >= MOST_BYTES

    def expect(self) -> None:
        """Count a report that is admitted and whose handling will begin in this turn of the event loop.

        Hundreds of connections may be ready in one turn. The queue shows none of them yet.
        """
        self._coming += 1

    def begin(self) -> None:
        """Stop counting a report as expected, because its handling begins."""
        self._coming = max(0, self._coming - 1)

    def hold(self, size: int) -> bool:
        """Count bytes of a report. False if there are too many now; they are counted all the same."""
        self._bytes += size
        return self._bytes <= MOST_BYTES

    def release(self, size: int) -> None:
        """Stop counting bytes, because the report is answered."""
        self._bytes -= size

    def retry_after(self) -> int:
        """Seconds after which a client that is refused now may try again."""
        self._load.refused()
        return self._load.retry_after()

    def refuse(self) -> bytes:
        """Count a refused report, and return the whole answer, status line and headers included."""
        self._statistics.report("busy")
        return self._head % self.retry_after() + self._rest
