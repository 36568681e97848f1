"""A run's totals where its processes know different amounts of it: after the loss of a directory, with late incarnations."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optwrap_exporter.ledger.counters import Counts, Replica
from optwrap_exporter.ledger.ledger import Ledger
from optwrap_exporter.wire.requests import Report, RunDetail

from tests.exporter.histories import History, delivered, histories
from tests.exporter.reports import Clock, State, Trainer, sent, take


def detail(ledger: Ledger) -> RunDetail:
    answer = ledger.detail("lm")
    assert answer is not None
    return answer


def run_total(ledger: Ledger) -> Counts:
    """The run's totals, parameters, replicas and all."""
    answer = detail(ledger)
    outcomes = tuple(answer.totals.outcomes.values())
    return Counts(
        outcomes,
        answer.totals.not_finite_steps,
        {row.parameter: row.steps for row in answer.parameters if row.steps},
        {Replica(row.replica, row.process, row.device): row.steps for row in answer.replicas},
    )


def at_least(now: Counts, before: Counts) -> bool:
    """Whether nothing fell."""
    return now.maximum(before) == now


def lived(steps: int) -> State:
    state = State()
    for _ in range(steps):
        state.step("applied", {})
    return state


def a_report(clock: Clock, totals: int, *, at_start: int = 0, base: int | None = None, **who: Any) -> Report:
    """Of an incarnation that began at one number of steps, stands at another, and was told of a third before it."""
    trainer = Trainer(clock, state=lived(at_start), process_count=2, **who)
    trainer.state = lived(totals)
    return trainer.report(base=None if base is None else lived(base).counters())


def rebased(report: Report, base: Counts) -> Report:
    """The same from a client that was told what was counted before its incarnation."""
    counters = base.counters().model_dump(mode="json") if base.steps else None
    return sent(report.model_dump(mode="json") | {"base": counters})


@st.composite
def after_a_loss(draw: st.DrawFn) -> tuple[History, list[Report]]:
    """A history, and what a new exporter hears of it: of each process all from some incarnation on, and any of the others."""
    history = draw(histories())
    first = {
        process: draw(st.integers(0, sum(trainer.process == process for trainer in history.trainers) - 1))
        for process in history.processes
    }
    counted = dict.fromkeys(history.processes, Counts())
    place = dict.fromkeys(history.processes, 0)
    known = History([], {}, {})
    late: list[Report] = []
    for trainer in history.trainers:
        reports, before = history.reports[trainer.incarnation], counted[trainer.process]
        # A client is told of its base with the first answer; what it reported until then has none.
        reports = [reports[0], *(rebased(report, before) for report in reports[1:])]
        if place[trainer.process] >= first[trainer.process]:
            known.reports[trainer.incarnation] = reports
        else:
            late += [report for report in reports if draw(st.booleans())]
        counted[trainer.process] = before.plus(history.shares[trainer.incarnation])
        place[trainer.process] += 1
    data = draw(st.data())
    arriving = delivered(data, known)
    for report in late:
        arriving.insert(draw(st.integers(0, len(arriving))), report)
    return history, arriving


@given(lost=after_a_loss(), data=st.data())
@settings(max_examples=150, deadline=None)
def test_after_a_loss_the_run_total_is_never_more_than_the_truth_never_falls_and_comes_to_it(
    lost: tuple[History, list[Report]], data: st.DataObject
) -> None:
    """The first process gets furthest in every attempt, so that what it was told covers what was lost."""
    history, arriving = lost
    clock = Clock()
    ledger = Ledger(clock)
    truth = history.of_run()
    seen = Counts()
    processes: dict[int, Counts] = {}
    for report in arriving:
        clock.advance(data.draw(st.sampled_from([0.0, 1.0, 30.0])))
        if ledger.knows(report):
            continue
        take(ledger, report)
        now = run_total(ledger)
        assert at_least(now, seen)
        assert at_least(truth, now)
        seen = now
        for view in ledger.views():
            assert at_least(view.totals, processes.get(view.process, Counts()))
            assert at_least(history.of_process(view.process), view.totals)
            processes[view.process] = view.totals
    assert seen == truth
    assert {process: processes[process] for process in history.processes} == {
        process: history.of_process(process) for process in history.processes
    }


def test_a_process_that_lived_through_a_loss_covers_what_another_was_told_of() -> None:
    """One process counted all 100 steps in one incarnation; another was restarted alone, within the same attempt, at 60."""
    clock = Clock()
    ledger = Ledger(clock)
    take(ledger, a_report(clock, 100))
    take(ledger, a_report(clock, 100, at_start=60, base=60, process=1))
    answer = detail(ledger)
    assert (answer.totals.steps, answer.unseen) == (100, 0)
    assert [row.totals.steps for row in answer.processes] == [100, 100]


def test_late_reports_of_incarnations_that_a_base_covers_change_nothing() -> None:
    clock = Clock()
    ledger = Ledger(clock)
    before = [Trainer(clock, process=process, state=lived(10), process_count=2) for process in range(2)]
    for trainer in before:
        trainer.at_start = State()
    late = [trainer.report() for trainer in before]
    clock.advance(5)
    for process in range(2):
        take(ledger, a_report(clock, 12, at_start=7, base=10, process=process))
    assert detail(ledger).totals.steps == 15
    for report in late:
        take(ledger, report)
        assert detail(ledger).totals.steps == 15


def test_late_reports_of_several_incarnations_are_added_in_the_order_in_which_those_began() -> None:
    clock = Clock()
    ledger = Ledger(clock)
    reports = []
    for incarnation, base in enumerate((None, 10, 20)):
        clock.advance(5)
        reports.append(a_report(clock, 10 * (incarnation + 1), at_start=10 * incarnation, base=base))
    for report in reversed(reports):
        take(ledger, report)
        assert detail(ledger).totals.steps == 30
        assert detail(ledger).unseen == 0


def test_an_attempt_is_added_to_the_furthest_of_those_before_it() -> None:
    """Who gets furthest may be another process in each attempt; what is lost is counted once all the same."""
    clock = Clock()
    ledger = Ledger(clock)
    for attempt, ends in (("second", (110, 112)), ("third", (117, 115))):
        start = {"second": 100, "third": 112}[attempt]
        clock.advance(60)
        for process, end in enumerate(ends):
            told = {("third", 0): 110, ("third", 1): 112}.get((attempt, process), 100)
            take(ledger, a_report(clock, end, at_start=start, base=told, process=process, attempt=attempt))
    assert detail(ledger).totals.steps == 100 + 12 + 5


def test_an_attempt_of_another_process_is_added_to_what_was_told_before_it() -> None:
    clock = Clock()
    ledger = Ledger(clock)
    take(ledger, a_report(clock, 110, at_start=100, base=100))
    clock.advance(60)
    take(ledger, a_report(clock, 150, at_start=110, process=1, attempt="second"))
    assert detail(ledger).totals.steps == 150


@pytest.mark.parametrize("base", [None, 60])
def test_what_one_process_was_told_of_and_another_reported_is_seen_once(base: int | None) -> None:
    clock = Clock()
    ledger = Ledger(clock)
    take(ledger, a_report(clock, 60, process=0))
    clock.advance(60)
    take(ledger, a_report(clock, 200, at_start=100, base=base, process=1, attempt="second"))
    answer = detail(ledger)
    assert (answer.totals.steps, answer.unseen) == (160, 40)
