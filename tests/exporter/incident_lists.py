"""For tests: the incidents of the only run of a ledger, and what changes them."""

from typing import Any

from optwrap_exporter.ledger.incidents.summary import answer
from optwrap_exporter.ledger.ledger import Ledger
from optwrap_exporter.ledger.state.incident import IncidentRecord
from optwrap_exporter.ledger.state.run import RunState
from optwrap_exporter.wire.incident import Incident

from tests.exporter.trainer import Trainer, take


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


def acknowledge(ledger: Ledger, number: int) -> None:
    (one,) = [one for one in records(ledger) if one.id == number]
    ledger.apply(ledger.acknowledge("lm", one))
