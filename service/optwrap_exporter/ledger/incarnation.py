"""What the ledger remembers of one incarnation, as values. Nothing here is ever changed, only replaced.

`durable` and `from_durable` are what the store writes with every report. Parameters are apart (`Badness`): there may be
many, and most reports change none. Replicas are not: of an incarnation there are few.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from optwrap_exporter.ledger.counters import Counts, Replica
from optwrap_exporter.ledger.ranges import Ranges
from optwrap_exporter.wire.requests import LARGEST, State

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
    at_start: int
    share: int
    base: int
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


@dataclasses.dataclass(frozen=True, slots=True)
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
    at_start: Counts = NOTHING
    """As the report with the highest seq says."""
    totals: Counts = NOTHING
    """The largest seen."""
    share: Counts = NOTHING
    """The largest `totals - at_start` of one report: what this incarnation adds to the process's total."""
    base: Counts | None = None
    """What some exporter had counted before this incarnation, as the client was told: counts where this one knows less."""
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
    arrival: int = 0
    """How many incarnations of its process were heard of before it."""

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
            self.at_start.parameters.get(parameter, 0),
            self.share.parameters.get(parameter, 0),
            self.base.parameters.get(parameter, 0) if self.base else 0,
            self.offences.get(parameter),
        )

    def changed(self, before: "IncarnationState | None") -> list[str]:
        """Parameters of which it says something else than `before` did, in the tree's order as far as it is known."""
        names: dict[str, None] = {}
        for now, then in (
            (self.totals, before and before.totals),
            (self.at_start, before and before.at_start),
            (self.share, before and before.share),
            (self.base, before and before.base),
        ):
            mine, old = now.parameters if now else {}, then.parameters if then else {}
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
            "at_start": _written(self.at_start),
            "share": _written(self.share),
            "base": self.base and _written(self.base),
            "streak": [self.streak.first, self.streak.last, self.streak.at],
            "replicas": {name: _replicas(counts.replicas) for name in _COUNTS if (counts := getattr(self, name))},
            "seen": [[*replica, *seen] for replica, seen in self.seen.items()],
        }

    @classmethod
    def from_durable(cls, written: Mapping[str, Any], badness: Iterable[Badness]) -> "IncarnationState":
        """What was written."""
        rows = list(badness)
        replicas = written.get("replicas", {})  # since schema 2

        def counts(name: str) -> Counts:
            *outcomes, not_finite = written[name]
            parameters = {row.parameter: n for row in rows if (n := getattr(row, name))}
            firsts = {Replica(number, process, device): n for number, process, device, n in replicas.get(name, ())}
            return Counts(tuple(outcomes), not_finite, parameters, firsts)

        return cls(
            **{name: value for name, value in written.items() if name != "replicas"}
            | {
                "received": tuple((first, last) for first, last in written["received"]),
                "beats": tuple(Beat(*beat) for beat in written["beats"]),
                "dropped": tuple(written["dropped"]),
                "totals": counts("totals"),
                "at_start": counts("at_start"),
                "share": counts("share"),
                "base": counts("base") if written["base"] else None,
                "streak": Streak(*written["streak"]),
                "offences": {row.parameter: row.offences for row in rows if row.offences},
                "seen": {Replica(*row[:3]): Seen(*row[3:]) for row in written.get("seen", ())},
            }
        )


_COUNTS: Final = ("totals", "at_start", "share", "base")


def _replicas(of: Mapping[Replica, int]) -> list[list[Any]]:
    return [[*replica, steps] for replica, steps in of.items()]


def _written(counts: Counts) -> list[int]:
    return [*counts.outcomes, counts.not_finite_steps]


def plain(of: type, *left_out: str) -> tuple[str, ...]:
    """Fields of a dataclass that JSON can take as they are."""
    return tuple(field.name for field in dataclasses.fields(of) if field.name not in left_out)


_PLAIN: Final = plain(IncarnationState, "totals", "at_start", "share", "base", "streak", "offences", "seen")
