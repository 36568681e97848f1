"""Conflicts: two lives under one name at the same time. Pure.

Two incarnations contradict each other when each was plainly alive after the other had begun, and neither has ended. Alive is
who keeps time: several reports in a row came as far apart as they were sent. So no host's clock is compared with
another's, what a killed job leaves behind is no life, and a backlog that comes at once is none.
"""

import dataclasses
from collections.abc import Iterator

from optwrap_exporter.ledger import events, health
from optwrap_exporter.ledger.events import Occurrence
from optwrap_exporter.ledger.incarnation import IncarnationState
from optwrap_exporter.ledger.run import ProcessState, RunState


def judge(
    run: RunState, process: ProcessState, incarnation: IncarnationState, now: float
) -> tuple[ProcessState, Occurrence | None]:
    """The process with its conflict as it is after a report in order, and the event where that begins.

    Args:
      run: the run; what it holds of this process is not looked at.
      process: the process with the report in it.
      incarnation: the report's incarnation, likewise.
      now: the exporter's clock.
    """
    if incarnation.ended:
        return dataclasses.replace(process, conflict=None) if process.conflict else process, None
    rival = next(_rivals(run, process, incarnation, now), None) if incarnation.alive else None
    if rival is None:
        return process, None
    lasting = process.conflict is not None and now < process.conflict[1] + health.silence(process.interval)
    since = process.conflict[0] if lasting and process.conflict else now
    older, newer = sorted((incarnation, rival), key=lambda state: state.first_report)
    began = None if lasting else events.of_conflict(process.process, older, newer, now)
    return dataclasses.replace(process, conflict=(since, now)), began


def _rivals(
    run: RunState, process: ProcessState, incarnation: IncarnationState, now: float
) -> Iterator[IncarnationState]:
    """Incarnations that contradict this one: of its own process, and of others known to be of another launch."""

    def contradicts(other: IncarnationState) -> bool:
        return (
            other.alive
            and not other.ended
            and now < other.heard + health.silence(process.interval)
            and other.beats[0].time > incarnation.first_report
            and incarnation.beats[0].time > other.first_report
        )

    for other in process.incarnations.values():
        # Reports of before a rollback may be made after it, but their totals stand still.
        another = other.attempt != incarnation.attempt or (other.moving and incarnation.moving)
        if other.incarnation != incarnation.incarnation and another and contradicts(other):
            yield other
    if process.names_own_attempt(incarnation):
        return
    for beside in run.processes.values():
        other = beside.incarnation
        if beside.process == process.process or other.attempt == incarnation.attempt or beside.names_own_attempt(other):
            continue
        if contradicts(other):
            yield other
