"""What the states of the ledger are made of, and how counts are written for the store."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from optwrap_exporter.ledger.state.counters import Counts, OutcomeCounts, Replica
from optwrap_exporter.wire.vocabulary import LARGEST


class ParameterRecords(NamedTuple):
    """The step records of one parameter, summed up."""

    values: int
    """Non-finite values in its gradients."""
    first_step: int
    last_step: int

    def plus(self, other: "ParameterRecords") -> "ParameterRecords":
        """The sum over different step records."""
        return ParameterRecords(
            min(self.values + other.values, LARGEST),
            min(self.first_step, other.first_step),
            max(self.last_step, other.last_step),
        )


@dataclasses.dataclass(frozen=True, slots=True)
class ParameterState:
    """The counts of one parameter in an incarnation: a row of the store."""

    parameter: str
    totals: int
    baseline: int
    records: ParameterRecords | None


class StepSpan(NamedTuple):
    """The first and the last of some steps."""

    first: int
    last: int

    def joined(self, other: "StepSpan") -> "StepSpan":
        """The span that covers both."""
        return StepSpan(min(self.first, other.first), max(self.last, other.last))


def larger_records(
    one: Mapping[str, ParameterRecords], other: Mapping[str, ParameterRecords]
) -> Mapping[str, ParameterRecords]:
    """By parameter, the records with the most values; of equally many those with the earliest first step."""
    if not one or not other:
        return one or other
    found = dict(one)
    for path, records in other.items():
        if path not in found or _largest_last(records) > _largest_last(found[path]):
            found[path] = records
    return found


def _largest_last(records: ParameterRecords) -> tuple[int, int, int]:
    return records.values, -records.first_step, records.last_step


def summed_records(
    one: Mapping[str, ParameterRecords], other: Mapping[str, ParameterRecords]
) -> Mapping[str, ParameterRecords]:
    """By parameter, the sum over different step records."""
    found = dict(one)
    for path, records in other.items():
        found[path] = found[path].plus(records) if path in found else records
    return found


def joined_spans(one: Mapping[Replica, StepSpan], other: Mapping[Replica, StepSpan]) -> Mapping[Replica, StepSpan]:
    """By replica, the span that covers both."""
    found = dict(one)
    for replica, span in other.items():
        found[replica] = found[replica].joined(span) if replica in found else span
    return found


class DroppedRecords(NamedTuple):
    """Step records that the client dropped."""

    steps: int = 0
    bad_steps: int = 0


NONE_DROPPED: Final = DroppedRecords()


def counts_to_durable(counts: Counts) -> dict[str, Any]:
    """Counts as JSON types, without parameters."""
    return {
        "outcomes": tuple(counts.outcomes),
        "not_finite_steps": counts.not_finite_steps,
        "parameter_steps": counts.parameter_steps,
        "replicas": [[*replica, steps] for replica, steps in counts.replicas.items()],
    }


def counts_from_durable(written: Mapping[str, Any], parameters: Mapping[str, int]) -> Counts:
    """The counts that `counts_to_durable` wrote, with their parameters."""
    return Counts(
        OutcomeCounts(*written["outcomes"]),
        written["not_finite_steps"],
        parameters,
        {Replica(number, process, device): n for number, process, device, n in written["replicas"]},
        written["parameter_steps"],
    )


def fields_of(of: type, *left_out: str) -> tuple[str, ...]:
    """Names of the fields of a dataclass, without `left_out`."""
    return tuple(field.name for field in dataclasses.fields(of) if field.name not in left_out)
