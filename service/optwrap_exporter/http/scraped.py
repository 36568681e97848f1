"""Knows which runs somebody has scraped since they last changed, so that nothing is lost when the exporter stops."""

import threading
from typing import Final, NamedTuple

from optwrap_exporter.ingest.group_commit import Committed
from optwrap_exporter.ledger.ledger import Ledger

MOST_NAMED: Final = 100
"""The most runs that an answer names in each list."""


class Missing(NamedTuple):
    """The runs that keep an exporter from being drained."""

    reporting: list[str]
    """Runs of which a process still reports: it has not ended and is not stale."""
    unscraped: list[str]
    """The other runs that have changed since the last complete scrape began."""


class Scraped:
    """What complete answers of /metrics have shown. Every method may be called from any thread.

    Args:
      ledger: what a scrape shows.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._lock = threading.Lock()
        self._revision = 0
        self._changed: dict[str, int] = {}
        """The revision that changed a run last, for the runs that no complete scrape has shown since."""
        self._ever = False
        """Whether there has been a complete scrape since the start."""

    def committed(self, what: Committed) -> None:
        """Note a commit. The ledger has it already, so a scrape that begins now shows it."""
        with self._lock:
            self._revision = what.revision
            self._changed |= dict.fromkeys(what.runs, what.revision)

    @property
    def revision(self) -> int:
        """The revision that a scrape shows at least if it begins now."""
        return self._revision

    def complete(self, revision: int) -> None:
        """Note that an answer was sent that began at this revision."""
        with self._lock:
            self._ever = True
            self._changed = {run: changed for run, changed in self._changed.items() if changed > revision}

    def missing(self, run: str | None = None) -> Missing:
        """The runs that still report, and those that nobody has scraped since; only the one run if it is named."""
        with self._lock:
            changed, ever = set(self._changed), self._ever
        found = Missing([], [])
        for view in self._ledger.run_views():
            if run in {None, view.run}:
                if view.live:
                    found.reporting.append(view.run)
                elif not ever or view.run in changed:
                    found.unscraped.append(view.run)
        return found
