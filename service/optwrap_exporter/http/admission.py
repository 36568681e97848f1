"""Decides whether a report is taken before any of its body is read, so that a refusal costs next to nothing."""

from typing import Final

from optwrap_exporter.ingest import Ingest
from optwrap_exporter.load import Load

MOST_BYTES: Final = 32 << 20
"""The most bytes of all reports that are being received or wait for the writer. Beyond it clients get 429."""


class Admission:
    """Counts what is in flight. For the event loop only.

    Args:
      ingest: where reports wait.
      load: how soon refused clients may come back.
    """

    def __init__(self, ingest: Ingest, load: Load) -> None:
        self._ingest = ingest
        self._load = load
        self._bytes = 0

    @property
    def full(self) -> bool:
        """Whether the next report would have to be refused."""
        return self._ingest.full or self._bytes >= MOST_BYTES

    def hold(self, size: int) -> bool:
        """Count bytes of a report. False if there are too many now; they are counted all the same."""
        self._bytes += size
        return self._bytes <= MOST_BYTES

    def release(self, size: int) -> None:
        """Stop counting bytes, because the report is answered."""
        self._bytes -= size

    def retry_after(self) -> int:
        """Count a refusal. Returns the seconds after which the client may try again."""
        self._load.refused()
        return self._load.retry_after()
