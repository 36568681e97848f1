"""Counts: what a run has counted, as a vector that can be added, subtracted and joined.

The arithmetic of the ledger. `maximum` is a join (commutative, associative, idempotent), which is what makes the totals
the same whatever the order of the reports and however often one comes.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple, Self, TypeVar

from optwrap_exporter.wire.answers import Skipped, Totals
from optwrap_exporter.wire.requests import Counters, Outcomes, ReplicaSteps
from optwrap_exporter.wire.vocabulary import LARGEST, OUTCOMES, Outcome

Key = TypeVar("Key")


class Replica(NamedTuple):
    """What tells one replica from the others; all three None: those that are not told apart."""

    number: int | None
    process: int | None
    device: str | None


@dataclasses.dataclass(frozen=True, slots=True)
class Counts:
    """Steps by outcome, steps not finite, and these by parameter and by replica. Immutable: nothing is written to."""

    outcomes: tuple[int, ...] = (0,) * len(OUTCOMES)
    """In the order of `wire.OUTCOMES`."""
    not_finite_steps: int = 0
    parameters: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Steps by parameter, those at zero left out, in the tree's order as far as it is known."""
    replicas: Mapping[Replica, int] = dataclasses.field(default_factory=dict)
    """Steps by the first replica whose own gradients were not finite, in the order in which they were heard of."""

    @classmethod
    def of(cls, counters: Counters) -> Self:
        """The wire's counters."""
        outcomes = counters.outcomes
        # Zeros are left out, so that equal counts are equal mappings.
        parameters = counters.parameters
        if not all(parameters.values()):
            parameters = {path: n for path, n in parameters.items() if n}
        replicas = {Replica(one.replica, one.process, one.device): one.steps for one in counters.replicas}
        return cls(tuple(getattr(outcomes, name) for name in OUTCOMES), counters.not_finite_steps, parameters, replicas)

    @property
    def steps(self) -> int:
        """Calls of `update`."""
        return sum(self.outcomes)

    @property
    def gradient_steps(self) -> int:
        """Calls that reached the inner optimizer."""
        return self.outcomes[0] + self.outcomes[5]

    @property
    def accepted_not_finite(self) -> int:
        """Calls in which the inner optimizer consumed what was not finite."""
        return self.outcomes[5]

    def outcome(self, name: Outcome) -> int:
        """Steps with this outcome."""
        return self.outcomes[OUTCOMES.index(name)]

    def plus(self, other: "Counts") -> "Counts":
        """The sum, field by field, none above the largest that the wire allows."""
        return Counts(
            tuple(map(_add, self.outcomes, other.outcomes)),
            _add(self.not_finite_steps, other.not_finite_steps),
            _joined(self.parameters, other.parameters, _add),
            _joined(self.replicas, other.replicas, _add),
        )

    def minus(self, other: "Counts") -> "Counts":
        """The difference, field by field, nowhere below zero."""
        return Counts(
            tuple(max(0, a - b) for a, b in zip(self.outcomes, other.outcomes, strict=True)),
            max(0, self.not_finite_steps - other.not_finite_steps),
            _less(self.parameters, other.parameters),
            _less(self.replicas, other.replicas),
        )

    def maximum(self, other: "Counts") -> "Counts":
        """The larger, field by field."""
        return Counts(
            tuple(map(max, self.outcomes, other.outcomes)),
            max(self.not_finite_steps, other.not_finite_steps),
            _joined(self.parameters, other.parameters, max),
            _joined(self.replicas, other.replicas, max),
        )

    def minimum(self, other: "Counts") -> "Counts":
        """The smaller, field by field."""
        return Counts(
            tuple(map(min, self.outcomes, other.outcomes)),
            min(self.not_finite_steps, other.not_finite_steps),
            _smaller(self.parameters, other.parameters),
            _smaller(self.replicas, other.replicas),
        )

    def counters(self) -> Counters:
        """In the wire's form."""
        outcomes = zip(OUTCOMES, self.outcomes, strict=True)
        # Made of numbers that were checked on their way in; checking 100,000 paths again would be for nothing.
        return Counters.model_construct(
            steps=self.steps,
            gradient_steps=self.gradient_steps,
            not_finite_steps=self.not_finite_steps,
            outcomes=Outcomes.model_construct(None, **{str(name): n for name, n in outcomes}),
            parameters=dict(self.parameters),
            replicas=[
                ReplicaSteps.model_construct(None, replica=one.number, process=one.process, device=one.device, steps=n)
                for one, n in self.replicas.items()
            ],
        )

    def totals(self) -> Totals:
        """In the API's form."""
        outcomes: dict[Outcome, int] = dict(zip(OUTCOMES, self.outcomes, strict=True))
        return Totals(
            steps=self.steps,
            gradient_steps=self.gradient_steps,
            outcomes=outcomes,
            skipped=Skipped(
                not_finite=outcomes["skipped_not_finite"],
                large=outcomes["skipped_large"],
                other=outcomes["skipped_other"],
            ),
            not_finite_steps=self.not_finite_steps,
            accepted_not_finite=outcomes["accepted_not_finite"],
        )


def _add(a: int, b: int) -> int:
    return min(a + b, LARGEST)


def _less(a: Mapping[Key, int], b: Mapping[Key, int]) -> Mapping[Key, int]:
    return {key: rest for key, n in a.items() if (rest := n - b.get(key, 0)) > 0} if b else a


def _smaller(a: Mapping[Key, int], b: Mapping[Key, int]) -> Mapping[Key, int]:
    return {key: min(n, b[key]) for key, n in a.items() if key in b}


def _joined(a: Mapping[Key, int], b: Mapping[Key, int], join: Callable[[int, int], int]) -> Mapping[Key, int]:
    if not a or not b:
        return a or b
    if join is max and a == b:  # a report without news: no copy of what may be a hundred thousand paths
        return a
    both = dict(a)
    for key, n in b.items():
        both[key] = join(both.get(key, 0), n)
    return both
