"""For tests: a store, a ledger and an ingest on one directory."""

import json
from pathlib import Path

from optwrap_exporter.ingest.ingest import Ingest, Retention
from optwrap_exporter.ledger.ledger import Ledger
from optwrap_exporter.store.store import Store
from optwrap_exporter.wire.answers import RunDetail
from optwrap_exporter.wire.requests import Report

from tests.exporter.trainer import TurnedClock, sent


class Exporter:
    """Store, ledger and ingest on one directory; started, with a clock that the test turns."""

    def __init__(
        self,
        directory: Path,
        clock: TurnedClock | None = None,
        *,
        waiting: int = 256,
        retention: Retention | None = None,
        limit_bytes: int | None = None,
    ) -> None:
        self.directory = directory
        self.clock = clock or TurnedClock()
        self.store = Store(directory, limit_bytes=limit_bytes)
        self.ledger = Ledger(self.clock)
        self.ingest = Ingest(self.store, self.ledger, waiting=waiting, tick=0, retention=retention)

    def __enter__(self) -> "Exporter":
        self.ingest.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ingest.close()
        self.store.close()

    @property
    def detail(self) -> RunDetail:
        answer = self.ledger.detail("lm")
        assert answer is not None
        return answer


def everything(exporter: Exporter) -> str:
    """All that can be asked, as one text."""
    runs = [exporter.ledger.detail(run) for run in exporter.ledger.runs()]
    return json.dumps(
        [
            exporter.store.revision(),
            *(run.model_dump_json() for run in runs if run is not None),
            *(message.model_dump_json() for message in exporter.store.changes(0).messages),
            *(exporter.store.steps("lm", p, points=10**6).model_dump_json() for p in range(4)),
        ]
    )


def changed(report: Report) -> Report:
    return sent(json.loads(report.model_dump_json()) | {"sent_at": report.sent_at + 1})
