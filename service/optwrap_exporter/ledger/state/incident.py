"""One incident as an immutable value: trouble of a run, from all the reports about it."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Final

from optwrap_exporter.ledger import ranges
from optwrap_exporter.ledger.evolve import evolved
from optwrap_exporter.ledger.ranges import Ranges
from optwrap_exporter.wire.vocabulary import OUTCOMES, IncidentKind, IncidentState, Outcome

NEAR: Final = 100
"""Bad steps join an incident if they are at most so many steps from it. So many good steps end it."""
LATCHED: Final[frozenset[IncidentKind]] = frozenset({"gave_up", "diverged"})
"""Kinds that stay open until the run is rolled back or somebody acknowledges them."""
OF_BAD_STEPS: Final[frozenset[IncidentKind]] = frozenset({"skipped", "gave_up"})
"""Kinds that are made of bad steps."""
_MOST_RANGES: Final = 64
"""The most ranges of steps that an incident keeps. Earlier steps are only counted."""


@dataclasses.dataclass(frozen=True, slots=True)
class Replica:
    """The first non-finite replica of a step."""

    step: int
    replica: int
    process: int | None
    device: str | None


@dataclasses.dataclass(frozen=True)  # without slots, for `evolved`
class IncidentRecord:
    """One incident. Times by the exporter's clock.

    `bad` and `applied` hold step numbers, so a step counts once however many processes report it, and however often.
    """

    id: int
    """Unique in the store."""
    kind: IncidentKind
    attempt: str
    generation: int
    """Rollbacks within the attempt before it. After a rollback a step number means another step."""
    opened: float
    updated: float
    state: IncidentState = "open"
    closed: float | None = None
    acknowledged: float | None = None
    lasts: bool = True
    """Whether its cause still holds. An acknowledged incident absorbs what belongs to it while it lasts."""
    rolled_back: bool = False
    """Whether it was ended by a start at an earlier step. Late reports no longer open it again."""
    processes: Ranges = ()
    """The processes that it is about."""
    active: Ranges = ()
    """Those for which the condition still holds, of a kind that is a condition of processes."""
    first_step: int | None = None
    last_step: int | None = None
    bad: Ranges = ()
    """Bad steps after `settled`."""
    applied: Ranges = ()
    """Those of them in which the optimizer took non-finite values."""
    first_applied: int | None = None
    """The first step in which it took one; None if it took none, or the step has no record."""
    gave_up: float | None = None
    """When the exporter first heard of one."""
    settled: int = 0
    """Steps up to this one are counted, but no longer known one by one."""
    settled_bad: int = 0
    settled_applied: int = 0
    opened_by: int | None = None
    """The process whose totals give `counted`."""
    applied_before: int = 0
    """Steps with non-finite values that this process had applied before the incident."""
    counted: int = 0
    """How many it applied since, by its totals, if step records were missing. If it is starved: all its steps since."""
    outcomes: tuple[Outcome, ...] = ()
    parameter: str | None = None
    parameter_step: int | None = None
    replica: Replica | None = None
    host: str | None = None
    device: str | None = None
    last_clean_step: int | None = None
    reason: str | None = None
    times: int = 1
    """How many launches in a row failed like this."""
    figures: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Numbers of the kind that only its sentence needs (`incidents.summary`)."""

    @property
    def live(self) -> bool:
        """Whether it is open, or acknowledged while its cause still holds."""
        return self.state == "open" or (self.state == "acknowledged" and self.lasts)

    @property
    def steps(self) -> int:
        """Number of bad steps."""
        return max(self.settled_bad + ranges.size(self.bad), self.counted)

    @property
    def applied_steps(self) -> int:
        """Number of steps in which the optimizer took non-finite values."""
        counted = self.counted if self.kind in OF_BAD_STEPS else 0
        return max(self.settled_applied + ranges.size(self.applied), counted)

    def near(self, step: int) -> bool:
        """Whether a bad step belongs to it."""
        if self.first_step is None or self.last_step is None:
            return False
        return self.first_step - NEAR <= step <= self.last_step + NEAR

    def spans(self, step: int) -> bool:
        """Whether a step lies between its first and its last one."""
        return self.first_step is not None and self.last_step is not None and self.first_step <= step <= self.last_step

    def with_steps(self, bad: Ranges, applied: Ranges) -> "IncidentRecord":
        """The incident with more bad steps, without those that are settled."""
        bad, applied = ranges.above(bad, self.settled), ranges.above(applied, self.settled)
        if not bad:
            return self
        first = bad[0][0] if self.first_step is None else min(self.first_step, bad[0][0])
        last = bad[-1][1] if self.last_step is None else max(self.last_step, bad[-1][1])
        first_applied = self.first_applied
        if applied:
            first_applied = applied[0][0] if first_applied is None else min(first_applied, applied[0][0])
        return evolved(
            self,
            first_step=first,
            last_step=last,
            bad=ranges.plus(self.bad, bad),
            applied=ranges.plus(self.applied, applied),
            first_applied=first_applied,
        )

    def compact(self) -> "IncidentRecord":
        """The incident with its earliest steps settled, if it has too many ranges."""
        if len(self.bad) + len(self.applied) <= _MOST_RANGES:
            return self
        ends = sorted(last for _, last in (*self.bad, *self.applied))
        settled = ends[-1 - _MOST_RANGES // 2]
        bad, applied = ranges.above(self.bad, settled), ranges.above(self.applied, settled)
        return evolved(
            self,
            bad=bad,
            applied=applied,
            settled=settled,
            settled_bad=self.settled_bad + ranges.size(self.bad) - ranges.size(bad),
            settled_applied=self.settled_applied + ranges.size(self.applied) - ranges.size(applied),
        )

    def durable(self) -> dict[str, Any]:
        """The incident in types that pydantic writes as JSON, without what the store has in columns."""
        fields = self.__dict__
        return {name: fields[name] for name in _DURABLE}

    @classmethod
    def from_durable(cls, number: int, written: Mapping[str, Any]) -> "IncidentRecord":
        """The incident that `durable` wrote."""
        pairs = {
            name: tuple((first, last) for first, last in written[name])
            for name in ("processes", "active", "bad", "applied")
        }
        replica = written["replica"]
        return cls(
            id=number,
            **dict(written)
            | pairs
            | {
                "outcomes": tuple(written["outcomes"]),
                "replica": None if replica is None else Replica(**replica),
            },
        )


_DURABLE: Final = tuple(field.name for field in dataclasses.fields(IncidentRecord) if field.name != "id")


def in_order(outcomes: set[Outcome]) -> tuple[Outcome, ...]:
    """Outcomes in the order of OUTCOMES."""
    return tuple(outcome for outcome in OUTCOMES if outcome in outcomes)
