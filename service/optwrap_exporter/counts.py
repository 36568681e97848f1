"""Counts: what a run has counted, as a vector that can be added, subtracted and joined.

The arithmetic of the ledger. `maximum` is a join (commutative, associative, idempotent), which is what makes the totals
the same whatever the order of the reports and however often one comes.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Self

from optwrap_exporter.wire import VERDICTS, Counters, Skipped, Totals, Verdict, Verdicts

_EMPTY: Final[Mapping[str, int]] = MappingProxyType({})


@dataclasses.dataclass(frozen=True, slots=True)
class Counts:
    """Steps by verdict, steps not finite, and the latter by parameter. Immutable: `parameters` is never written to."""

    verdicts: tuple[int, ...] = (0,) * len(VERDICTS)
    """In the order of `wire.VERDICTS`."""
    not_finite_steps: int = 0
    parameters: Mapping[str, int] = _EMPTY
    """Steps by parameter, those at zero left out, in the tree's order as far as it is known."""

    @classmethod
    def of(cls, counters: Counters) -> Self:
        """The wire's counters."""
        verdicts = counters.verdicts
        return cls(tuple(getattr(verdicts, name) for name in VERDICTS), counters.not_finite_steps, counters.parameters)

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
        """The sum, field by field."""
        raise NotImplementedError

    def minus(self, other: "Counts") -> "Counts":
        """The difference, field by field, nowhere below zero."""
        raise NotImplementedError

    def maximum(self, other: "Counts") -> "Counts":
        """The larger, field by field."""
        raise NotImplementedError

    def counters(self) -> Counters:
        """In the wire's form."""
        return Counters(
            steps=self.steps,
            gradient_steps=self.gradient_steps,
            not_finite_steps=self.not_finite_steps,
            verdicts=Verdicts(**dict(zip(VERDICTS, self.verdicts, strict=True))),
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
