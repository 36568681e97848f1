"""The ledger: totals are right for any order, repetition and loss of reports, and every answer follows from them."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st
from optwrap_exporter.ledger.ledger import Ledger
from optwrap_exporter.ledger.shown.figures import OTHER
from optwrap_exporter.ledger.shown.run_list import RunFilter
from optwrap_exporter.ledger.state.counters import Counts
from optwrap_exporter.wire.answers import ProcessTotals, RunDetail

from tests.exporter.histories import History, delivered, histories
from tests.exporter.trainer import State, Trainer, TurnedClock, sent, take


def detail(ledger: Ledger, run: str = "lm") -> RunDetail:
    answer = ledger.detail(run)
    assert answer is not None
    return answer


def totals_of(ledger: Ledger) -> dict[int, Counts]:
    return {view.process: view.totals for view in ledger.views()}


def at_least(now: Counts, before: Counts) -> bool:
    """Whether nothing fell."""
    return now.maximum(before) == now


@given(history=histories(), data=st.data())
@settings(max_examples=50)
def test_totals_are_right_and_never_fall_for_any_order_repetition_and_loss(
    history: History, data: st.DataObject
) -> None:
    clock = TurnedClock()
    ledger = Ledger(clock)
    seen: dict[int, Counts] = {}
    run = 0
    for report in delivered(data, history):
        clock.advance(data.draw(st.sampled_from([0.0, 1.0, 30.0])))
        if ledger.find(report) is not None:
            continue
        take(ledger, report)
        for process, total in totals_of(ledger).items():
            assert at_least(total, seen.get(process, Counts()))
            seen[process] = total
        assert detail(ledger).totals.steps >= run
        run = detail(ledger).totals.steps
    for process in history.processes:
        assert totals_of(ledger)[process] == history.of_process(process)
    truth = history.of_run()
    answer = detail(ledger)
    assert answer.totals == truth.totals()
    assert {row.parameter: row.steps for row in answer.parameters if row.steps} == dict(truth.parameters)
    for row in answer.processes:
        totals = history.of_process(row.process).totals()
        outcomes = {name: n for name, n in totals.outcomes.items() if n}
        assert row.totals == ProcessTotals(
            steps=totals.steps, outcomes=outcomes, not_finite_steps=totals.not_finite_steps
        )


@given(history=histories(most_processes=1), data=st.data())
@settings(max_examples=30)
def test_every_answer_is_consistent(history: History, data: st.DataObject) -> None:
    clock = TurnedClock()
    ledger = Ledger(clock)
    for report in delivered(data, history):
        clock.advance(data.draw(st.sampled_from([0.0, 1.0, 30.0])))
        if ledger.find(report) is None:
            take(ledger, report)
        answer = detail(ledger)
        for totals in (answer.totals, answer.state_totals):
            assert totals.steps == sum(totals.outcomes.values())
            assert totals.gradient_steps == totals.outcomes["applied"] + totals.accepted_not_finite
            assert totals.skipped.not_finite == totals.outcomes["skipped_not_finite"]
            assert totals.not_finite_steps <= totals.steps
        assert 0 <= answer.unseen <= answer.state_totals.steps
        assert answer.first_report <= answer.last_report <= clock.now
        assert answer.since <= clock.now
        rows = [(-row.steps, -row.values) for row in answer.parameters]
        assert rows == sorted(rows)
        for view in ledger.views():
            assert sum(view.parameters.values()) == sum(view.totals.parameters.values())


@given(history=histories(), data=st.data())
@settings(max_examples=30)
def test_planning_changes_nothing(history: History, data: st.DataObject) -> None:
    clock = TurnedClock()
    ledger, untouched = Ledger(clock), Ledger(clock)
    for report in delivered(data, history):
        if ledger.find(report) is None:
            ledger.plan(report)
            assert ledger.detail("lm") == untouched.detail("lm")
            take(ledger, report)
            take(untouched, report)


@given(history=histories(), data=st.data())
@settings(max_examples=30)
def test_every_step_record_counts_once(history: History, data: st.DataObject) -> None:
    """Non-finite values, and first and last step, come from the records of all reports that arrived."""
    clock = TurnedClock()
    ledger = Ledger(clock)
    arrived = {}
    for report in delivered(data, history):
        if ledger.find(report) is None:
            take(ledger, report)
        arrived[report.incarnation, report.seq] = report
    found: dict[tuple[str, str], dict[int, list[tuple[int, int]]]] = {}
    for report in arrived.values():
        for offender in report.offenders:
            by_process = found.setdefault((offender.parameter, report.attempt), {})
            by_process.setdefault(report.process, []).append((offender.step, offender.not_finite or 0))
    for row in detail(ledger).parameters:
        attempts = [by_process for (path, _), by_process in found.items() if path == row.parameter]
        assert row.values == sum(max(sum(n for _, n in seen) for seen in by.values()) for by in attempts)
        if attempts:
            told = [step for by in attempts for seen in by.values() for step, _ in seen]
            assert row.first_step is not None
            assert row.last_step is not None
            assert min(told) <= row.first_step <= row.last_step <= max(told)


def test_a_late_report_of_an_older_incarnation_changes_totals_only() -> None:
    clock = TurnedClock()
    ledger = Ledger(clock)
    old = Trainer(clock, gauges={"every_k": 4, "mini_step": 1})
    old.step(norm=3.0)
    take(ledger, old.report())
    clock.advance(1)
    for _ in range(3):
        old.bad("accepted_not_finite")
    late = old.report("failed")
    clock.advance(1)
    new = Trainer(clock, attempt="second", gauges={"every_k": 4, "mini_step": 0})
    new.step(norm=0.5)
    take(ledger, new.report())
    before = detail(ledger)
    clock.advance(1)
    plan = take(ledger, late)
    after = detail(ledger)
    assert after.totals.steps == before.totals.steps + 3
    assert after.totals.accepted_not_finite == 3
    for name in ("health", "since", "gauges", "last_report", "state_totals"):
        assert getattr(after, name) == getattr(before, name)
    (view,) = ledger.views()
    assert view.incarnation == new.incarnation
    assert (view.streak_peak, view.gradient_norm, view.last_step) == (0, 0.5, clock.now - 1)
    kinds = [event.kind for event in plan.events]
    assert kinds.count("accepted_not_finite") == 3
    assert "failed" in kinds


def test_a_late_report_does_not_change_gauges() -> None:
    clock = TurnedClock()
    ledger = Ledger(clock)
    trainer = Trainer(clock)
    trainer.bad()
    older = trainer.report()
    trainer.step(norm=0.25)
    take(ledger, trainer.report())
    take(ledger, older)
    answer = detail(ledger)
    assert answer.gauges.not_finite_streak == 0
    assert (answer.totals.steps, answer.state_totals.steps, answer.unseen) == (2, 2, 0)
    assert answer.health == "ok"


def test_steps_before_the_first_report_are_unseen() -> None:
    clock = TurnedClock()
    ledger = Ledger(clock)
    take(ledger, Trainer(clock).hello())
    assert detail(ledger).totals.steps == 0
    state = State()
    for _ in range(500):
        state.step("applied", {})
    trainer = Trainer(clock, state=state)
    trainer.step()
    take(ledger, trainer.report())
    answer = detail(ledger)
    assert (answer.totals.steps, answer.state_totals.steps, answer.unseen) == (1, 501, 500)


def test_a_hello_and_a_resumed_incarnation_are_one_process() -> None:
    """A Monitor whose first reading is of a resumed state starts a second incarnation."""
    clock = TurnedClock()
    ledger = Ledger(clock)
    first = Trainer(clock)
    for _ in range(7):
        first.step()
    take(ledger, first.report())
    checkpoint = first.state.copy()
    clock.advance(1)
    hello = Trainer(clock, attempt="second")
    assert take(ledger, hello.hello()).events == ()
    clock.advance(1)
    resumed = Trainer(clock, attempt="second", state=checkpoint)
    resumed.step()
    (event,) = take(ledger, resumed.report()).events
    assert (event.kind, event.detail) == ("resumed", {"from": 7, "to": 7})
    answer = detail(ledger)
    assert (answer.totals.steps, answer.state_totals.steps, answer.unseen, answer.health) == (8, 8, 0, "ok")
    assert [row.attempt for row in answer.attempts] == ["first", "second"]


def test_steps_of_an_earlier_attempt_are_not_unseen() -> None:
    clock = TurnedClock()
    ledger = Ledger(clock)
    first = Trainer(clock)
    for _ in range(10):
        first.step()
    take(ledger, first.report())
    for _ in range(5):
        first.step()  # while the exporter was away
    clock.advance(1)
    second = Trainer(clock, attempt="second", state=first.state.copy())
    for _ in range(3):
        second.step()
    take(ledger, second.report())
    answer = detail(ledger)
    assert (answer.totals.steps, answer.state_totals.steps, answer.unseen) == (13, 18, 5)


def test_the_lowest_process_of_the_newest_attempt_leads_the_run() -> None:
    clock = TurnedClock()
    ledger = Ledger(clock)
    for process in (3, 1):
        trainer = Trainer(clock, process=process, process_count=4, gauges={"mini_step": process})
        trainer.step()
        take(ledger, trainer.report())
    assert ledger.lead("lm") == 1
    assert detail(ledger).gauges.mini_step == 1
    clock.advance(60)
    trainer = Trainer(clock, process=2, process_count=4, attempt="second", gauges={"mini_step": 2})
    take(ledger, trainer.report())
    assert ledger.lead("lm") == 2


def test_every_query_of_an_unknown_run_is_none() -> None:
    ledger = Ledger(TurnedClock())
    assert ledger.runs() == []
    assert ledger.views() == []
    assert ledger.lead("lm") is None
    assert ledger.summary("lm") is None
    assert ledger.detail("lm") is None
    assert ledger.parameter_page("lm") is None
    assert not ledger.has("lm", 0)


def test_the_first_ten_nonfinite_parameters_keep_their_label() -> None:
    clock = TurnedClock()
    ledger = Ledger(clock)
    trainer = Trainer(clock)
    trainer.bad(b=1, a=1)
    take(ledger, trainer.report())
    (view,) = ledger.views()
    assert dict(view.parameters) == {OTHER: 0, "b": 1, "a": 1}
    for i in range(11):
        trainer.bad(**{f"w{i}": 1})
    take(ledger, trainer.report())
    for _ in range(3):
        trainer.bad(w10=1, w9=1)
    take(ledger, trainer.report())
    (view,) = ledger.views()
    assert dict(view.parameters) == {"b": 1, "a": 1, **{f"w{i}": 1 for i in range(8)}, OTHER: 1 + 4 + 4}
    again = Trainer(clock, attempt="second")
    again.bad(w10=1)
    take(ledger, again.report())
    (view,) = ledger.views()
    assert view.parameters[OTHER] == 10
    assert list(view.parameters)[:3] == [OTHER, "b", "a"]


def test_the_streak_peak_covers_the_last_five_minutes() -> None:
    clock = TurnedClock()
    ledger = Ledger(clock)
    trainer = Trainer(clock)

    def peak() -> int:
        (view,) = ledger.views()
        return view.streak_peak

    for _ in range(4):
        trainer.bad()
    trainer.step()  # within one report: the gauge never shows the streak
    take(ledger, trainer.report())
    assert peak() == 4
    clock.advance(200)
    trainer.bad()
    trainer.bad()
    trainer.step()
    take(ledger, trainer.report())
    assert peak() == 4
    clock.advance(99)
    assert peak() == 4
    clock.advance(2)
    assert peak() == 2
    clock.advance(300)
    assert peak() == 0


def test_the_shown_norm_is_the_last_finite_norm() -> None:
    clock = TurnedClock()
    ledger = Ledger(clock)
    trainer = Trainer(clock)
    take(ledger, trainer.hello())
    assert ledger.views()[0].gradient_norm is None
    trainer.step(norm=0.75)
    trainer.bad()
    take(ledger, trainer.report())
    assert ledger.views()[0].gradient_norm == 0.75
    trainer.bad()
    take(ledger, trainer.report())
    assert ledger.views()[0].gradient_norm == 0.75


def test_times_come_from_the_exporters_clock() -> None:
    clock, client = TurnedClock(), TurnedClock(1.0)
    ledger = Ledger(clock)
    trainer = Trainer(client)
    start = clock.now
    take(ledger, trainer.hello())

    def times() -> tuple[float, float | None, float | None]:
        (view,) = ledger.views()
        return view.last_report, view.last_step, view.last_gradient_step

    assert times() == (start, None, None)
    for outcome in ("applied", "accumulated", None):
        clock.advance(1)
        client.advance(1)
        if outcome:
            trainer.step(outcome)
        take(ledger, trainer.report())
    assert times() == (start + 3, start + 2, start + 1)


def test_client_drops_add_up_over_incarnations_and_processes() -> None:
    clock = TurnedClock()
    ledger = Ledger(clock)
    for process, dropped in itertools.product((0, 1), ((3, 1), (4, 0))):
        trainer = Trainer(clock, process=process, attempt=f"attempt-{dropped[0]}")
        take(ledger, trainer.report())
        trainer.dropped = {"steps": dropped[0], "bad_steps": dropped[1]}
        take(ledger, trainer.report())
        take(ledger, trainer.report())
    answer = detail(ledger)
    assert (answer.dropped.steps, answer.dropped.bad_steps, answer.dropped.not_stored) == (14, 2, 0)
    assert ledger.views()[1].dropped.steps == 7


def test_a_replaced_attempt_is_lost_unless_it_has_ended() -> None:
    clock = TurnedClock()
    ledger = Ledger(clock)
    for attempt, state in (("a", "finished"), ("b", "running"), ("c", "running")):
        trainer = Trainer(clock, attempt=attempt)
        trainer.step()
        take(ledger, trainer.report(state))
        clock.advance(5)
    rows = detail(ledger).attempts
    assert [(row.attempt, row.state) for row in rows] == [("a", "finished"), ("b", "lost"), ("c", "running")]
    assert [row.since for row in rows] == [clock.now - 15, clock.now - 10, clock.now - 5]
    clock.advance(60)
    assert detail(ledger).attempts[-1].state == "lost"


@given(seqs=st.permutations(range(1, 8)), held=st.integers(1, 8), lost=st.sets(st.integers(1, 7)))
def test_the_acknowledgement_ends_at_the_first_gap_after_oldest_held(
    seqs: list[int], held: int, lost: set[int]
) -> None:
    ledger = Ledger(TurnedClock())
    trainer = Trainer()
    reports = {seq: trainer.json() for seq in range(1, 8)}
    come: set[int] = set()
    for seq in seqs:
        if seq in lost:
            continue
        oldest = min(held, seq)
        answer = take(ledger, sent(reports[seq] | {"oldest_held": oldest})).answer()
        come.add(seq)
        expected = oldest - 1
        while expected + 1 in come:
            expected += 1
        assert answer.acknowledged == expected


def test_cursors_page_through_runs_and_parameters() -> None:
    clock = TurnedClock()
    ledger = Ledger(clock)
    for name in "dbaec":
        trainer = Trainer(clock, run=name)
        for times, path in enumerate("uvwxyz"):
            for _ in range(times % 3 + 1):
                trainer.bad(**{path: 1})
        take(ledger, trainer.report())
    runs: list[str] = []
    cursor = None
    while True:
        page = ledger.run_page(RunFilter(sort="run"), limit=2, cursor=cursor)
        assert len(page.items) <= 2
        runs += [item.run for item in page.items]
        if (cursor := page.cursor) is None:
            break
    assert runs == sorted("abcde")
    rows: list[str] = []
    while True:
        parameters = ledger.parameter_page("a", 4, cursor)
        assert parameters is not None
        rows += [row.parameter for row in parameters.items]
        if (cursor := parameters.cursor) is None:
            break
    assert rows == [row.parameter for row in detail(ledger, "a").parameters] == list("wzvyux")
    assert [row.parameter for row in detail(ledger, "a").parameters[:2]] == list("wz")
    best = ledger.detail("a", most_parameters=2)
    assert best is not None
    assert [row.parameter for row in best.parameters] == list("wz")


def test_a_forgotten_run_can_report_again() -> None:
    clock = TurnedClock()
    ledger = Ledger(clock)
    trainer = Trainer(clock)
    trainer.step()
    take(ledger, trainer.report())
    ledger.forget("lm")
    assert ledger.runs() == []
    trainer.step()
    take(ledger, trainer.report())
    assert totals_of(ledger)[0].steps == 2
