"""For tests: a store and its ledger, without the ingest's thread."""

import contextlib
import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from optwrap_exporter.ledger.ledger import Ledger
from optwrap_exporter.ledger.plan import Plan
from optwrap_exporter.store.rollups import SIZE
from optwrap_exporter.store.store import Store
from optwrap_exporter.wire.answers import Event, Page, StepsAnswer
from optwrap_exporter.wire.requests import Report
from optwrap_exporter.wire.vocabulary import EventKind, to_json_number

from tests.exporter.trainer import Trainer, TurnedClock, first_replica


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


@contextlib.contextmanager
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kept]:
    """For one example of a property."""
    made = Kept(tmp_path_factory.mktemp("store"))
    try:
        yield made
    finally:
        made.store.close()


def rows(answer: StepsAnswer) -> list[tuple[int, str, bool, float | str]]:
    """Step, outcome, finite, norm: NaN by its name, so that it equals itself."""
    c = answer.columns
    return list(zip(c.step, c.outcome, c.finite, map(to_json_number, c.norm), strict=True))


def all_events(page_of: Callable[[str | None], Page[Event]]) -> list[Event]:
    found, cursor = [], None
    while True:
        page = page_of(cursor)
        found += page.items
        if (cursor := page.cursor) is None:
            return found


def check_blocks(directory: Path) -> None:
    """The blocks say of the step records what the step records say."""
    with contextlib.closing(sqlite3.connect(directory / "optwrap.sqlite3")) as db:
        truth: dict[tuple[int, int, int], list[float]] = {}
        counted: dict[tuple[int, int, int], list[int]] = {}
        scalars: dict[tuple[int, int, int, str], list[float]] = {}
        for run, process, step, norm, bad, text in db.execute(
            "SELECT run_id, process, step, norm, bad, scalars FROM step"
        ):
            key = (run, process, step // SIZE)
            values = {} if bad or text is None else json.loads(text)
            for name, value in values.items():
                if isinstance(value, int | float):
                    scalars.setdefault((*key, name), []).append(value)
            counted.setdefault(key, [0, 0])[bad] += 1
            if not bad:
                infinite = norm is None or any(isinstance(value, str) for value in values.values())
                truth.setdefault(key, []).append(float("inf") if infinite else norm)
        stored = {
            (run, process, block): (good, bad, low, high)
            for run, process, block, good, bad, low, high in db.execute(
                "SELECT run_id, process, block, good, bad, low, high FROM block WHERE good + bad > 0 AND name = ''"
            )
        }
        of_scalars = {
            (run, process, block, name): (good, low, high)
            for run, process, block, name, good, low, high in db.execute(
                "SELECT run_id, process, block, name, good, low, high FROM block WHERE name != ''"
            )
        }
    assert stored == {
        key: (good, bad, min(truth.get(key, [None])), max(truth.get(key, [None])))  # type: ignore[type-var]
        for key, (good, bad) in counted.items()
    }
    assert of_scalars == {key: (len(values), min(values), max(values)) for key, values in scalars.items()}


def busy_runs(kept: Kept) -> None:
    """Two runs, one of them of two processes, with events of several kinds."""
    trainers = [Trainer(kept.clock, process=process, process_count=2) for process in (1, 0)]
    trainers.append(Trainer(kept.clock, run="other"))
    for _ in range(6):
        kept.clock.advance(1)
        for trainer in trainers:
            trainer.step(
                "skipped_not_finite", norm="NaN", offenders={"w": 1}, replica=first_replica(1, 0, "cpu:1", 1, 2)
            )
            trainer.step()
            kept.take(trainer.report())
