"""Attempts that are over become one sum: no answer changes, and what is kept does not grow with the launches."""

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optwrap_exporter.ledger.change import divergence
from optwrap_exporter.ledger.ledger import Ledger
from optwrap_exporter.ledger.state import compaction, past
from optwrap_exporter.ledger.state import process as processes
from optwrap_exporter.store.store import SMALLEST_LIMIT

from tests.exporter.stores import Kept
from tests.exporter.trainer import State, Trainer, TurnedClock, take

PROCESSES = 3
LAUNCH = st.tuples(
    st.lists(st.integers(0, 5), min_size=PROCESSES, max_size=PROCESSES),  # steps of each process; 0: it has no part
    st.sampled_from(["applied", "skipped_not_finite"]),
    st.sampled_from(["running", "finished", "failed"]),
    st.booleans(),  # resumed from the last checkpoint, or from nothing
    st.integers(0, 3),  # of how many processes the last report arrives after the next launch
    st.booleans(),  # the exporter restarts
)


def lived(launches: list[Any], directory: Path | None = None, **bounds: float) -> Any:
    """What is answered after some launches, with these bounds of `compaction` and `past`."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in bounds.items():
            patch.setattr(past if name == "OPEN" else processes, name, value)
        clock = TurnedClock()
        kept = Kept(directory, clock=clock) if directory is not None else None
        ledger = Ledger(clock)
        checkpoint = State()
        late: list[Trainer] = []

        def send(trainer: Trainer, state: str) -> None:
            clock.advance(0.1)  # never so long that a process turns stale
            report = trainer.report(state)
            kept.take(report) if kept is not None else take(ledger, report)

        for number, (steps, outcome, end, resumed, delayed, restart) in enumerate(launches):
            if kept is not None and restart:
                kept = kept.reopened()
            began = checkpoint if resumed else State()
            trainers = [
                Trainer(
                    clock,
                    process=process,
                    incarnation=f"i{number}-{process}",
                    attempt=f"a{number}",
                    process_count=PROCESSES,
                    state=began.copy(),
                )
                for process in range(PROCESSES)
                if steps[process]
            ]
            for trainer in trainers:
                send(trainer, "starting")
            for trainer in late:
                send(trainer, "running")
            for trainer in trainers:
                for step in range(steps[trainer.process]):
                    if step % 2 or outcome == "applied":
                        trainer.step()
                        continue
                    replica = {"replica": number % 3, "process": None, "device": None, "count": 1, "of": None}
                    trainer.step(outcome, "NaN", offenders={f"w{number % 4}": 1 + step}, replica=replica)
                trainer.dropped = {"steps": number % 2, "bad_steps": 0}
            late = trainers[:delayed]
            for trainer in trainers[delayed:]:
                send(trainer, end)
            checkpoint = trainers[0].state.copy() if trainers else checkpoint
        for trainer in late:
            send(trainer, "running")
        if kept is not None:
            ledger = kept.reopened().ledger
            kept.store.close()
        detail, views = ledger.detail("lm"), list(ledger.views())
        if detail is None:
            return None
        # The failures before count as far as a process keeps its launches one by one.
        failures = dict.fromkeys(("health", "since", "since_rfc3339", "summary", "runbook"), True)
        answer = detail.model_dump(exclude={"processes": {"__all__": {"since"}}, **failures})
        return answer, [(view.process, view.totals, view.parameters, view.dropped) for view in views]


@given(st.lists(LAUNCH, min_size=4, max_size=14))
@settings(max_examples=30)
def test_totals_are_those_of_an_exporter_that_keeps_all(launches: list[Any]) -> None:
    """Reports of the launch before arrive late, and some processes have no part in some launches."""
    truth = lived(launches, KEPT=1000, RECENT=1000)
    assert lived(launches, KEPT=3, OPEN=1) == truth
    assert lived(launches, KEPT=1000, RECENT=3, LATE_SECONDS=0.0, OPEN=1) == truth


@given(st.lists(LAUNCH, min_size=6, max_size=12))
@settings(max_examples=10)
def test_they_are_the_same_after_restarts(tmp_path_factory: pytest.TempPathFactory, launches: list[Any]) -> None:
    directory = tmp_path_factory.mktemp("past") / "data"
    assert lived(launches, directory, KEPT=3, OPEN=1, REMEMBERED=2) == lived(launches, KEPT=1000, RECENT=1000)


def launched(kept: Kept, number: int, first: int = 0, steps: int = 2) -> list[Trainer]:
    """So many launches of three processes; the trainers of the first one."""
    made: list[Trainer] = []
    for launch in range(first, first + number):
        for process in range(PROCESSES):
            trainer = Trainer(
                kept.clock,
                process=process,
                process_count=PROCESSES,
                incarnation=f"i{launch}-{process}",
                attempt=f"a{launch}",
            )
            for _ in range(steps):
                trainer.bad(**{f"w{launch % 3}": 1})
            kept.clock.advance(0.1)
            kept.take(trainer.report())
            made += [trainer] if launch == first else []
        kept.clock.advance(60)
    return made


def rows(kept: Kept) -> dict[str, int]:
    """How many rows the tables have that no retention deletes."""
    with contextlib.closing(sqlite3.connect(kept.directory / "optwrap.sqlite3")) as db:
        tables = ("run", "process", "incarnation", "parameter", "path")
        return {table: db.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables}


def test_nothing_that_is_kept_grows_with_the_launches(kept: Kept) -> None:
    """From the moment on at which all bounds are reached."""
    enough = past.OPEN + compaction.KEPT + compaction.REMEMBERED
    launched(kept, enough)
    before = rows(kept)
    launched(kept, past.SHOWN, first=enough)
    assert rows(kept) == before
    for ledger in (kept.ledger, kept.reopened().ledger):
        (run,) = ledger._runs.values()
        for process in run.processes.values():
            assert len(process.incarnations) <= compaction.KEPT
            assert len(process.sums) <= compaction.KEPT
            assert len(process.compacted_ids) == compaction.REMEMBERED
            assert process.total.steps == 2 * (enough + past.SHOWN)
        assert run.total.steps == 2 * (enough + past.SHOWN)
        assert len(run.past.open) <= past.OPEN + 1
        assert len(run.past.launches) == past.SHOWN
        detail = ledger.detail("lm")
        assert detail is not None
        assert len(detail.attempts) + detail.left_out.attempts == enough + past.SHOWN
    assert len(kept.ledger._outcomes._groups) <= divergence._GROUPS_OF_RUN


def test_a_late_report_is_known_while_its_id_is_and_then_counts_from_where_it_begins(kept: Kept) -> None:
    first = launched(kept, 1)[0]
    launched(kept, compaction.KEPT, first=1)
    total = 2 * (compaction.KEPT + 1)
    first.step()
    assert kept.ledger.find(first.report()) is not None
    launched(kept, compaction.REMEMBERED, first=compaction.KEPT + 1)
    total += 2 * compaction.REMEMBERED
    for added in (0, 1):
        first.step()
        report = first.report(oldest_held=first.seq + 1)
        assert kept.ledger.find(report) is None
        kept.take(report)
        detail = kept.ledger.detail("lm")
        assert detail is not None
        assert detail.totals.steps == total + added


def test_records_of_forgotten_incarnations_are_still_counted_when_they_are_dropped(tmp_path: Path) -> None:
    """At the limit the oldest records are deleted: those of incarnations of which nothing is left."""
    kept = Kept(tmp_path / "data", limit_bytes=SMALLEST_LIMIT, clock=TurnedClock())
    launched(kept, 80, steps=40)
    for _ in range(2):
        for view in kept.ledger.views():
            stored = kept.store.steps("lm", view.process).total
            assert view.dropped.not_stored == 80 * 40 - stored > 0
        kept = kept.reopened()
    kept.store.close()
