"""What the ledger remembers of one incarnation, as values. Nothing here is ever changed, only replaced.

`durable` and `from_durable` are what the store writes with every report. Parameters are apart (`Badness`): there may be
many, and most reports change none. Replicas are not: of an incarnation there are few.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any, Final, NamedTuple

from optwrap_exporter.ledger.counters import Counts, Replica
from optwrap_exporter.ledger.ranges import Ranges
from optwrap_exporter.wire.vocabulary import LARGEST, State

NOTHING: Final = Counts()


@dataclasses.dataclass(frozen=True, slots=True)
class Offences:
    """What step records said of one parameter within an incarnation, each record once."""

    values: int
    """Values that were not finite."""
    first_step: int
    last_step: int

    def plus(self, other: "Offences") -> "Offences":
        """Both, where they are of different records."""
        return Offences(
            min(self.values + other.values, LARGEST),
            min(self.first_step, other.first_step),
            max(self.last_step, other.last_step),
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Badness:
    """All that an incarnation has to say of one parameter: a row of the store."""

    parameter: str
    totals: int
    baseline: int
    offences: Offences | None


@dataclasses.dataclass(frozen=True, slots=True)
class Streak:
    """The streak of steps not finite that is open, by step number; and the last step record looked at."""

    first: int | None = None
    last: int | None = None
    at: int | None = None

    @property
    def length(self) -> int:
        """Steps in it; 0 when there is none."""
        return 0 if self.first is None or self.last is None else self.last - self.first + 1


class Seen(NamedTuple):
    """The steps in which step records say that a replica was the first that was not finite: the first and the last."""

    first: int
    last: int

    def joined(self, other: "Seen") -> "Seen":
        """From the first to the last of both."""
        return Seen(min(self.first, other.first), max(self.last, other.last))


class Beat(NamedTuple):
    """A report that came as far from the one before it, in time, as it was sent."""

    time: float
    """When it came, by the exporter's clock."""
    steps: int
    """What its totals said."""


_LIVING: Final = 4
"""Beats that tell a life from what was only late."""


@dataclasses.dataclass(frozen=True)  # without slots: `share` is cached
class IncarnationState:
    """One incarnation of one process: one start of it, or one rollback within it."""

    incarnation: str
    attempt: str
    order: float
    """Its place among the incarnations of its process."""
    generation: int
    """How many incarnations of its process and attempt, that took up at some step, came before it."""
    first_report: float
    last_report: float
    """By the exporter's clock, late reports included."""
    began: float
    """The earliest `sent_at`, by the client's clock: when the incarnation began."""
    sent: float
    """`sent_at` of the report with the highest seq."""
    heard: float
    """When that one came, by the exporter's clock."""
    beats: tuple[Beat, ...]
    """The last reports that came as far apart as they were sent: a living process does, a backlog does not."""
    highest: int
    """The highest seq."""
    received: Ranges
    """Every seq that is stored."""
    state: State
    start_step: int = 0
    """Steps that the optimizer's state had taken when the incarnation began."""
    totals: Counts = NOTHING
    """The largest received."""
    baseline: Counts = NOTHING
    """What `totals` are counted from: `at_start`, or for a partial incarnation the smallest totals received."""
    partial: bool = False
    """Whether all reports received had an `oldest_held` above 1: the earlier ones went to a store that is lost."""
    dropped: tuple[int, int] = (0, 0)
    """Step records and bad ones that the client dropped."""
    not_stored: int = 0
    """Step records that the store had no room for."""
    host: str = ""
    streak: Streak = Streak()
    placed: bool = False
    """Whether it is known, and told, at which step the incarnation took up."""
    offences: Mapping[str, Offences] = dataclasses.field(default_factory=dict)
    seen: Mapping[Replica, Seen] = dataclasses.field(default_factory=dict)
    """By replica; of those only that the totals name, of which there are few."""

    @cached_property
    def share(self) -> Counts:
        """What this incarnation adds to the totals of its process."""
        return self.totals.minus(self.baseline)

    @property
    def ended(self) -> bool:
        """Whether it said so."""
        return self.state in {"finished", "failed"}

    @property
    def alive(self) -> bool:
        """Whether it kept time for several reports in a row."""
        return len(self.beats) == _LIVING

    @property
    def moving(self) -> bool:
        """Whether it took steps meanwhile."""
        return self.beats[-1].steps > self.beats[0].steps

    def beaten(self, beat: Beat, *, paced: bool) -> tuple[Beat, ...]:
        """Its beats with another report's; `paced`: it came as far from the last one as it was sent."""
        return (*self.beats, beat)[-_LIVING:] if paced else (beat,)

    def badness(self, parameter: str) -> Badness:
        """What it has to say of one parameter."""
        return Badness(
            parameter,
            self.totals.parameters.get(parameter, 0),
            self.baseline.parameters.get(parameter, 0),
            self.offences.get(parameter),
        )

    def changed(self, before: "IncarnationState | None") -> list[str]:
        """Parameters of which it says something else than `before` did, in the tree's order as far as it is known."""
        names: dict[str, None] = {}
        for now, then in (
            (self.totals, before and before.totals),
            (self.baseline, before and before.baseline),
        ):
            mine, old = now.parameters, then.parameters if then else {}
            if mine is not old and mine != old:
                names.update((path, None) for path in mine if mine[path] != old.get(path, 0))
                names.update((path, None) for path in old if path not in mine)
        earlier: Mapping[str, Offences] = before.offences if before else {}
        if self.offences is not earlier:
            names.update((path, None) for path, what in self.offences.items() if earlier.get(path) != what)
        return list(names)

    def durable(self) -> dict[str, Any]:
        """What to write, without the parameters: JSON's types only."""
        return {name: getattr(self, name) for name in _PLAIN} | {
            "totals": _written(self.totals),
            "baseline": _written(self.baseline),
            "streak": [self.streak.first, self.streak.last, self.streak.at],
            "replicas": {name: _replicas(getattr(self, name).replicas) for name in ("totals", "baseline")},
            "seen": [[*replica, *seen] for replica, seen in self.seen.items()],
        }

    @classmethod
    def from_durable(cls, written: Mapping[str, Any], badness: Iterable[Badness]) -> "IncarnationState":
        """What was written."""
        rows = list(badness)
        replicas = written["replicas"]

        def counts(name: str) -> Counts:
            *outcomes, not_finite = written[name]
            parameters = {row.parameter: n for row in rows if (n := getattr(row, name))}
            firsts = {Replica(number, process, device): n for number, process, device, n in replicas[name]}
            return Counts(tuple(outcomes), not_finite, parameters, firsts)

        return cls(
            **{name: value for name, value in written.items() if name != "replicas"}
            | {
                "received": tuple((first, last) for first, last in written["received"]),
                "beats": tuple(Beat(*beat) for beat in written["beats"]),
                "dropped": tuple(written["dropped"]),
                "totals": counts("totals"),
                "baseline": counts("baseline"),
                "streak": Streak(*written["streak"]),
                "offences": {row.parameter: row.offences for row in rows if row.offences},
                "seen": {Replica(*row[:3]): Seen(*row[3:]) for row in written["seen"]},
            }
        )


def _replicas(of: Mapping[Replica, int]) -> list[list[Any]]:
    return [[*replica, steps] for replica, steps in of.items()]


def _written(counts: Counts) -> list[int]:
    return [*counts.outcomes, counts.not_finite_steps]


def plain(of: type, *left_out: str) -> tuple[str, ...]:
    """Fields of a dataclass that JSON can take as they are."""
    return tuple(field.name for field in dataclasses.fields(of) if field.name not in left_out)


_PLAIN: Final = plain(IncarnationState, "totals", "baseline", "streak", "offences", "seen")
