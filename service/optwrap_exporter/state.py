"""What the ledger remembers, as values: an epoch, a process, a run. Nothing here is ever changed, only replaced.

`durable` and the `from_durable`s are what the store writes with every report, so that a ledger is back after a restart
without reading a single step record. Parameters are apart (`Badness`): there may be many, and most reports change none.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property, reduce
from typing import Any, Final, NamedTuple

from optwrap_exporter.counts import Counts
from optwrap_exporter.ranges import Ranges
from optwrap_exporter.wire import Gauges, Source, State

NOTHING: Final = Counts()


@dataclasses.dataclass(frozen=True, slots=True)
class Offences:
    """What step records said of one parameter within an epoch, each record once."""

    values: int
    """Values that were not finite."""
    first_step: int
    last_step: int


@dataclasses.dataclass(frozen=True, slots=True)
class Badness:
    """All that an epoch has to say of one parameter: a row of the store."""

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


class Beat(NamedTuple):
    """A report that came as far from the one before it, in time, as it was sent."""

    time: float
    """When it came, by the exporter's clock."""
    steps: int
    """What its totals said."""


_LIVING: Final = 4
"""Beats that tell a life from what was only late."""


@dataclasses.dataclass(frozen=True, slots=True)
class EpochState:
    """One epoch of one process: one start of it, or one rollback within it."""

    epoch: str
    attempt: str
    order: float
    """Its place among the epochs of its process."""
    generation: int
    """How many epochs of its process and attempt, that took up at some step, came before it."""
    first_report: float
    last_report: float
    """By the exporter's clock, late reports included."""
    began: float
    """The earliest `sent_at`, by the client's clock: when the epoch began."""
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
    """The largest `totals - at_start` of one report: what this epoch adds to the process's total."""
    base: Counts | None = None
    """What some exporter had counted before this epoch, as the client was told: counts where this one knows less."""
    dropped: tuple[int, int] = (0, 0)
    """Step records and bad ones that the client dropped."""
    not_stored: int = 0
    """Step records that the store had no room for."""
    host: str = ""
    streak: Streak = Streak()
    placed: bool = False
    """Whether it is known, and told, at which step the epoch took up."""
    offences: Mapping[str, Offences] = dataclasses.field(default_factory=dict)

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

    def changed(self, before: "EpochState | None") -> list[str]:
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
        return {name: getattr(self, name) for name in _EPOCH_PLAIN} | {
            "totals": _written(self.totals),
            "at_start": _written(self.at_start),
            "share": _written(self.share),
            "base": self.base and _written(self.base),
            "streak": [self.streak.first, self.streak.last, self.streak.at],
        }

    @classmethod
    def from_durable(cls, written: Mapping[str, Any], badness: Iterable[Badness]) -> "EpochState":
        """What was written."""
        rows = list(badness)

        def counts(name: str) -> Counts:
            *verdicts, not_finite = written[name]
            parameters = {row.parameter: n for row in rows if (n := getattr(row, name))}
            return Counts(tuple(verdicts), not_finite, parameters)

        return cls(
            **dict(written)
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
            }
        )


def _written(counts: Counts) -> list[int]:
    return [*counts.verdicts, counts.not_finite_steps]


@dataclasses.dataclass(frozen=True)  # without slots: what is derived from it is remembered in it
class ProcessState:
    """One process of a run: its epochs, and how the current one lives. Times by the exporter's clock."""

    process: int
    epochs: Mapping[str, EpochState]
    """By id, in their order."""
    current: str
    """The epoch that speaks for the process: health and gauges are its."""
    interval: float
    source: Source
    gauges: Gauges
    last_report: float
    """Of the current epoch, late ones aside."""
    gradient_norm: float | None = None
    """The last finite one."""
    last_step: float | None = None
    last_gradient_step: float | None = None
    last_record: tuple[int, float] | None = None
    """Step number and time, by the client's clock, of the current epoch's last step record."""
    durations: tuple[float, ...] = ()
    """Seconds per step of the last reports that brought steps, by the client's clock."""
    peaks: tuple[tuple[float, int], ...] = ()
    """When, and the longest streak then."""
    gradient_anchor: int | None = None
    """The state's step number at the current epoch's last gradient step, or at its start."""
    cleared: float = 0.0
    """When the last thing that was wrong ended."""
    ended: float | None = None
    skipping: float | None = None
    starved: float | None = None
    gave_up: tuple[float, float] | None = None
    """Since when, and when last."""
    conflict: tuple[float, float] | None = None
    """Since when, and when last, it and another life under its name contradicted each other."""
    stale: float | None = None
    """Since when it is said to be; known even after a restart of the exporter."""
    stalled: float | None = None

    @property
    def epoch(self) -> EpochState:
        """The current one."""
        return self.epochs[self.current]

    @cached_property
    def total(self) -> Counts:
        """Seen to run: the sum over its epochs of their share, on top of what is only known by hearsay (`base`)."""
        return self.before(None)

    @cached_property
    def seen(self) -> Counts:
        """The sum over its epochs of their share, hearsay left out."""
        return reduce(Counts.plus, (state.share for state in self.epochs.values()), NOTHING)

    def before(self, epoch: str | None) -> Counts:
        """What was counted before that epoch; before none: all of it."""
        counted = NOTHING
        for state, before, after in self.counted():
            if state.epoch == epoch:
                return before
            counted = after
        return counted

    def counted(self) -> Iterator[tuple[EpochState, Counts, Counts]]:
        """Its epochs in their order, each with what was counted before it and through it.

        A base is what was counted before its epoch as far as some exporter knew: at least that much. In the store that
        counted it, it never exceeds what the epochs before add up to; after the loss of a directory it stands for them.
        """
        through = NOTHING
        for state in self.epochs.values():
            before = through if state.base is None else through.maximum(state.base)
            through = before.plus(state.share)
            yield state, before, through

    def names_own_attempt(self, epoch: EpochState) -> bool:
        """Whether an epoch's attempt is called by one of this process's epochs: nothing told it its launch, then."""
        return epoch.attempt in self.epochs

    def taken_before(self, epoch: EpochState, step: int) -> int:
        """How often it had taken the step in the same attempt before that epoch: after a rollback it is another one."""
        return sum(
            state.attempt == epoch.attempt
            and state.order < epoch.order
            and state.at_start.steps < step <= state.totals.steps
            for state in self.epochs.values()
        )

    def durable(self) -> dict[str, Any]:
        """What to write: JSON's types only. Its epochs are written apart."""
        return {name: getattr(self, name) for name in _PROCESS_PLAIN} | {
            "source": self.source.model_dump(mode="json"),
            "gauges": self.gauges.model_dump(mode="json"),
        }

    @classmethod
    def from_durable(cls, process: int, written: Mapping[str, Any], epochs: Iterable[EpochState]) -> "ProcessState":
        """What was written."""

        def pair(name: str) -> Any:
            return written[name] and tuple(written[name])

        return cls(
            process=process,
            epochs=ordered(epochs),
            **dict(written)
            | {
                "source": Source.model_validate(written["source"]),
                "gauges": Gauges.model_validate(written["gauges"]),
                "durations": tuple(written["durations"]),
                "peaks": tuple((at, peak) for at, peak in written["peaks"]),
                "last_record": pair("last_record"),
                "gave_up": pair("gave_up"),
                "conflict": pair("conflict"),
            },
        )


def _plain(of: type[EpochState] | type[ProcessState], *left_out: str) -> tuple[str, ...]:
    """Fields that JSON can take as they are."""
    return tuple(field.name for field in dataclasses.fields(of) if field.name not in left_out)


_EPOCH_PLAIN: Final = _plain(EpochState, "totals", "at_start", "share", "base", "streak", "offences")
_PROCESS_PLAIN: Final = _plain(ProcessState, "process", "epochs", "source", "gauges")


def ordered(epochs: Iterable[EpochState]) -> dict[str, EpochState]:
    """By id, in their order."""
    return {state.epoch: state for state in sorted(epochs, key=lambda state: state.order)}


@dataclasses.dataclass(frozen=True)  # without slots, as ProcessState
class RunState:
    """One run."""

    run: str
    processes: Mapping[int, ProcessState]
    labels: tuple[str, ...] = ()
    """The first ten parameters to go bad, which keep a metric label of their own for the run's life."""

    @cached_property
    def total(self) -> Counts:
        """Seen to run: the sum over attempts of the largest process in each, field by field.

        What is known by hearsay only (a process's `base`) is of no known attempt, and several processes may have been
        told of the same. So what is added up through each attempt is at least what any process had counted by its end,
        its base included. That is never more than what was, and never less than what was said before.
        """
        began: dict[str, float] = {}
        for process in self.processes.values():
            for state in process.epochs.values():
                began[state.attempt] = min(state.began, began.get(state.attempt, state.began))
        places = {attempt: place for place, attempt in enumerate(sorted(began, key=lambda name: (began[name], name)))}
        largest, reached = [NOTHING] * len(places), [NOTHING] * len(places)
        for process in self.processes.values():
            own: dict[int, Counts] = {}
            furthest = 0
            for state, _, through in process.counted():
                place = places[state.attempt]
                own[place] = own.get(place, NOTHING).plus(state.share)
                furthest = max(furthest, place)
                reached[furthest] = reached[furthest].maximum(through)
            for place, counts in own.items():
                largest[place] = largest[place].maximum(counts)
        total = NOTHING
        for counts, through in zip(largest, reached, strict=True):
            total = total.plus(counts).maximum(through)
        return total
