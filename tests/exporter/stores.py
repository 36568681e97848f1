"""For tests: a store and its ledger, without the ingest's thread."""

from pathlib import Path

from optwrap_exporter.ledger.ledger import Ledger, Plan
from optwrap_exporter.store.store import Store
from optwrap_exporter.wire.answers import Event
from optwrap_exporter.wire.requests import Report
from optwrap_exporter.wire.vocabulary import EventKind

from tests.exporter.trainer import TurnedClock


class Kept:
    """A store and its ledger."""

    def __init__(self, directory: Path, *, limit_bytes: int | None = None, clock: TurnedClock | None = None) -> None:
        self.directory = directory
        self.clock = clock or TurnedClock()
        self.store = Store(directory, limit_bytes=limit_bytes)
        self.ledger = Ledger(self.clock)
        self.ledger.restore(self.store.restore())

    def take(self, report: Report) -> int:
        """Store a report; returns the revision."""
        lost = self.store.make_room(len(report.steps) + len(report.offenders) + len(report.replicas))
        self.ledger.count_not_stored(lost)
        return self.commit(self.ledger.plan(report))

    def commit(self, plan: Plan) -> int:
        """Store a plan; returns the revision."""
        revision, plan = self.store.commit(plan, b"d")
        self.ledger.apply(plan)
        return revision

    def reopened(self) -> "Kept":
        """The same store after a restart of the exporter."""
        self.store.close()
        return Kept(self.directory, clock=self.clock)

    def events(self, kind: EventKind | None = None, process: int | None = None) -> list[Event]:
        """The events of the run "lm", newest first."""
        return self.store.events("lm", kind=kind, process=process, limit=1000).items

    @property
    def lead(self) -> int:
        """The process that stands for the run "lm"."""
        found = self.ledger.lead("lm")
        assert found is not None
        return found
