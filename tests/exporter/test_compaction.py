"""Old incarnations become one sum: no answer changes, nothing is counted twice, and no report costs more."""

import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optwrap_exporter.ingest.ingest import Ingest
from optwrap_exporter.ledger.change import failures
from optwrap_exporter.ledger.ledger import Ledger
from optwrap_exporter.ledger.state import process as processes
from optwrap_exporter.ledger.state.compaction import KEPT
from optwrap_exporter.store.store import Store

from tests.exporter.stores import Kept
from tests.exporter.trainer import Trainer, TurnedClock, take

HISTORY = st.lists(
    st.tuples(
        st.integers(0, 1),  # process
        st.booleans(),  # another attempt, or a rollback
        st.lists(st.sampled_from(["applied", "skipped_not_finite", "report"]), max_size=6),
        st.integers(0, 3),  # dropped records
    ),
    min_size=1,
    max_size=14,
)


def lived(history: list[Any], kept: int, directory: Path | None = None) -> Any:
    """What is answered after a history, if so many incarnations are kept one by one."""
    patch = pytest.MonkeyPatch()
    patch.setattr(processes, "KEPT", kept)
    patch.setattr(failures, "SOON", -1.0)  # no crash loops: only launches that are kept one by one count in them
    try:
        clock = TurnedClock()
        store = Kept(directory, clock=clock) if directory is not None else None
        ledger = store.ledger if store is not None else Ledger(clock)
        last: dict[int, Trainer] = {}
        attempts = {0: 0, 1: 0}
        for number, (process, relaunched, outcomes, dropped) in enumerate(history):
            attempts[process] += relaunched
            before = last.get(process)
            trainer = Trainer(
                clock,
                process=process,
                process_count=2,
                incarnation=f"i{number}",
                attempt=f"a{attempts[process]}",
                state=before.state.copy() if before is not None and not relaunched else None or Trainer().state,
            )
            trainer.dropped = {"steps": dropped, "bad_steps": 0}
            last[process] = trainer
            for outcome in [*outcomes, "report"]:
                if outcome == "report":
                    clock.advance(0.1)  # never so long that a process turns stale
                    report = trainer.report()
                    store.take(report) if store is not None else take(ledger, report)
                elif outcome == "applied":
                    trainer.step()
                else:
                    replica = {"replica": number % 3, "process": None, "device": None, "count": 1, "of": None}
                    trainer.step(outcome, "NaN", offenders={f"w{number % 4}": 2}, replica=replica)
        if store is not None:
            store = store.reopened()
            ledger = store.ledger
        detail = ledger.detail("lm")
        assert detail is not None
        if store is not None:
            store.store.close()
        return detail.model_dump(exclude={"processes": {"__all__": {"since"}}, "since": True})
    finally:
        patch.undo()


@given(HISTORY)
@settings(max_examples=40)
def test_compaction_changes_no_answer(history: list[Any]) -> None:
    assert lived(history, kept=2) == lived(history, kept=1000)


@given(HISTORY)
@settings(max_examples=15)
def test_what_is_compacted_is_the_same_after_a_restart(
    tmp_path_factory: pytest.TempPathFactory, history: list[Any]
) -> None:
    directory = tmp_path_factory.mktemp("compacted")
    assert lived(history, kept=2, directory=directory / "data") == lived(history, kept=2)


def starts(clock: TurnedClock, number: int) -> list[Trainer]:
    """So many starts of one process, each with three steps."""
    made = []
    for index in range(number):
        trainer = Trainer(clock, incarnation=f"start-{index}", attempt=f"attempt-{index // 3}")
        for _ in range(3):
            trainer.step()
        made.append(trainer)
    return made


def test_a_late_report_of_a_compacted_incarnation_is_acknowledged_and_changes_nothing(tmp_path: Path) -> None:
    clock = TurnedClock()
    with Store(tmp_path) as store, Ingest(store, Ledger(clock), tick=0) as ingest:
        trainers = starts(clock, 2 * KEPT)
        sent = [trainer.report() for trainer in trainers]
        for report in sent:
            clock.advance(1)
            ingest.submit(report)
        before = ingest._ledger.detail("lm")
        for trainer, report in zip(trainers[:3], sent, strict=False):
            again = ingest.submit(report)
            assert (again.acknowledged, again.duplicate) == (1, True)
            trainer.step()
            late = ingest.submit(trainer.report())
            assert (late.acknowledged, late.duplicate) == (2, True)
        assert ingest._ledger.detail("lm") == before
        assert before is not None
        assert before.totals.steps == 3 * 2 * KEPT


def test_late_reports_are_known_after_a_restart(tmp_path: Path) -> None:
    clock = TurnedClock()
    kept = Kept(tmp_path / "data", clock=clock)
    trainers = starts(clock, 2 * KEPT)
    for trainer in trainers:
        clock.advance(1)
        kept.take(trainer.report())
    again = kept.reopened()
    trainers[0].step()
    late = trainers[0].report()
    assert again.ledger.find(late) is not None
    trainers[-1].step()
    assert again.ledger.find(trainers[-1].report()) is None
    again.store.close()


def test_records_of_compacted_incarnations_are_still_counted_when_they_are_dropped(tmp_path: Path) -> None:
    """The oldest records belong to incarnations that are compacted by then."""
    clock = TurnedClock()
    kept = Kept(tmp_path / "data", limit_bytes=1 << 20, clock=clock)
    taken = 0
    for number in range(60):
        trainer = Trainer(clock, incarnation=f"start-{number}")
        for _ in range(1000):
            trainer.step()
        taken += 1000
        clock.advance(1)
        kept.take(trainer.report())
    before = kept.ledger.detail("lm")
    assert before is not None
    assert before.dropped.not_stored > 0
    assert kept.store.steps("lm", 0).total + before.dropped.not_stored == taken
    again = kept.reopened()
    after = again.ledger.detail("lm")
    assert after is not None
    assert after.dropped == before.dropped
    again.store.close()


def cpu_of_reports(ledger: Ledger, trainer: Trainer, number: int) -> float:
    reports = []
    for _ in range(number):
        trainer.step()
        reports.append(trainer.report())
    begun = time.process_time()
    for report in reports:
        ledger.admit(report)
        take(ledger, report)
    return (time.process_time() - begun) / number


def test_a_report_costs_the_same_after_a_thousand_starts() -> None:
    """Before, each looked at all incarnations of its process several times."""
    clock = TurnedClock()
    ledger = Ledger(clock)
    first = Trainer(clock, incarnation="early")
    cpu_of_reports(ledger, first, 50)
    before = min(cpu_of_reports(ledger, first, 100) for _ in range(5))
    for trainer in starts(clock, 1000):
        clock.advance(1)
        take(ledger, trainer.report())
    last = Trainer(clock, incarnation="late")
    after = min(cpu_of_reports(ledger, last, 100) for _ in range(5))
    assert after < 3 * before


def test_what_a_restart_reads_is_bounded(tmp_path: Path) -> None:
    clock = TurnedClock()
    with Store(tmp_path) as store, Ingest(store, Ledger(clock), tick=0) as ingest:
        for trainer in starts(clock, 300):
            clock.advance(1)
            ingest.submit(trainer.report())
    with Store(tmp_path) as store:
        (restored,) = store.restore()
        process = restored.processes[0]
        assert len(process.incarnations) == KEPT
        assert len(process.sums) <= 100
        assert process.total.steps == 900
