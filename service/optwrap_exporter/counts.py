"""Counts: what a run has counted, as a vector that can be added, subtracted and joined.

The arithmetic of the ledger. `maximum` is a join (commutative, associative, idempotent), which is what makes the totals
the same whatever the order of the reports and however often one comes.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Self

from optwrap_exporter.wire import LARGEST, VERDICTS, Counters, Skipped, Totals, Verdict, Verdicts


@dataclasses.dataclass(frozen=True, slots=True)
class Counts:
    """Steps by verdict, steps not finite, and the latter by parameter. Immutable: `parameters` is never written to."""

    verdicts: tuple[int, ...] = (0,) * len(VERDICTS)
    """In the order of `wire.VERDICTS`."""
    not_finite_steps: int = 0
    parameters: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Steps by parameter, those at zero left out, in the tree's order as far as it is known."""

    @classmethod
    def of(cls, counters: Counters) -> Self:
        """The wire's counters."""
        verdicts = counters.verdicts
        # Zeros are left out, so that equal counts are equal mappings.
        parameters = counters.parameters
        if not all(parameters.values()):
            parameters = {path: n for path, n in parameters.items() if n}
        return cls(tuple(getattr(verdicts, name) for name in VERDICTS), counters.not_finite_steps, parameters)

    @property
    def steps(self) -> int:
        """Calls of `update`."""
        return sum(self.verdicts)

    @property
    def gradient_steps(self) -> int:
        """Calls that reached the inner optimizer."""
        return self.verdicts[0] + self.verdicts[5]

    @property
    def accepted_not_finite(self) -> int:
        """Calls in which the inner optimizer consumed what was not finite."""
        return self.verdicts[5]

    def verdict(self, name: Verdict) -> int:
        """Steps with this verdict."""
        return self.verdicts[VERDICTS.index(name)]

    def plus(self, other: "Counts") -> "Counts":
        """The sum, field by field, none above the largest that the wire allows."""
        return Counts(
            tuple(map(_add, self.verdicts, other.verdicts)),
            _add(self.not_finite_steps, other.not_finite_steps),
            _joined(self.parameters, other.parameters, _add),
        )

    def minus(self, other: "Counts") -> "Counts":
        """The difference, field by field, nowhere below zero."""
        less = other.parameters
        return Counts(
            tuple(max(0, a - b) for a, b in zip(self.verdicts, other.verdicts, strict=True)),
            max(0, self.not_finite_steps - other.not_finite_steps),
            {path: rest for path, n in self.parameters.items() if (rest := n - less.get(path, 0)) > 0}
            if less
            else self.parameters,
        )

    def maximum(self, other: "Counts") -> "Counts":
        """The larger, field by field."""
        return Counts(
            tuple(map(max, self.verdicts, other.verdicts)),
            max(self.not_finite_steps, other.not_finite_steps),
            _joined(self.parameters, other.parameters, max),
        )

    def counters(self) -> Counters:
        """In the wire's form."""
        verdicts = zip(VERDICTS, self.verdicts, strict=True)
        # Made of numbers that were checked on their way in; checking 100,000 paths again would be for nothing.
        return Counters.model_construct(
            steps=self.steps,
            gradient_steps=self.gradient_steps,
            not_finite_steps=self.not_finite_steps,
            verdicts=Verdicts.model_construct(None, **{str(name): n for name, n in verdicts}),
            parameters=dict(self.parameters),
        )

    def totals(self) -> Totals:
        """In the API's form."""
        verdicts: dict[Verdict, int] = dict(zip(VERDICTS, self.verdicts, strict=True))
        return Totals(
            steps=self.steps,
            gradient_steps=self.gradient_steps,
            verdicts=verdicts,
            skipped=Skipped(
                not_finite=verdicts["skipped_not_finite"],
                large=verdicts["skipped_large"],
                other=verdicts["skipped_other"],
            ),
            not_finite_steps=self.not_finite_steps,
            accepted_not_finite=verdicts["accepted_not_finite"],
        )


def _add(a: int, b: int) -> int:
    return min(a + b, LARGEST)


def _joined(a: Mapping[str, int], b: Mapping[str, int], join: Callable[[int, int], int]) -> Mapping[str, int]:
    if not a or not b:
        return a or b
    if join is max and a == b:  # a report without news: no copy of what may be a hundred thousand paths
        return a
    both = dict(a)
    for path, n in b.items():
        both[path] = join(both.get(path, 0), n)
    return both
