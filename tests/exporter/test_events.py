"""Events: when each kind is recorded, when it is not, and that it is recorded once."""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optwrap_exporter.ledger.change.events import MOST_NAMED, NewEvent
from optwrap_exporter.ledger.ledger import Ledger
from optwrap_exporter.wire.requests import Report
from optwrap_exporter.wire.vocabulary import EVENT_KINDS

from tests.exporter.histories import History, delivered, histories
from tests.exporter.trainer import Trainer, TurnedClock, first_replica, sent, take, with_records


def kinds(events: Iterable[NewEvent]) -> list[str]:
    return [event.kind for event in events]


def only(events: Iterable[NewEvent], kind: str) -> list[NewEvent]:
    return [event for event in events if event.kind == kind]


@pytest.fixture
def clock() -> TurnedClock:
    return TurnedClock()


@pytest.fixture
def ledger(clock: TurnedClock) -> Ledger:
    return Ledger(clock)


@pytest.fixture
def trainer(clock: TurnedClock) -> Trainer:
    return Trainer(clock)


def test_a_first_report_starts_a_process_and_the_next_does_not(ledger: Ledger, trainer: Trainer) -> None:
    (started,) = take(ledger, trainer.hello()).events
    assert (started.kind, started.step, started.detail["host"]) == ("started", None, "node-0")
    assert take(ledger, trainer.report()).events == ()


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [("skipped_not_finite", "not_finite"), ("skipped_large", "large"), ("skipped_other", "other")],
)
def test_a_skipped_step_is_an_event_with_its_reason(
    ledger: Ledger, trainer: Trainer, clock: TurnedClock, outcome: str, reason: str
) -> None:
    trainer.step(norm=2.0)
    clock.advance(1)
    trainer.step(outcome, norm=7.5, mini_step=2)
    (skipped,) = only(take(ledger, trainer.report()).events, "skipped")
    assert (skipped.step, skipped.time, skipped.attempt) == (2, clock.now, "first")
    assert skipped.detail == {"reason": reason, "norm": 7.5, "finite": True, "mini_step": 2}


@pytest.mark.parametrize("outcome", ["skipped_not_finite", "accepted_not_finite", "accumulated"])
def test_events_name_the_first_nonfinite_replica_with_process_and_device(
    ledger: Ledger, trainer: Trainer, outcome: str
) -> None:
    """Both the step's event and that of the streak it starts; unknown parts are left out."""
    trainer.step(outcome, norm="NaN", offenders={"w": 1}, replica=first_replica(5, 1, "cpu:5", 2, 8))
    trainer.step()
    trainer.step(outcome, norm="NaN", offenders={"w": 1}, replica=first_replica(0, None, None, 1, None))
    trainer.step()
    trainer.step(outcome, norm="NaN", offenders={"w": 1})
    named = {"replica": 5, "process": 1, "device": "cpu:5", "count": 2, "of": 8}
    found = take(ledger, trainer.report()).events
    for kind in ("streak_started", {"skipped_not_finite": "skipped"}.get(outcome, outcome)):
        told = [one.detail.get("replica") for one in only(found, kind)]
        assert told == ([] if kind == "accumulated" else [named, {"replica": 0, "count": 1}, None])


def test_the_event_of_an_accepted_step_lists_its_nonfinite_parameters(ledger: Ledger, trainer: Trainer) -> None:
    """It says which is the first in the tree, and which has the most non-finite values."""
    trainer.step("accepted_not_finite", norm="Infinity", offenders={"b": 1, "a": 5, "c": 2})
    (accepted,) = only(take(ledger, trainer.report()).events, "accepted_not_finite")
    assert accepted.detail == {
        "norm": "Infinity",
        "finite": False,
        "parameters": [
            {"parameter": "b", "not_finite": 1},
            {"parameter": "a", "not_finite": 5},
            {"parameter": "c", "not_finite": 2},
        ],
        "parameter_count": 3,
        "first": "b",
        "largest": "a",
    }


def test_an_event_names_a_few_of_many_parameters_and_gives_their_number(ledger: Ledger, trainer: Trainer) -> None:
    trainer.step("skipped_not_finite", norm="NaN", offenders={f"w{i}": i + 1 for i in range(1000)})
    (skipped,) = only(take(ledger, trainer.report()).events, "skipped")
    assert len(skipped.detail["parameters"]) == MOST_NAMED
    assert (skipped.detail["parameter_count"], skipped.detail["largest"]) == (1000, "w999")


def test_good_steps_are_no_events(ledger: Ledger, trainer: Trainer) -> None:
    take(ledger, trainer.report())
    trainer.step("accumulated")
    trainer.step("applied")
    assert take(ledger, trainer.report()).events == ()


def reported(ledger: Ledger, trainer: Trainer, *reports: list[bool]) -> list[tuple[str, int | None, Any]]:
    """Kind, step and length of the streak events of reports with these steps, True where finite."""
    found: list[tuple[str, int | None, Any]] = []
    for steps in reports:
        for finite in steps:
            trainer.step() if finite else trainer.bad()
        for what in take(ledger, trainer.report()).events:
            if what.kind.startswith("streak"):
                found.append((what.kind, what.step, what.detail.get("length")))
    return found


def test_a_streak_starts_and_ends_once_over_any_number_of_reports(ledger: Ledger, trainer: Trainer) -> None:
    assert reported(ledger, trainer, [True, False], [False], [], [False, True], [True]) == [
        ("streak_started", 2, None),
        ("streak_ended", 5, 3),
    ]


def test_one_report_can_have_several_streaks(ledger: Ledger, trainer: Trainer) -> None:
    assert reported(ledger, trainer, [False, True, False, False, True, False]) == [
        ("streak_started", 1, None),
        ("streak_ended", 2, 1),
        ("streak_started", 3, None),
        ("streak_ended", 5, 2),
        ("streak_started", 6, None),
    ]


def runs_of_false(steps: list[bool]) -> list[tuple[int, int]]:
    """First step and length of each run of False, by numbering the steps from 1."""
    found, start = [], None
    for number, finite in enumerate([*steps, True], start=1):
        if not finite and start is None:
            start = number
        if finite and start is not None:
            found.append((start, number - start))
            start = None
    return found


@given(steps=st.lists(st.booleans(), max_size=30), cuts=st.sets(st.integers(1, 29)))
def test_streak_events_do_not_depend_on_how_steps_are_split_into_reports(steps: list[bool], cuts: set[int]) -> None:
    parts = [steps[a:b] for a, b in zip([0, *sorted(cuts)], [*sorted(cuts), len(steps)], strict=True)]
    found = reported(Ledger(TurnedClock()), Trainer(), *parts)
    started = [step for kind, step, _ in found if kind == "streak_started"]
    lengths = [length for kind, _, length in found if kind == "streak_ended"]
    truth = runs_of_false(steps)
    assert started == [first for first, _ in truth]
    closed = truth if not steps or steps[-1] else truth[:-1]
    assert lengths == [length for _, length in closed]


def test_late_records_make_their_streak_events_when_they_arrive(ledger: Ledger, trainer: Trainer) -> None:
    """A client with a backlog sends the newest totals at once, and the records piece by piece."""
    for finite in (True, False, False, True, True, False):
        trainer.step() if finite else trainer.bad()
    whole = trainer.json()
    parts = []
    for seq, (a, b) in enumerate([(0, 2), (2, 4), (4, 6)], start=1):
        columns = {name: column[a:b] for name, column in whole["steps"].items()}
        offenders = [o for o in whole["offenders"] if o["step"] in columns["step"]]
        parts.append(whole | {"seq": seq, "steps": columns, "offenders": offenders})
    found = [what for part in parts for what in take(ledger, sent(part)).events]
    assert [(what.kind, what.step) for what in found if what.kind.startswith("streak")] == [
        ("streak_started", 2),
        ("streak_ended", 4),
        ("streak_started", 6),
    ]


def test_the_streak_gauge_is_ignored_for_late_records(ledger: Ledger, trainer: Trainer) -> None:
    """Steps 2 and 4 were bad and the record of 3 was dropped; the gauge belongs to a later streak."""
    for finite in (True, False, True, False, True, False, False, False):
        trainer.step() if finite else trainer.bad()
    found = take(ledger, sent(with_records(trainer.json(), 1, 3))).events
    assert [(what.kind, what.step) for what in found if what.kind.startswith("streak")] == [
        ("streak_started", 2),
        ("streak_ended", 3),
        ("streak_started", 4),
    ]


def test_the_streak_gauge_gives_the_start_if_records_were_dropped(ledger: Ledger, trainer: Trainer) -> None:
    trainer.step()
    take(ledger, trainer.report())
    for _ in range(5):
        trainer.bad()
    report = with_records(trainer.json(), -1)
    (started,) = only(take(ledger, sent(report)).events, "streak_started")
    assert started.step == 2


def test_a_gap_between_bad_steps_ends_a_streak(ledger: Ledger, trainer: Trainer) -> None:
    for finite in (False, True, False, True):
        trainer.step() if finite else trainer.bad()
    report = with_records(trainer.json(), 0, 2)
    found = take(ledger, sent(report)).events
    assert [(what.kind, what.step) for what in found if what.kind.startswith("streak")] == [
        ("streak_started", 1),
        ("streak_ended", 2),
        ("streak_started", 3),
    ]


def test_a_resumed_event_has_the_step_before_and_the_step_after(
    ledger: Ledger, trainer: Trainer, clock: TurnedClock
) -> None:
    for _ in range(3):
        trainer.step()
    checkpoint = trainer.state.copy()
    for _ in range(4):
        trainer.step()
    take(ledger, trainer.report())
    clock.advance(1)
    hello = Trainer(clock, attempt="second")
    assert kinds(take(ledger, hello.hello()).events) == []
    again = Trainer(clock, attempt="second", state=checkpoint)
    again.step()
    (resumed,) = take(ledger, again.report()).events
    assert (resumed.kind, resumed.step, resumed.attempt) == ("resumed", 3, "second")
    assert resumed.detail == {"from": 7, "to": 3}
    again.step()
    assert take(ledger, again.report()).events == ()


def test_a_resumed_event_has_no_step_before_if_the_exporter_never_heard_it(
    ledger: Ledger, trainer: Trainer, clock: TurnedClock
) -> None:
    trainer.step()
    take(ledger, Trainer(clock).hello())
    later = Trainer(clock, state=trainer.state.copy())
    later.step()
    (resumed,) = take(ledger, later.report()).events
    assert (resumed.kind, resumed.detail) == ("resumed", {"from": None, "to": 1})


def test_after_the_loss_of_the_store_there_is_no_started_or_resumed_event(trainer: Trainer, clock: TurnedClock) -> None:
    trainer.step()
    trainer.report()
    assert take(Ledger(clock), trainer.report(oldest_held=2)).events == ()


@pytest.mark.parametrize("state", ["finished", "failed", "stopped"])
def test_the_end_of_a_process_is_one_event(ledger: Ledger, trainer: Trainer, state: str) -> None:
    trainer.step()
    assert kinds(take(ledger, trainer.report()).events) == ["started"]
    (ended,) = take(ledger, trainer.report(state)).events
    assert (ended.kind, ended.detail) == (state, {"steps": 1})
    assert take(ledger, trainer.report(state)).events == ()


def twins(clock: TurnedClock) -> tuple[Trainer, Trainer]:
    return Trainer(clock, process_count=2), Trainer(clock, process=1, process_count=2)


def test_processes_that_disagree_about_a_step_have_diverged(ledger: Ledger, clock: TurnedClock) -> None:
    a, b = twins(clock)
    for _ in range(3):
        a.step()
        b.step()
    take(ledger, a.report())
    assert "diverged" not in kinds(take(ledger, b.report()).events)
    a.step()
    b.bad()
    a.bad()
    b.step()
    take(ledger, a.report())
    (diverged,) = only(take(ledger, b.report()).events, "diverged")
    assert diverged.step == 4
    assert diverged.detail["processes"] == [0, 1], "of two nobody knows which one is right"
    assert diverged.detail["outcomes"] == {"0": "applied", "1": "skipped_not_finite"}


def test_a_process_does_not_diverge_from_itself(ledger: Ledger, clock: TurnedClock) -> None:
    a, _ = twins(clock)
    a.step()
    report = a.json()
    take(ledger, sent(report))
    a.step("accumulated")
    again = a.json(steps=report["steps"] | {"outcome": ["accumulated"]})
    assert "diverged" not in kinds(take(ledger, sent(again)).events)


def test_a_hello_does_not_prevent_the_comparison_of_steps(ledger: Ledger, clock: TurnedClock) -> None:
    a, b = twins(clock)
    take(
        ledger, Trainer(clock, process_count=2).hello()
    )  # process 0, before the incarnation that its resumed state begins
    a.step()
    b.bad()
    take(ledger, a.report())
    assert "diverged" in kinds(take(ledger, b.report()).events)


def test_steps_before_and_after_a_rollback_are_not_compared(ledger: Ledger, clock: TurnedClock) -> None:
    a, b = twins(clock)
    for trainer in (a, b):
        trainer.step()
    take(ledger, a.report())
    clock.advance(1)
    again = [Trainer(clock, process=process, process_count=2) for process in range(2)]
    for trainer in again:
        trainer.bad()
    assert "diverged" not in kinds(take(ledger, again[0].report()).events)
    assert "diverged" not in kinds(take(ledger, b.report()).events)
    assert "diverged" not in kinds(take(ledger, again[1].report()).events)


def test_steps_of_two_attempts_are_not_compared(ledger: Ledger, clock: TurnedClock) -> None:
    a, b = twins(clock)
    b.attempt = "second"
    a.step()
    b.bad()
    take(ledger, a.report())
    assert "diverged" not in kinds(take(ledger, b.report()).events)


def comparable(what: NewEvent) -> dict[str, Any]:
    """NaN is not itself."""
    return {
        name: value if not (isinstance(value, float) and math.isnan(value)) else "NaN"
        for name, value in dataclasses.asdict(what).items()
    }


@given(history=histories(), data=st.data())
@settings(max_examples=40)
def test_each_bad_step_is_one_event_in_whatever_order_the_reports_arrive(history: History, data: st.DataObject) -> None:
    """Reports may be lost, repeated and reordered; events with the same key are equal."""
    ledger = Ledger(TurnedClock())
    found: list[NewEvent] = []
    arrived: dict[tuple[str, int], Report] = {}
    for report in delivered(data, history):
        if ledger.find(report) is None:
            found += take(ledger, report).events
        arrived[report.incarnation, report.seq] = report
    assert {what.kind for what in found} <= set(EVENT_KINDS)
    truth = sorted(
        (report.process, report.incarnation, step, outcome)
        for report in arrived.values()
        for step, outcome in zip(report.steps.step, report.steps.outcome, strict=True)
        if outcome not in {"applied", "accumulated"}
    )
    told = [what for what in found if what.kind in {"skipped", "accepted_not_finite"}]
    assert sorted((what.process, what.key.split("/")[2], what.step) for what in told) == [row[:3] for row in truth]
    by_key: dict[str, dict[str, Any]] = {}
    for what in found:
        assert by_key.setdefault(what.key, comparable(what)) == comparable(what)
