"""Detects that processes of one attempt report different outcomes of a step: their parameters have diverged."""

import dataclasses
from typing import Final, NamedTuple

from optwrap_exporter.wire.requests import Report
from optwrap_exporter.wire.vocabulary import Outcome

_MOST_STEPS: Final = 8192
_MOST_GROUPS: Final = 256
_GROUPS_OF_RUN: Final = 2
"""Groups of one run. While some processes have rolled back and others have not, or two jobs report, there are two."""


class _Group(NamedTuple):
    """Identifies steps that can be compared. After a rollback the same step number means another step."""

    run: str
    attempt: str
    generation: int


class _Recorded(NamedTuple):
    """The outcome of a step, and the process that reported it first."""

    outcome: Outcome
    process: int


@dataclasses.dataclass(frozen=True, slots=True)
class Disagreement:
    """Steps whose outcome in a report differs from the outcome that another process reported."""

    step: int
    """The first such step."""
    outcomes: dict[int, Outcome]
    """By process, the outcome of that step."""
    steps: int
    """Number of such steps in the report."""


class StepOutcomes:
    """The outcomes of the last steps of every run that has several processes. In memory only."""

    def __init__(self) -> None:
        self._groups: dict[_Group, dict[int, _Recorded]] = {}
        self._staged: list[tuple[dict[int, _Recorded], int]] = []
        """The entries that are not committed yet."""

    def disagreement(self, report: Report, generation: int) -> Disagreement | None:
        """The steps on which the report and an earlier one of another process disagree; None if there are none."""
        known = self._groups.get(_Group(report.run, report.attempt, generation))
        if not known:
            return None
        differ = sorted(
            (step, outcome)
            for step, outcome in zip(report.steps.step, report.steps.outcome, strict=True)
            if step in known and known[step].outcome != outcome and known[step].process != report.process
        )
        if not differ:
            return None
        step, outcome = differ[0]
        return Disagreement(step, {known[step].process: known[step].outcome, report.process: outcome}, len(differ))

    def stage(self, report: Report, generation: int) -> None:
        """Remember the outcomes of a report that is about to be committed, until `adopt` or `discard`."""
        if report.source.process_count == 1 or not len(report.steps):
            return
        key = _Group(report.run, report.attempt, generation)
        group = self._groups.pop(key, None)
        if group is None:
            group = {}
            self._make_way(report.run)
        self._groups[key] = group  # the group used last is forgotten last
        recorded = {outcome: _Recorded(outcome, report.process) for outcome in set(report.steps.outcome)}
        for step, outcome in zip(report.steps.step, report.steps.outcome, strict=True):
            if step not in group:
                group[step] = recorded[outcome]
                self._staged.append((group, step))

    def _make_way(self, run: str) -> None:
        """Forget the oldest groups of a run that is to have one more."""
        of_run = [key for key in self._groups if key.run == run]
        for key in of_run[: max(0, len(of_run) + 1 - _GROUPS_OF_RUN)]:
            del self._groups[key]

    def adopt(self) -> None:
        """Keep what is staged. The oldest outcomes are forgotten."""
        for group in {id(group): group for group, _ in self._staged}.values():
            while len(group) > _MOST_STEPS:
                del group[next(iter(group))]
        self._staged.clear()
        while len(self._groups) > _MOST_GROUPS:
            del self._groups[next(iter(self._groups))]

    def discard(self) -> None:
        """Forget what is staged."""
        for group, step in self._staged:
            del group[step]
        self._staged.clear()

    def forget(self, run: str) -> None:
        """Forget a run."""
        self._groups = {key: group for key, group in self._groups.items() if key.run != run}
