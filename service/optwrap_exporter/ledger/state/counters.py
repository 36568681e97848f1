"""Cumulative counts: sum, difference, maximum and minimum.

`maximum` is commutative, associative and idempotent. So totals depend neither on the order of reports nor on how often
a report arrives.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from typing import Final, NamedTuple, Self, TypeVar

from optwrap_exporter.wire.answers import Skipped, Totals
from optwrap_exporter.wire.requests import Counters
from optwrap_exporter.wire.vocabulary import LARGEST, OUTCOMES, SKIP_REASONS, Outcome

Key = TypeVar("Key")

MOST_NAMES: Final = 16_384
"""The most parameters that are kept by name: four reports of different ones. The others are in `parameter_steps`."""


class Replica(NamedTuple):
    """Identifies a replica. If all three fields are None: all replicas without an entry of their own."""

    number: int | None
    process: int | None
    device: str | None


class OutcomeCounts(NamedTuple):
    """Number of steps by outcome, in the order of `OUTCOMES`."""

    applied: int = 0
    accumulated: int = 0
    skipped_not_finite: int = 0
    skipped_large: int = 0
    skipped_other: int = 0
    accepted_not_finite: int = 0


_NO_OUTCOMES: Final = OutcomeCounts()


@dataclasses.dataclass(frozen=True, slots=True)
class Counts:
    """Immutable counts: steps by outcome, and non-finite steps in all, by parameter and by first replica."""

    outcomes: OutcomeCounts = _NO_OUTCOMES
    not_finite_steps: int = 0
    parameters: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Steps by parameter, without those at zero, in the tree's order as far as it is known."""
    replicas: Mapping[Replica, int] = dataclasses.field(default_factory=dict)
    """Steps by first non-finite replica, without those at zero, in the order in which they were reported."""
    parameter_steps: int = 0
    """The sum over all parameters, also over those that no report has named."""

    @classmethod
    def of(cls, counters: Counters) -> Self:
        """The counts in the wire's counters."""
        parameters = counters.parameters
        if not all(parameters.values()):  # equal counts must be equal mappings
            parameters = {path: n for path, n in parameters.items() if n}
        return cls(
            OutcomeCounts(*map(vars(counters.outcomes).__getitem__, OUTCOMES)),
            counters.not_finite_steps,
            parameters,
            {Replica(one.replica, one.process, one.device): one.steps for one in counters.replicas},
            sum(parameters.values()) if counters.parameter_steps is None else counters.parameter_steps,
        )

    @property
    def steps(self) -> int:
        """Calls of `update`."""
        applied, accumulated, not_finite, large, other, accepted = self.outcomes
        return applied + accumulated + not_finite + large + other + accepted

    @property
    def zero(self) -> bool:
        """Whether nothing is counted, as when an incarnation begins."""
        return (
            self.outcomes == _NO_OUTCOMES
            and not self.not_finite_steps
            and not self.parameters
            and not self.replicas
            and not self.parameter_steps
        )

    @property
    def skipped(self) -> int:
        """Calls of `update` whose gradients were discarded."""
        _, _, not_finite, large, other, _ = self.outcomes
        return not_finite + large + other

    @property
    def kept(self) -> int:
        """Calls of `update` whose gradients were not discarded."""
        applied, accumulated, _, _, _, accepted = self.outcomes
        return applied + accumulated + accepted

    @property
    def gradient_steps(self) -> int:
        """Calls of `update` in which the inner optimizer ran."""
        return self.outcomes.applied + self.outcomes.accepted_not_finite

    def plus(self, other: "Counts") -> "Counts":
        """The sum, field by field, at most LARGEST."""
        if self.zero or other.zero:
            return other if self.zero else self
        return Counts(
            OutcomeCounts(*map(_add, self.outcomes, other.outcomes)),
            _add(self.not_finite_steps, other.not_finite_steps),
            _joined(self.parameters, other.parameters, _add),
            _joined(self.replicas, other.replicas, _add),
            _add(self.parameter_steps, other.parameter_steps),
        )

    def minus(self, other: "Counts") -> "Counts":
        """The difference, field by field, at least 0."""
        if other.zero:
            return self
        return Counts(
            OutcomeCounts(*[a - b if a > b else 0 for a, b in zip(self.outcomes, other.outcomes, strict=True)]),
            max(0, self.not_finite_steps - other.not_finite_steps),
            _less(self.parameters, other.parameters),
            _less(self.replicas, other.replicas),
            max(0, self.parameter_steps - other.parameter_steps),
        )

    def maximum(self, other: "Counts") -> "Counts":
        """The larger, field by field."""
        return Counts(
            OutcomeCounts(*map(max, self.outcomes, other.outcomes)),
            max(self.not_finite_steps, other.not_finite_steps),
            _joined(self.parameters, other.parameters, max),
            _joined(self.replicas, other.replicas, max),
            max(self.parameter_steps, other.parameter_steps),
        )

    def minimum(self, other: "Counts") -> "Counts":
        """The smaller, field by field."""
        return Counts(
            OutcomeCounts(*map(min, self.outcomes, other.outcomes)),
            min(self.not_finite_steps, other.not_finite_steps),
            _smaller(self.parameters, other.parameters),
            _smaller(self.replicas, other.replicas),
            min(self.parameter_steps, other.parameter_steps),
        )

    def totals(self) -> Totals:
        """The counts as the API shows them."""
        outcomes: dict[Outcome, int] = dict(zip(OUTCOMES, self.outcomes, strict=True))
        return Totals(
            steps=self.steps,
            gradient_steps=self.gradient_steps,
            outcomes=outcomes,
            skipped=Skipped(**{reason: outcomes[outcome] for outcome, reason in SKIP_REASONS.items()}),
            not_finite_steps=self.not_finite_steps,
            accepted_not_finite=self.outcomes.accepted_not_finite,
        )


NOTHING: Final = Counts()


def sum_of(counts: Iterable[Counts]) -> Counts:
    """The sum of several counts."""
    return reduce(Counts.plus, counts, NOTHING)


def _add(a: int, b: int) -> int:
    return min(a + b, LARGEST)


def _less(a: Mapping[Key, int], b: Mapping[Key, int]) -> Mapping[Key, int]:
    return {key: rest for key, n in a.items() if (rest := n - b.get(key, 0)) > 0} if b else a


def _smaller(a: Mapping[Key, int], b: Mapping[Key, int]) -> Mapping[Key, int]:
    return {key: min(n, b[key]) for key, n in a.items() if key in b}


def _joined(a: Mapping[Key, int], b: Mapping[Key, int], join: Callable[[int, int], int]) -> Mapping[Key, int]:
    if not a or not b:
        return a or b
    if join is max and a == b:  # nothing new: do not copy thousands of paths
        return a
    both = dict(a)
    for key, n in b.items():
        if key in both or len(both) < MOST_NAMES:
            both[key] = join(both.get(key, 0), n)
    return both
