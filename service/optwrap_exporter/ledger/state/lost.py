"""What trouble cost a process: steps that brought nothing, and the time they took ("badput"). Pure.

    skipped   every step whose gradients were discarded: the sum of optwrap_skipped_steps_total over its reasons
    redone    every step, but for skipped ones, that an incarnation takes again after a rollback
    starved   every accumulated step from one gradient step to the next, if the process was starved in between

A step is counted when a report brings it: a redone one when it is taken again, the first starved ones when the process
is found to be starved. Skipped steps of a starved process are `skipped`. An accumulated step may be counted twice:
as starved, and as redone when it is taken again.

A step's place is its number without the skipped steps before it. So steps that were skipped are not redone by those
that take their place after a rollback. `redone` is the sum of the lengths of all incarnations, less the length of their
union, which is the same in whatever order the reports arrive, and so is `skipped`. `starved` depends on the reports in
order alone. A process whose incarnations leave more than `ranges.MOST` gaps between them fills the smallest ones.

The seconds of a step are the process's own: the median of its last reports when the step is counted. Before it is
known, they are the time since the report before, divided by the steps in it. None of these counts ever falls.
"""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from optwrap_exporter.ledger import ranges
from optwrap_exporter.ledger.ranges import Ranges
from optwrap_exporter.ledger.state.counters import Counts
from optwrap_exporter.ledger.state.incarnation import IncarnationState
from optwrap_exporter.wire.vocabulary import LostReason


class Lost(NamedTuple):
    """The lost steps of a process so far, and what the next ones are counted from."""

    skipped: int = 0
    redone: int = 0
    starved: int = 0
    skipped_seconds: float = 0.0
    redone_seconds: float = 0.0
    starved_seconds: float = 0.0
    taken: Ranges = ()
    """The places of all steps that were taken and not skipped."""
    accumulated: int = 0
    """Accumulated steps since the last gradient step that are not counted as starved yet."""

    @property
    def steps(self) -> Mapping[LostReason, int]:
        """Steps by reason."""
        return {"skipped": self.skipped, "redone": self.redone, "starved": self.starved}

    @property
    def seconds(self) -> Mapping[LostReason, float]:
        """Seconds by reason."""
        return {"skipped": self.skipped_seconds, "redone": self.redone_seconds, "starved": self.starved_seconds}

    @classmethod
    def from_durable(cls, written: list[Any]) -> "Lost":
        """The value that was written as a JSON array."""
        lost = cls(*written)
        return lost._replace(taken=tuple((first, last) for first, last in lost.taken))


NOTHING_LOST: Final = Lost()


def count_skipped_and_redone(lost: Lost, known: IncarnationState | None, after: IncarnationState) -> Lost:
    """Count the skipped and redone steps that a report of an incarnation brings, without the seconds.

    Args:
      lost: the losses before the report.
      known: the incarnation before the report; None if it is new.
      after: the incarnation after it.
    """
    new, base = after.totals, after.baseline
    end, pieces = new.kept, []
    if known is None:
        skipped = new.skipped - base.skipped
        pieces.append((base.kept + 1, end))
    else:
        old = known.totals
        skipped = new.skipped - old.skipped
        pieces.append((old.kept + 1, end))
        if known.baseline is not base:  # it counts from an earlier step now
            skipped += known.baseline.skipped - base.skipped
            pieces.append((base.kept + 1, known.baseline.kept))
    taken, redone = lost.taken, 0
    for first, last in pieces:
        if first > last:
            continue
        if taken and taken[-1][1] + 1 == first:  # the usual case
            taken = (*taken[:-1], (taken[-1][0], last))
            continue
        redone += ranges.count(taken, first, last)
        taken = ranges.union([*taken, (first, last)])
        if len(taken) > ranges.MOST:
            taken = ranges.joined(taken)
    if taken is lost.taken and not skipped:
        return lost
    return lost._replace(skipped=lost.skipped + skipped, redone=lost.redone + redone, taken=taken)


def count_starved(lost: Lost, gained: Counts, *, entered: bool, without_gradient_step: int, starved: bool) -> Lost:
    """Count the starved steps that a report of the current incarnation brings, without the seconds.

    Args:
      lost: the losses before the report.
      gained: what the report adds.
      entered: whether its incarnation has become the current one.
      without_gradient_step: steps since the last gradient step, after the report.
      starved: whether the process is starved, after the report.
    """
    accumulated = gained.outcomes.accumulated
    if gained.gradient_steps:
        accumulated = min(accumulated, without_gradient_step)
    elif not entered:
        accumulated += lost.accumulated
    if starved and accumulated:
        return lost._replace(starved=lost.starved + accumulated, accumulated=0)
    return lost if accumulated == lost.accumulated else lost._replace(accumulated=accumulated)


def with_seconds(before: Lost, after: Lost, seconds_per_step: float) -> Lost:
    """`after` with the seconds of the steps lost since `before`."""
    return after._replace(
        skipped_seconds=before.skipped_seconds + (after.skipped - before.skipped) * seconds_per_step,
        redone_seconds=before.redone_seconds + (after.redone - before.redone) * seconds_per_step,
        starved_seconds=before.starved_seconds + (after.starved - before.starved) * seconds_per_step,
    )


def more_lost(before: Lost, after: Lost) -> bool:
    """Whether more steps are lost than before."""
    was, now = (before.skipped, before.redone, before.starved), (after.skipped, after.redone, after.starved)
    return was != now
