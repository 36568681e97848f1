"""What the processes of one attempt said of the same steps: where they disagree, their parameters have diverged."""

from typing import Final

from optwrap_exporter.wire.requests import Report
from optwrap_exporter.wire.vocabulary import Outcome

_MOST_STEPS: Final = 8192
_MOST_GROUPS: Final = 256

_Group = tuple[str, str, int]
"""Run, attempt, and how many incarnations of the attempt came before: after a rollback the same steps are others."""


class Said:
    """The last steps of every attempt with several processes: the outcome, and the process that gave it first."""

    def __init__(self) -> None:
        self._groups: dict[_Group, dict[int, tuple[Outcome, int]]] = {}

    def disagreement(self, report: Report, generation: int) -> tuple[int, dict[int, Outcome], int] | None:
        """The first step of which another process said something else, who says what, and how many such steps."""
        first = self._groups.get((report.run, report.attempt, generation), {})
        differ = sorted(
            (step, outcome)
            for step, outcome in zip(report.steps.step, report.steps.outcome, strict=True)
            if step in first and first[step][0] != outcome and first[step][1] != report.process
        )
        if not differ:
            return None
        step, outcome = differ[0]
        other, process = first[step]
        return step, {process: other, report.process: outcome}, len(differ)

    def remember(self, report: Report, generation: int) -> None:
        """Take note of what a committed report says; the oldest is forgotten."""
        if report.source.process_count == 1 or not len(report.steps):
            return
        key = (report.run, report.attempt, generation)
        group = self._groups.pop(key, {})
        self._groups[key] = group  # the last one used is the last to go
        for step, outcome in zip(report.steps.step, report.steps.outcome, strict=True):
            group.setdefault(step, (outcome, report.process))
        while len(group) > _MOST_STEPS:
            del group[next(iter(group))]
        while len(self._groups) > _MOST_GROUPS:
            del self._groups[next(iter(self._groups))]

    def forget(self, run: str) -> None:
        """Everything of a run."""
        self._groups = {key: group for key, group in self._groups.items() if key[0] != run}
