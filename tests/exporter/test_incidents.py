"""Incidents: the same however the reports are split, ordered and repeated."""

import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optwrap_exporter.ledger.incidents.fold import MOST_OPEN
from optwrap_exporter.ledger.incidents.record import IncidentRecord
from optwrap_exporter.ledger.incidents.summary import answer
from optwrap_exporter.ledger.ledger import Ledger
from optwrap_exporter.ledger.run import RunState
from optwrap_exporter.store.pending import to_text
from optwrap_exporter.wire.incident import Incident
from optwrap_exporter.wire.requests import Report

from tests.exporter.trainer import Trainer, TurnedClock, first_replica, sent, take, with_records


@pytest.fixture
def clock() -> TurnedClock:
    return TurnedClock()


@pytest.fixture
def ledger(clock: TurnedClock) -> Ledger:
    return Ledger(clock)


@pytest.fixture
def trainer(clock: TurnedClock) -> Trainer:
    return Trainer(clock)


def run(ledger: Ledger) -> RunState:
    (found,) = ledger.shown()
    return found


def records(ledger: Ledger) -> list[IncidentRecord]:
    state = run(ledger)
    return sorted((*state.incidents, *state.past_incidents), key=lambda one: one.id)


def incidents(ledger: Ledger) -> list[Incident]:
    return [answer("lm", one) for one in records(ledger)]


def only(ledger: Ledger) -> Incident:
    (found,) = incidents(ledger)
    return found


def elapse(ledger: Ledger) -> None:
    for plan in ledger.pass_time():
        ledger.apply(plan)


def say(ledger: Ledger, trainer: Trainer, *outcomes: str, **changes: Any) -> None:
    """A report of some steps. A word that is no outcome: `bad` skips a non-finite step."""
    for outcome in outcomes:
        if outcome == "bad":
            trainer.bad()
        elif outcome == "accepted_not_finite":
            trainer.step(outcome, norm="NaN", offenders={"w": 1})
        else:
            trainer.step(outcome)
    take(ledger, trainer.report(**changes))


# --- bad steps ---


def test_a_streak_is_one_incident(ledger: Ledger, trainer: Trainer) -> None:
    say(ledger, trainer, "applied", "bad", "bad")
    say(ledger, trainer, "bad")
    found = only(ledger)
    assert (found.kind, found.state) == ("skipped", "open")
    assert (found.first_step, found.last_step, found.steps, found.applied) == (2, 4, 3, 0)
    assert found.last_clean_step is None, "nothing reached the optimizer"
    assert found.processes == [0]


def test_the_first_parameter_and_replica_of_the_first_bad_step_are_named(ledger: Ledger, trainer: Trainer) -> None:
    trainer.step()
    trainer.step(
        "skipped_not_finite",
        norm="NaN",
        offenders={"encoder/block_1/conv": 3, "head": 1},
        replica=first_replica(3, 1, "tpu:5", 1, 8),
    )
    trainer.step("skipped_not_finite", norm="NaN", offenders={"head": 1})
    take(ledger, trainer.report())
    found = only(ledger)
    assert found.parameter == "encoder/block_1/conv"
    assert found.replica is not None
    assert (found.replica.replica, found.replica.process, found.replica.device) == (3, 1, "tpu:5")


def test_the_sentence_of_a_guard_that_gave_up(ledger: Ledger, clock: TurnedClock) -> None:
    trainer = Trainer(clock)
    say(ledger, trainer, *["applied"] * 460)
    for outcome in ["skipped_not_finite"] * 5 + ["accepted_not_finite"] * 22:
        trainer.step(outcome, norm="NaN", offenders={"encoder/block_1/conv": 2})
    take(ledger, trainer.report())
    found = only(ledger)
    assert found.kind == "gave_up"
    assert found.summary == (
        "steps 461 to 487: 27 steps non-finite, first encoder/block_1/conv, 22 applied from step 466 on, "
        "not rolled back, last clean step 460"
    )
    assert found.runbook == "OptwrapGaveUp"


def test_an_earlier_streak_that_was_skipped_does_not_move_the_last_clean_step(ledger: Ledger, trainer: Trainer) -> None:
    """A checkpoint between the two is clean."""
    say(ledger, trainer, "applied", "bad", *["applied"] * 50, "bad", "accepted_not_finite")
    found = only(ledger)
    assert (found.first_step, found.last_clean_step) == (2, 52)


def test_a_window_with_a_non_finite_micro_step_begins_before_it(ledger: Ledger, trainer: Trainer) -> None:
    """The optimizer takes the NaN at the end of the window, but the state has it since the micro step."""
    trainer.gauges["every_k"] = 4
    for _ in range(4):
        trainer.step("accumulated")
    trainer.step("accumulated", norm="NaN", offenders={"w": 1})
    for _ in range(2):
        trainer.step("accumulated")
    trainer.step("accepted_not_finite", finite=True)
    take(ledger, trainer.report())
    assert only(ledger).last_clean_step == 4


def test_bad_steps_join_within_a_hundred_steps(ledger: Ledger, trainer: Trainer) -> None:
    say(ledger, trainer, "bad", *["applied"] * 99, "bad")
    say(ledger, trainer, *["applied"] * 100)
    say(ledger, trainer, "bad")
    first, second = incidents(ledger)
    assert (first.first_step, first.last_step, first.steps, first.state) == (1, 101, 2, "closed")
    assert (second.first_step, second.state) == (202, "open")


def test_a_streak_that_is_over_for_a_minute_ends_its_incident(
    ledger: Ledger, clock: TurnedClock, trainer: Trainer
) -> None:
    """Steps may take minutes. A further bad step within a hundred steps opens it again."""
    say(ledger, trainer, "bad")
    for _ in range(7):
        clock.advance(10)
        say(ledger, trainer)
        elapse(ledger)
    assert only(ledger).state == "open", "the last step is still a bad one"
    say(ledger, trainer, "applied")
    elapse(ledger)
    assert (only(ledger).state, only(ledger).closed) == ("closed", clock())
    say(ledger, trainer, "bad")
    assert (only(ledger).state, only(ledger).closed, only(ledger).steps) == ("open", None, 2)


def test_gave_up_stays_open_whatever_follows(ledger: Ledger, clock: TurnedClock, trainer: Trainer) -> None:
    say(ledger, trainer, "applied", "accepted_not_finite")
    for _ in range(20):
        clock.advance(600)
        say(ledger, trainer, *["applied"] * 50)
        elapse(ledger)
    found = only(ledger)
    assert (found.kind, found.state, found.last_clean_step) == ("gave_up", "open", 1)
    assert [one.state for one in run(ledger).incidents] == ["open"]


@pytest.mark.parametrize(("resumed", "state"), [(1, "closed"), (2, "open"), (3, "open")])
def test_a_start_at_or_before_the_last_clean_step_closes_gave_up(
    ledger: Ledger, clock: TurnedClock, resumed: int, state: str
) -> None:
    trainer = Trainer(clock, process_count=2)
    other = Trainer(clock, process=1, process_count=2)
    for one in (trainer, other):
        one.step()
        checkpoints = [one.state.copy()]
        for _ in range(2):
            one.step("accepted_not_finite", norm="NaN", offenders={"w": 1})
            checkpoints.append(one.state.copy())
        take(ledger, one.report())
    clock.advance(20)
    take(ledger, Trainer(clock, attempt="second").hello())
    assert only(ledger).state == "open", "a hello does not say where it goes on"
    clock.advance(1)
    say(ledger, Trainer(clock, attempt="second", state=checkpoints[resumed - 1].copy()), "applied")
    assert only(ledger).state == state
    assert ("rolled back" in only(ledger).summary.replace("not rolled back", "")) == (state == "closed")


def test_late_reports_of_before_a_rollback_open_nothing_again(ledger: Ledger, clock: TurnedClock) -> None:
    """Also if they bring bad steps that nobody has heard of."""
    a, b = (Trainer(clock, process=process, process_count=2) for process in range(2))
    for one in (a, b):
        one.step()
    clean = a.state.copy()
    for _ in range(3):
        a.step("accepted_not_finite", norm="NaN", offenders={"w": 1})
    for _ in range(5):
        b.step("accepted_not_finite", norm="NaN", offenders={"w": 1})
    take(ledger, a.report())
    clock.advance(5)
    say(ledger, Trainer(clock, process_count=2, state=clean), "applied")
    assert only(ledger).state == "closed"
    take(ledger, b.report())
    found = only(ledger)
    assert (found.state, found.steps, found.processes) == ("closed", 5, [0, 1])


def test_a_backlog_from_before_a_rollback_makes_a_closed_incident(ledger: Ledger, clock: TurnedClock) -> None:
    """The exporter hears of the rollback first."""
    trainer = Trainer(clock)
    say(ledger, trainer, "applied")
    clean = trainer.state.copy()
    trainer.step("accepted_not_finite", norm="NaN", offenders={"w": 1})
    backlog = trainer.report()
    clock.advance(1)
    say(ledger, Trainer(clock, state=clean), "applied")
    take(ledger, backlog)
    assert (only(ledger).kind, only(ledger).state) == ("gave_up", "closed")


def test_non_finite_steps_without_records_gave_up_too(ledger: Ledger, trainer: Trainer) -> None:
    """A client that is short of room drops records; the totals still count."""
    say(ledger, trainer, "applied", "applied")
    for outcome in ("applied", "accepted_not_finite", "accepted_not_finite", "applied"):
        trainer.step(outcome, norm="NaN" if outcome.startswith("acc") else 1.0, finite=not outcome.startswith("acc"))
    take(ledger, sent(with_records(trainer.json())))
    found = only(ledger)
    assert (found.kind, found.state, found.first_step, found.last_step) == ("gave_up", "open", 3, 6)
    assert (found.applied, found.last_clean_step) == (2, 2)


def test_open_incidents_are_bounded(ledger: Ledger, trainer: Trainer) -> None:
    """Trouble after the last one that fits joins it."""
    for _ in range(2 * MOST_OPEN):
        say(ledger, trainer, "accepted_not_finite", *["applied"] * 150)
    assert len(run(ledger).incidents) == MOST_OPEN
    assert sum(one.steps for one in incidents(ledger)) == 2 * MOST_OPEN
    assert len(run(ledger).past_incidents) == 0


def test_an_incident_is_bounded_and_counts_exactly(ledger: Ledger, trainer: Trainer) -> None:
    for _ in range(50):
        say(ledger, trainer, *["bad", "applied", "accepted_not_finite", "skipped_large"] * 20)
    found = only(ledger)
    assert (found.steps, found.applied) == (3000, 1000)
    (record,) = records(ledger)
    assert len(record.bad) + len(record.applied) <= 64


# --- the same whatever the way ---


plans = st.lists(
    st.tuples(
        st.integers(0, 130),
        st.sampled_from(["skipped_not_finite", "accepted_not_finite", "skipped_large", "accumulated"]),
        st.integers(1, 4),
    ),
    max_size=5,
)
"""Good steps, then some bad ones."""


@given(plan=plans, data=st.data())
@settings(max_examples=60)
def test_the_incidents_are_the_same_however_reports_are_split_ordered_and_repeated(
    plan: list[tuple[int, str, int]], data: st.DataObject
) -> None:
    outcomes = list(itertools.chain.from_iterable(["applied"] * good + [outcome] * bad for good, outcome, bad in plan))

    def told(processes: int) -> list[Incident]:
        clock = TurnedClock()
        ledger = Ledger(clock)
        waiting: list[list[Report]] = []
        for process in range(processes):
            trainer = Trainer(clock, process=process, process_count=processes, attempt="a")
            reports = []
            cuts = data.draw(st.sets(st.integers(0, len(outcomes)), max_size=5)) if processes > 1 else set()
            for number, outcome in enumerate(outcomes, 1):
                bad = outcome in {"skipped_not_finite", "accepted_not_finite", "accumulated"}
                trainer.step(outcome, norm="NaN" if bad else 1.0, offenders={f"p{number}": 1} if bad else {})
                if number in cuts:
                    reports.append(trainer.report())
            waiting.append([*reports, trainer.report()])
        while any(waiting):
            process = data.draw(st.sampled_from([i for i, left in enumerate(waiting) if left]))
            report = waiting[process].pop(0)
            if ledger.find(report) is None:
                take(ledger, report)
        return incidents(ledger)

    def comparable(found: list[Incident]) -> list[Incident]:
        alike = [one.model_copy(update={"processes": [], "process_count": 0, "host": None}) for one in found]
        return [one for one in alike if one.kind != "diverged"]

    assert comparable(told(3)) == comparable(told(1))


@given(steps=st.lists(st.integers(1, 400), min_size=1), data=st.data())
def test_with_steps_counts_each_step_once(steps: list[int], data: st.DataObject) -> None:
    """Also of an incident that has forgotten which steps its earliest ones were, if they come in order."""
    one = IncidentRecord(1, "skipped", "a", 0, 0.0, 0.0)
    for step in sorted(steps):
        again = data.draw(st.booleans())
        for _ in range(1 + again):
            one = one.with_steps(((step, step),), ()).compact()
    assert one.steps == len(set(steps))
    assert (one.first_step, one.last_step) == (min(steps), max(steps))


# --- conditions of processes ---


def test_processes_that_go_silent_are_one_incident(ledger: Ledger, clock: TurnedClock) -> None:
    trainers = [Trainer(clock, process=process, process_count=4) for process in range(4)]
    for one in trainers:
        say(ledger, one, *["applied"] * 3)
    for _ in range(20):
        clock.advance(1)
        say(ledger, trainers[0])
        elapse(ledger)
    found = only(ledger)
    assert (found.kind, found.state, found.processes, found.host) == ("stale", "open", [1, 2, 3], "node-1")
    assert found.summary == "3 processes (process 1 on node-1, ...) sent their last report at step 3"
    say(ledger, trainers[1])
    say(ledger, trainers[3])
    assert only(ledger).state == "open"
    say(ledger, trainers[2])
    assert (only(ledger).state, only(ledger).closed) == ("closed", clock())


def test_one_silent_process_is_named_with_its_host(ledger: Ledger, clock: TurnedClock) -> None:
    trainer = Trainer(clock, process=12)
    say(ledger, trainer, *["applied"] * 803)
    clock.advance(60)
    elapse(ledger)
    assert only(ledger).summary == "process 12 on node-12 sent its last report at step 803"


def test_a_failure_is_one_incident_until_a_new_attempt_starts(ledger: Ledger, clock: TurnedClock) -> None:
    for process in range(2):
        trainer = Trainer(clock, process=process, process_count=2)
        trainer.step()
        take(ledger, trainer.report("failed", reason="ValueError: bad batch"))
    found = only(ledger)
    assert (found.kind, found.state, found.process_count) == ("failed", "open", 2)
    assert found.summary == "failed at step 1 of attempt 1: ValueError: bad batch"
    clock.advance(1000)
    elapse(ledger)
    assert only(ledger).state == "open"
    say(ledger, Trainer(clock, attempt="second"))
    clock.advance(1)
    elapse(ledger)
    assert only(ledger).state == "closed", "process 1 never comes back, but the run goes on without it"


def test_the_same_failure_again_and_again_is_one_incident(ledger: Ledger, clock: TurnedClock) -> None:
    for launch in range(8):
        pod = [Trainer(clock, process=process, attempt=f"launch-{launch}", process_count=2) for process in range(2)]
        for trainer in pod:
            say(ledger, trainer, *["applied"] * 460)
            clock.advance(1)
        for trainer in pod:
            say(
                ledger,
                trainer,
                *["applied"] * (5 + launch % 2),
                state="failed",
                reason="XlaRuntimeError: out of memory",
            )
            clock.advance(1)
        found = only(ledger)
        assert (found.state, found.times, found.attempt, found.processes) == (
            "open",
            launch + 1,
            f"launch-{launch}",
            [0, 1],
        )
    assert found.summary == "failed 8 times in a row, last at step 466 of attempt 8: XlaRuntimeError: out of memory"
    state = ledger.summary("lm")
    assert state is not None
    assert state.summary.endswith(
        "out of memory; see its log, then start it again; 8 attempts in a row failed like this"
    )
    trainer = Trainer(clock, attempt="launch-8", process_count=2)
    say(ledger, trainer, *["applied"] * 120)
    say(ledger, Trainer(clock, attempt="launch-8", process_count=2, process=1), *["applied"] * 120)
    state = ledger.summary("lm")
    assert state is not None
    told = "at step 120 of attempt 9; the 8 before failed, last at step 466: XlaRuntimeError: out of memory"
    assert state.summary == told
    say(ledger, trainer, *["applied"] * 347)
    state = ledger.summary("lm")
    assert state is not None
    assert state.summary == "at step 467", "it has passed the step at which they failed"
    say(ledger, trainer, *["applied"] * 1000, state="failed", reason="XlaRuntimeError: out of memory")
    assert [one.times for one in incidents(ledger)] == [8, 1], "it got much further"


def test_another_failure_or_one_that_was_acknowledged_is_a_new_incident(ledger: Ledger, clock: TurnedClock) -> None:
    for launch, reason in enumerate(["OSError: a", "OSError: b", "OSError: b", "OSError: b"]):
        if launch == 3:
            acknowledge(ledger, 2)
        say(ledger, Trainer(clock, attempt=f"launch-{launch}"), "applied", state="failed", reason=reason)
        clock.advance(10)
    assert [(one.times, one.state) for one in incidents(ledger)] == [(1, "closed"), (2, "acknowledged"), (1, "open")]


def test_a_finished_run_has_no_incident(ledger: Ledger, clock: TurnedClock, trainer: Trainer) -> None:
    say(ledger, trainer, "applied", state="finished")
    clock.advance(1000)
    elapse(ledger)
    assert incidents(ledger) == []


def test_a_starved_process(ledger: Ledger, trainer: Trainer) -> None:
    trainer.gauges["gradient_norm_limit"] = 50.0
    say(ledger, trainer, *["applied"] * 800)
    for _ in range(987):
        trainer.step("skipped_large", norm=80.0)
    take(ledger, trainer.report())
    (starved,) = [one for one in incidents(ledger) if one.kind == "starved"]
    assert starved.summary == "987 steps since step 801 without a gradient step, norm 80 at step 1,787, limit 50"
    for norm in (60.0, 90.0):
        trainer.step("skipped_large", norm=norm)
        take(ledger, trainer.report())
    opened = [one for one in incidents(ledger) if one.state == "open"]
    assert [one.kind for one in opened] == ["starved"], "one cause is one incident"
    assert opened[0].outcomes == ["skipped_large"]
    assert opened[0].summary == "989 steps since step 801 without a gradient step, norm 90 at step 1,789, limit 50"
    state = ledger.summary("lm")
    assert state is not None
    assert "989 steps since step 801 were skipped, norm 90 at step 1,789, limit 50" in state.summary
    say(ledger, trainer, "accepted_not_finite")
    assert {one.state for one in incidents(ledger) if one.kind == "starved"} == {"closed"}
    assert ledger.health("lm") == "gave_up"


# --- acknowledgement ---


def acknowledge(ledger: Ledger, number: int) -> None:
    (one,) = [one for one in records(ledger) if one.id == number]
    ledger.apply(ledger.acknowledge("lm", one))


def test_an_acknowledged_gave_up_is_no_longer_shown(ledger: Ledger, clock: TurnedClock, trainer: Trainer) -> None:
    say(ledger, trainer, "accepted_not_finite", "applied")
    clock.advance(5)
    assert ledger.health("lm") == "gave_up"
    acknowledge(ledger, 1)
    assert ledger.health("lm") == "ok"
    assert (only(ledger).state, only(ledger).acknowledged) == ("acknowledged", clock())
    say(ledger, trainer, "accepted_not_finite")
    assert only(ledger).state == "acknowledged", "more of what somebody knows of"
    assert ledger.health("lm") == "gave_up", "it is still true, but known"
    say(ledger, trainer, *["applied"] * 101)
    say(ledger, trainer, "accepted_not_finite")
    assert [one.state for one in incidents(ledger)] == ["acknowledged", "open"]
    assert ledger.health("lm") == "gave_up"


def test_what_was_acknowledged_as_skipped_is_new_trouble_once_it_is_applied(ledger: Ledger, trainer: Trainer) -> None:
    say(ledger, trainer, "applied", "bad")
    acknowledge(ledger, 1)
    say(ledger, trainer, "bad")
    assert only(ledger).steps == 2
    say(ledger, trainer, "accepted_not_finite")
    first, second = incidents(ledger)
    assert (first.kind, first.state, first.steps) == ("skipped", "acknowledged", 2)
    assert (second.kind, second.state, second.first_step) == ("gave_up", "open", 4)


def test_an_acknowledged_silence_is_not_reported_again_until_the_process_was_back(
    ledger: Ledger, clock: TurnedClock, trainer: Trainer
) -> None:
    say(ledger, trainer, "applied")
    clock.advance(60)
    elapse(ledger)
    acknowledge(ledger, 1)
    clock.advance(600)
    elapse(ledger)
    assert only(ledger).state == "acknowledged"
    assert ledger.health("lm") == "stale"
    say(ledger, trainer, "applied")
    clock.advance(60)
    elapse(ledger)
    assert [one.state for one in incidents(ledger)] == ["acknowledged", "open"]


def test_to_acknowledge_twice_changes_nothing(ledger: Ledger, clock: TurnedClock, trainer: Trainer) -> None:
    say(ledger, trainer, "accepted_not_finite")
    acknowledge(ledger, 1)
    before = records(ledger)
    clock.advance(5)
    acknowledge(ledger, 1)
    assert records(ledger) == before


def test_a_record_is_written_and_read_back(ledger: Ledger, trainer: Trainer) -> None:
    trainer.step("accepted_not_finite", norm="NaN", offenders={"w": 2}, replica=first_replica(1, 0, "cpu:1", 1, 2))
    take(ledger, trainer.report())
    (one,) = records(ledger)
    assert IncidentRecord.from_durable(one.id, json.loads(to_text(one.durable()))) == one
