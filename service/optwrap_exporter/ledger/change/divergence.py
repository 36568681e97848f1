"""Detects that processes of one attempt disagree about a step: their parameters have diverged.

They disagree if they report different outcomes of the step, or norms that differ by more than NORM_TOLERANCE. Of three
or more processes, those that disagree with the majority have diverged; of two, both are named. A disagreement is open
until a majority agrees, or all processes that report have reported the step.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Final, NamedTuple

from optwrap_exporter.wire.requests import Report
from optwrap_exporter.wire.vocabulary import Outcome

NORM_TOLERANCE: Final = 0.01
"""The largest relative difference between the norms that processes report of one step."""
_MOST_STEPS: Final = 8192
_MOST_GROUPS: Final = 256
_GROUPS_OF_RUN: Final = 2
"""Groups of one run. While some processes have rolled back and others have not, or two jobs report, there are two."""
_MOST_DISPUTED: Final = 64
"""Steps of a group about which a disagreement is open: the first ones."""


class _GroupName(NamedTuple):
    """Identifies steps that can be compared. After a rollback the same step number means another step."""

    run: str
    attempt: str
    generation: int


class Vote(NamedTuple):
    """What a process reported of a step."""

    outcome: Outcome
    norm: float

    def agrees(self, other: "Vote") -> bool:
        """Whether both can be of the same step of one training. Only finite norms are compared."""
        if self.outcome != other.outcome:
            return False
        largest = max(self.norm, other.norm)
        differ = abs(self.norm - other.norm) > NORM_TOLERANCE * largest
        return not differ or not math.isfinite(self.norm) or not math.isfinite(other.norm)


class _Party(NamedTuple):
    """Processes that agree about a step."""

    vote: Vote
    members: set[int]


class _Entry(NamedTuple):
    """A step, by the process that reported it first."""

    outcome: Outcome
    norm: float
    process: int

    @property
    def vote(self) -> Vote:
        return Vote(self.outcome, self.norm)


@dataclasses.dataclass(frozen=True, slots=True)
class Divergence:
    """Processes that disagree with most others."""

    step: int
    """The first step on which they did."""
    steps: tuple[int, ...]
    """Every such step of this report."""
    odd: tuple[int, ...]
    """The processes that diverged. Without a majority all that disagree."""
    votes: Mapping[int, Vote]
    """What each of `odd`, and one of the others, reported of the step. At most 16 processes."""
    others: int
    """How many processes agree with each other; 0 if there is no majority."""


@dataclasses.dataclass(frozen=True, slots=True)
class Compared:
    """What the comparison of a report found."""

    differ: Mapping[int, Vote]
    """By step, what the report says other than the process that reported it first."""
    divergence: Divergence | None
    """None while it is open who has diverged."""


class _Group:
    """The steps that can be compared."""

    def __init__(self) -> None:
        self.steps: dict[int, _Entry] = {}
        self.spans: dict[int, tuple[int, int]] = {}
        """By process, the first and the last step that it reported."""
        self.disputed: dict[int, dict[int, Vote]] = {}
        """By step, then process, the votes that differ from the one in `steps`."""
        self.odd: frozenset[int] = frozenset()
        """The processes that have diverged."""


class StepOutcomes:
    """The outcomes and norms of the last steps of every run that has several processes. In memory only."""

    def __init__(self) -> None:
        self._groups: dict[_GroupName, _Group] = {}
        self._touched: set[_GroupName] = set()
        """The groups that have something that is not committed yet."""

    def compare(self, report: Report, generation: int, voters: Callable[[], int]) -> Compared | None:
        """Compare a report with the earlier ones of other processes. Changes nothing.

        Args:
          report: the report.
          generation: the generation of its incarnation.
          voters: returns the number of processes of the attempt that report.

        Returns:
          None if they agree, as is usual.
        """
        if not report.replicated or not report.steps.step:
            return None
        group = self._groups.get(_GroupName(report.run, report.attempt, generation))
        if group is None:
            return None
        differ = dict(self._differing(group, report))
        if group.odd and (again := self._again(group, report, differ)) is not None:
            return Compared({}, again)
        if not differ and not group.disputed:
            return None
        return Compared(differ, self._judge(group, report, differ, voters))

    def _again(self, group: _Group, report: Report, differ: Mapping[int, Vote]) -> Divergence | None:
        """The divergence of a process that has diverged before: this one, or one that reported the same steps first."""
        others = sum(process not in group.odd for process in group.spans)
        if report.process in group.odd:
            if not differ:
                return None
            first = min(differ)
            votes = {report.process: differ[first], group.steps[first].process: group.steps[first].vote}
            return Divergence(first, tuple(sorted(differ)), (report.process,), votes, others)
        found: dict[int, Vote] = {}
        odd = -1
        columns = report.steps
        for step, outcome, norm in zip(columns.step, columns.outcome, columns.norm, strict=True):
            entry = group.steps.get(step)
            if entry is None or entry.process not in group.odd or (found and entry.process != odd):
                continue
            if not entry.vote.agrees(Vote(outcome, norm)):
                odd, found[step] = entry.process, entry.vote
        if not found or differ:
            return None
        first = min(found)
        return Divergence(first, tuple(sorted(found)), (odd,), {odd: found[first]}, others)

    def _differing(self, group: _Group, report: Report) -> Iterator[tuple[int, Vote]]:
        known, process, odd = group.steps, report.process, group.odd
        columns = report.steps
        for step, outcome, norm in zip(columns.step, columns.outcome, columns.norm, strict=True):
            if (entry := known.get(step)) is None:
                continue
            if entry[0] == outcome and (entry[1] == norm or abs(entry[1] - norm) <= NORM_TOLERANCE * norm):
                continue  # the usual case, without the exact comparison; by index, which is faster than by name
            if entry.process == process or (entry.process in odd and process not in odd):
                continue
            if not entry.vote.agrees(vote := Vote(outcome, norm)):
                yield step, vote

    def _judge(
        self, group: _Group, report: Report, differ: Mapping[int, Vote], voters: Callable[[], int]
    ) -> Divergence | None:
        """Who has diverged, by the first step on which that can be told; None if it is still open."""
        mine = (report.steps.step[0], report.steps.step[-1])
        spans = {**group.spans, report.process: _joined(group.spans.get(report.process), mine)}
        expected = voters()
        for step in sorted({*group.disputed, *differ}):
            if step not in group.steps:
                continue
            votes = dict(group.disputed.get(step, {}))
            if step in differ:
                votes[report.process] = differ[step]
            entry = group.steps[step]
            parties = [_Party(entry.vote, {p for p, (a, b) in spans.items() if a <= step <= b and p not in votes})]
            for process, vote in votes.items():
                party = next((one for one in parties if one.vote.agrees(vote)), None)
                if party is None:
                    parties.append(_Party(vote, {process}))
                else:
                    party.members.add(process)
            cast = sum(len(one.members) for one in parties)
            parties.sort(key=lambda one: (-len(one.members), min(one.members, default=0)))
            if len(parties) == 1:
                continue
            largest, *smaller = parties
            majority = len(largest.members)
            if majority >= 2 and 2 * majority > expected:
                odd, others = [p for one in smaller for p in one.members], majority
            elif cast >= expected:
                odd, others = [p for one in parties for p in one.members], 0
            else:
                continue
            named = {p: one.vote for one in parties for p in sorted(one.members)[: 1 if others else None]}
            named |= {p: one.vote for one in smaller for p in sorted(one.members)}
            steps = tuple(s for s in sorted({*group.disputed, *differ}) if s >= step)
            return Divergence(step, steps, tuple(sorted(odd)), dict(list(named.items())[:16]), others)
        return None

    def stage(self, report: Report, generation: int, compared: Compared | None) -> None:
        """Remember a report that is about to be committed, until `adopt` or `discard`."""
        columns = report.steps
        if report.source.process_count == 1 or not report.replicated or not columns.step:
            return
        key = _GroupName(report.run, report.attempt, generation)
        group = self._groups.pop(key, None)
        if group is None:
            group = _Group()
            self._make_way(report.run)
        self._groups[key] = group  # the group used last is forgotten last
        self._touched.add(key)
        if compared is not None:
            self._stage_votes(group, report.process, compared)
        known, process, odd = group.steps, report.process, group.odd
        group.spans[process] = _joined(group.spans.get(process), (columns.step[0], columns.step[-1]))
        if not odd and all(map(known.__contains__, columns.step)):  # as usual, but for the first process
            return
        for step, outcome, norm in zip(columns.step, columns.outcome, columns.norm, strict=True):
            before = known.get(step)
            if before is None or (before.process in odd and process not in odd):
                known[step] = _Entry(outcome, norm, process)

    def _stage_votes(self, group: _Group, process: int, compared: Compared) -> None:
        if compared.divergence is not None:
            group.odd |= frozenset(compared.divergence.odd)
            group.disputed.clear()
            return
        for step, vote in compared.differ.items():
            if step in group.disputed or len(group.disputed) < _MOST_DISPUTED:
                group.disputed.setdefault(step, {})[process] = vote

    def _make_way(self, run: str) -> None:
        """Forget the oldest groups of a run that is to have one more."""
        of_run = [key for key in self._groups if key.run == run]
        for key in of_run[: max(0, len(of_run) + 1 - _GROUPS_OF_RUN)]:
            del self._groups[key]

    def adopt(self) -> None:
        """Keep what is staged. The oldest steps are forgotten."""
        for key in self._touched:
            group = self._groups.get(key)
            while group is not None and len(group.steps) > _MOST_STEPS:
                step = next(iter(group.steps))
                del group.steps[step]
                group.disputed.pop(step, None)
        self._touched.clear()
        while len(self._groups) > _MOST_GROUPS:
            del self._groups[next(iter(self._groups))]

    def discard(self) -> None:
        """Forget what is staged, and the groups that it is in: they begin anew with the next report."""
        for key in self._touched:
            self._groups.pop(key, None)
        self._touched.clear()

    def forget(self, run: str) -> None:
        """Forget a run."""
        self._groups = {key: group for key, group in self._groups.items() if key.run != run}


def _joined(one: tuple[int, int] | None, other: tuple[int, int]) -> tuple[int, int]:
    if one is None:
        return other
    (first, last), (also_first, also_last) = one, other
    return min(first, also_first), max(last, also_last)
