"""Incidents are the same however the reports are split, ordered and repeated, and as they are stored."""

import itertools
import json

from hypothesis import given, settings
from hypothesis import strategies as st
from optwrap_exporter.ledger.ledger import Ledger
from optwrap_exporter.ledger.state.incident import IncidentRecord
from optwrap_exporter.store.pending import to_text
from optwrap_exporter.wire.incident import Incident
from optwrap_exporter.wire.requests import Report

from tests.exporter.incident_lists import incidents, records
from tests.exporter.trainer import Trainer, TurnedClock, first_replica, take

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


def test_a_record_is_written_and_read_back(ledger: Ledger, trainer: Trainer) -> None:
    trainer.step("accepted_not_finite", norm="NaN", offenders={"w": 2}, replica=first_replica(1, 0, "cpu:1", 1, 2))
    take(ledger, trainer.report())
    (one,) = records(ledger)
    assert IncidentRecord.from_durable(one.id, json.loads(to_text(one.durable()))) == one
