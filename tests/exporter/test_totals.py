"""Totals after the loss of a store are right, in whatever order the reports arrive."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optwrap_exporter.ledger.ledger import Ledger
from optwrap_exporter.ledger.state.counters import Counts
from optwrap_exporter.wire.answers import RunDetail
from optwrap_exporter.wire.requests import Report

from tests.exporter.histories import History, a_step, counts, delivered, histories
from tests.exporter.trainer import State, Trainer, TurnedClock, minus, sent, take


def detail(ledger: Ledger) -> RunDetail:
    answer = ledger.detail("lm")
    assert answer is not None
    return answer


def at_least(now: Counts, before: Counts) -> bool:
    """Whether no count is smaller than before."""
    return now.maximum(before) == now


def steps_of(state: int, *, start: int = 0) -> Trainer:
    """A trainer whose state has taken that many steps, `start` of them before its incarnation."""
    trainer = Trainer(state=State())
    for _ in range(start):
        trainer.state.step("applied", {})
    trainer.start = trainer.state.copy()
    for _ in range(state - start):
        trainer.state.step("applied", {})
    return trainer


@given(history=histories(), data=st.data())
@settings(max_examples=60)
def test_after_a_loss_totals_depend_only_on_the_set_of_reports(history: History, data: st.DataObject) -> None:
    """Reports come in any order, repeated; the first ones of some incarnations went to the lost store."""
    reports: list[Report] = []
    for made in history.reports.values():
        oldest = data.draw(st.integers(1, len(made)))
        reports += [report.model_copy(update={"oldest_held": oldest}) for report in made if report.seq >= oldest]
    found = []
    for _ in range(2):
        clock = TurnedClock()
        ledger = Ledger(clock)
        seen: dict[int, Counts] = {}
        order = data.draw(st.permutations(reports))
        for report in [*order, *data.draw(st.lists(st.sampled_from(reports), max_size=3))]:
            clock.advance(1)
            if ledger.find(report) is not None:
                continue
            take(ledger, report)
            for view in ledger.views():
                assert at_least(view.totals, seen.get(view.process, Counts()))
                assert at_least(history.of_process(view.process), view.totals)
                seen[view.process] = view.totals
        found.append((seen, detail(ledger).totals, detail(ledger).parameters))
    assert found[0] == found[1]


@given(
    steps=st.lists(a_step(), min_size=1, max_size=12),
    lost=st.integers(0, 11),
    data=st.data(),
)
@settings(max_examples=60)
def test_after_a_loss_exactly_the_steps_since_the_first_report_received_are_counted(
    steps: list[tuple[str, dict[str, int], None]], lost: int, data: st.DataObject
) -> None:
    trainer = Trainer()
    states, reports = [], []
    for outcome, offenders, _ in steps:
        trainer.step(outcome, offenders=offenders)
        states.append(trainer.state.copy())
        reports.append(trainer.json())
    lost = min(lost, len(steps) - 1)
    held = [sent(report | {"oldest_held": lost + 1}) for report in reports[lost:]]
    dropped = data.draw(st.sets(st.integers(1, max(1, len(held) - 2))))
    arriving = [report for place, report in enumerate(held) if place not in dropped or place == len(held) - 1]
    ledger = Ledger(TurnedClock())
    for report in data.draw(st.permutations(arriving)):
        take(ledger, report)
    (view,) = ledger.views()
    before = State() if lost == 0 else states[lost]
    assert view.totals == counts(minus(trainer.state, before))
    assert detail(ledger).unseen == (0 if lost == 0 else lost + 1)


@given(history=histories(), data=st.data())
@settings(max_examples=40)
def test_a_late_report_from_before_the_loss_completes_the_incarnation(history: History, data: st.DataObject) -> None:
    """A report with oldest_held 1 proves that nothing of the incarnation is missing."""
    ledger = Ledger(TurnedClock())
    arriving = delivered(data, history)
    first = {incarnation: reports[0] for incarnation, reports in history.reports.items()}
    for report in arriving:
        later = report.model_copy(update={"oldest_held": max(1, report.seq)})
        if ledger.find(later) is None:
            take(ledger, later)
    for report in first.values():
        if ledger.find(report) is None:
            take(ledger, report)
    for view in ledger.views():
        assert view.totals == history.of_process(view.process)
    assert detail(ledger).totals == history.of_run().totals()


def test_an_incarnation_first_heard_late_starts_at_the_totals_of_its_first_report() -> None:
    ledger = Ledger(TurnedClock())
    trainer = steps_of(100)
    take(ledger, trainer.report(seq=7, oldest_held=7))
    assert (detail(ledger).totals.steps, detail(ledger).state_totals.steps, detail(ledger).unseen) == (0, 100, 100)
    trainer.step()
    take(ledger, trainer.report(seq=8, oldest_held=8))
    assert (detail(ledger).totals.steps, detail(ledger).state_totals.steps, detail(ledger).unseen) == (1, 101, 100)


def test_a_loss_makes_no_process_starved_and_none_gave_up() -> None:
    """What was counted before the loss is not new."""
    ledger = Ledger(TurnedClock())
    trainer = steps_of(100_000)
    trainer.state.outcomes["accepted_not_finite"] += 5
    for seq in (7, 8):
        trainer.step()
        take(ledger, trainer.report(seq=seq, oldest_held=seq))
    assert detail(ledger).health == "ok"


@pytest.mark.parametrize("whole_first", [True, False])
def test_the_run_counts_the_process_that_saw_most_of_an_attempt(whole_first: bool) -> None:
    """One process has reported since before the loss; the other restarted after it, at step 60."""
    ledger = Ledger(TurnedClock())
    whole = steps_of(100)
    restarted = steps_of(100, start=60)
    reports = [
        whole.report(process=0, source=whole.json()["source"] | {"process_count": 2}),
        restarted.report(process=1, source=whole.json()["source"] | {"process_count": 2}),
    ]
    reports[0] = reports[0].model_copy(update={"seq": 1, "oldest_held": 1})
    for report in reports if whole_first else reversed(reports):
        take(ledger, report)
    answer = detail(ledger)
    assert (answer.totals.steps, answer.unseen) == (100, 0)
    assert [row.totals.steps for row in answer.processes] == [100, 40]
