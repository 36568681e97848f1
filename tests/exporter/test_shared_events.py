"""An event that all processes of an attempt report is one event of the run, from the process that leads it."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optwrap_exporter.wire.answers import Event
from optwrap_exporter.wire.requests import Report

from tests.exporter.histories import History, histories
from tests.exporter.stores import Kept
from tests.exporter.trainer import Trainer


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    made = Kept(tmp_path / "data")
    yield made
    made.store.close()


@st.composite
def silenced(draw: st.DrawFn) -> tuple[History, list[Report]]:
    """A history, and its reports: each process's in its order, interleaved anyhow, up to where it goes silent."""
    history = draw(histories())
    lines: dict[int, list[Report]] = {process: [] for process in history.processes}
    for trainer in history.trainers:
        lines[trainer.process] += history.reports[trainer.incarnation]
    for process, line in lines.items():
        lines[process] = line[: draw(st.integers(0, len(line)))]
    turns = draw(st.permutations([process for process, line in lines.items() for _ in line]))
    waiting = {process: iter(line) for process, line in lines.items()}
    return history, [next(waiting[process]) for process in turns]


def bad_steps(arrived: list[Report]) -> set[tuple[str, int, int, str]]:
    """Attempt, step, how many times its process had taken it in that attempt, and kind: of all that anybody told."""
    taken: Counter[tuple[str, int, int]] = Counter()
    found = set()
    for report in arrived:
        for step, outcome in zip(report.steps.step, report.steps.outcome, strict=True):
            taken[report.attempt, report.process, step] += 1
            if outcome not in {"applied", "accumulated"}:
                kind = "accepted_not_finite" if outcome == "accepted_not_finite" else "skipped"
                found.add((report.attempt, step, taken[report.attempt, report.process, step], kind))
    return found


@given(told=silenced(), data=st.data())
@settings(max_examples=30)
def test_every_bad_step_is_one_event_of_the_run(
    tmp_path_factory: pytest.TempPathFactory, told: tuple[History, list[Report]], data: st.DataObject
) -> None:
    _, arriving = told
    kept = Kept(tmp_path_factory.mktemp("store"))
    listed: dict[int, Event] = {}
    try:
        for report in arriving:
            kept.clock.advance(data.draw(st.sampled_from([0.0, 1.0, 30.0])))
            kept.take(report)
            now = {event.id: event for event in kept.events()}
            # What was listed once stays: whoever reads on from where he was misses nothing and reads nothing twice.
            assert now.keys() >= listed.keys()
            assert all(id_ > max(listed, default=0) for id_ in now.keys() - listed.keys())
            listed = now
    finally:
        kept.store.close()
    of_steps = [event for event in listed.values() if event.kind in {"skipped", "accepted_not_finite"}]
    truth = Counter((attempt, step, kind) for attempt, step, _, kind in bad_steps(arriving))
    assert Counter((event.attempt, event.step, event.kind) for event in of_steps) == truth


@given(told=silenced())
@settings(max_examples=20)
def test_every_process_lists_its_own_events(
    tmp_path_factory: pytest.TempPathFactory, told: tuple[History, list[Report]]
) -> None:
    history, arriving = told
    by_process = defaultdict(list)
    kept = Kept(tmp_path_factory.mktemp("store"))
    try:
        for report in arriving:
            kept.take(report)
            by_process[report.process].append(report)
        for process in history.processes:
            of_steps = [*kept.events("skipped", process), *kept.events("accepted_not_finite", process)]
            truth = Counter((attempt, step, kind) for attempt, step, _, kind in bad_steps(by_process[process]))
            assert Counter((event.attempt, event.step, event.kind) for event in of_steps) == truth
    finally:
        kept.store.close()


def test_the_next_process_leads_the_run_if_the_lowest_is_silent(kept: Kept) -> None:
    first, second = (Trainer(kept.clock, process=process, process_count=2) for process in range(2))
    for trainer in (first, second):
        trainer.step()
        kept.take(trainer.report())
    assert kept.lead == 0
    for _ in range(12):
        kept.clock.advance(1)
        second.bad()
        second.step(norm=0.25)
        kept.take(second.report())
    assert kept.lead == 1
    answer = kept.ledger.detail("lm")
    assert answer is not None
    assert (answer.state_totals.steps, answer.gauges.gradient_norm) == (25, 0.25)
    assert len(kept.events("skipped")) == len(kept.events("streak_started")) == len(kept.events("streak_ended")) == 12
    assert kept.store.steps("lm", kept.lead).total == 25
    for _ in range(24):
        first.step()
    kept.clock.advance(1)
    kept.take(first.report())
    assert kept.lead == 0


def test_a_process_that_ended_long_before_the_others_does_not_lead_the_run(kept: Kept) -> None:
    first, second = (Trainer(kept.clock, process=process, process_count=2) for process in range(2))
    kept.take(first.report("finished"))
    kept.take(second.report())
    assert kept.lead == 0
    kept.clock.advance(60)
    second.step()
    kept.take(second.report("finished"))
    assert kept.lead == 1


def test_the_lowest_of_processes_that_go_silent_together_leads_the_run(kept: Kept) -> None:
    for process in range(2):
        kept.take(Trainer(kept.clock, process=process, process_count=2).report())
        kept.clock.advance(1)
    kept.clock.advance(3600)
    assert kept.lead == 0


def test_a_shared_event_is_not_listed_again_after_the_first_was_deleted(kept: Kept) -> None:
    """Another process's event of the same step does not replace one that retention deleted."""
    trainers = [Trainer(kept.clock, process=process, process_count=2) for process in range(2)]
    for trainer in trainers:
        trainer.bad()
        kept.take(trainer.report())
    (event,) = kept.events("skipped")
    # The change, with the event, that retention forgets next.
    kept.store._db.execute("DELETE FROM event WHERE revision <= (SELECT revision FROM event WHERE id = ?)", (event.id,))
    assert kept.events("skipped") == []
    assert len(kept.events("skipped", process=1)) == 1
