"""Incidents that somebody acknowledged."""

from optwrap_exporter.ledger.ledger import Ledger

from tests.exporter.incident_lists import acknowledge, elapse, incidents, only, records, say
from tests.exporter.trainer import Trainer, TurnedClock


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
