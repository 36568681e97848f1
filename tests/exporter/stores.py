"""For tests: a store and its ledger, without the ingest's thread."""

import contextlib
import sqlite3
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from optwrap_exporter.ledger.ledger import Ledger
from optwrap_exporter.ledger.plan import Plan
from optwrap_exporter.store.steps.rollups import SIZE
from optwrap_exporter.store.store import Store
from optwrap_exporter.wire.answers import Event, Page
from optwrap_exporter.wire.requests import Report
from optwrap_exporter.wire.step_answers import STEP_KINDS, StepsAnswer
from optwrap_exporter.wire.vocabulary import GOOD_OUTCOMES, OUTCOMES, EventKind, to_json_number

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
        return self.store.events("lm", kind=[kind] if kind else [], process=process, limit=1000).items

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
        truth: dict[tuple[int, int, int], dict[str, Any]] = {}
        for run, process, step, outcome, finite, norm, time, text in db.execute(
            "SELECT run_id, process, step, outcome, finite, norm, time, scalars FROM step"
        ):
            of = truth.setdefault(
                (run, process, step // SIZE), {"kinds": Counter(), "good": [], "norms": [], "times": []}
            )
            kind = kind_in_words(OUTCOMES[outcome], bool(finite))
            of["kinds"][kind] += 1
            of["times"].append(time)
            if kind in GOOD_OUTCOMES:
                lost = norm is None or (text is not None and ':"' in text)
                of["good"].append(float("inf") if lost else norm)
            if norm is not None and norm < float("inf"):
                of["norms"].append(norm)
        stored = {
            row[:3]: (Counter(dict(zip(STEP_KINDS, row[8:], strict=True))), *row[3:7], sorted(array("d", row[7])))
            for row in db.execute(
                "SELECT run_id, process, block, low, high, first_time, last_time, norms, "
                f"{', '.join(STEP_KINDS)} FROM block"
            )
        }
        scalars: dict[tuple[Any, ...], list[float]] = {}
        for *key, name, value in db.execute(
            f"SELECT run_id, process, step / {SIZE}, key, value FROM step, json_each(scalars) "
            "WHERE bad = 0 AND type != 'text'"
        ):
            scalars.setdefault((*key, name), []).append(value)
        of_scalars = {
            tuple(key): (low, high)
            for *key, low, high in db.execute("SELECT run_id, process, block, name, low, high FROM scalar_block")
        }
    assert of_scalars == {key: (min(values), max(values)) for key, values in scalars.items()}
    assert {key: row for key, row in stored.items() if row[0].total()} == {
        key: (
            of["kinds"],
            *(choose(of["good"], default=None) for choose in (min, max)),
            *(choose(of["times"]) for choose in (min, max)),
            sorted(of["norms"]),
        )
        for key, of in truth.items()
    }


def kind_in_words(outcome: str, finite: bool) -> str:
    """The kind of a step, as `StepBuckets.kinds` counts it."""
    if finite:
        return outcome
    return {"accumulated": "accumulated_not_finite", "applied": "accepted_not_finite"}.get(outcome, outcome)


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
            loss = [0.5] * len(trainer.columns["step"])
            kept.take(trainer.report(steps={**trainer.columns, "scalars": {"loss": loss}}))
