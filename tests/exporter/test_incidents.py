"""Incidents of bad steps: when one begins, what it says, and when it ends."""

import pytest
from optwrap_exporter.ledger.incidents.changes import MOST_OPEN
from optwrap_exporter.ledger.ledger import Ledger

from tests.exporter.incident_lists import elapse, incidents, only, records, run, say
from tests.exporter.trainer import Trainer, TurnedClock, first_replica, sent, take, with_records


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
