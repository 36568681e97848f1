"""Detects two incarnations that report under one name at the same time. Pure.

Two incarnations are in conflict if each was alive after the other had begun and neither has ended. An incarnation is
alive if several reports in a row arrived at the pace at which they were sent. So clocks of different hosts are never
compared. Neither a killed job nor a backlog that arrives all at once is a conflict.
"""

from collections.abc import Iterator
from itertools import chain

from optwrap_exporter.ledger.state.incarnation import IncarnationState
from optwrap_exporter.ledger.state.process import ProcessState
from optwrap_exporter.ledger.state.run import RunState


def rival_of(
    run: RunState, process: ProcessState, incarnation: IncarnationState, now: float
) -> IncarnationState | None:
    """Another incarnation that is in conflict with this one; None if there is none.

    Args:
      run: the run. Its state of this process is not used.
      process: the process, with the report merged.
      incarnation: the report's incarnation, with the report merged.
      now: the exporter's clock.
    """
    if not incarnation.alive or incarnation.ended:
        return None

    def in_conflict(other: IncarnationState) -> bool:
        return (
            other.alive
            and not other.ended
            and now < other.latest_arrival + process.stale_after
            and other.heartbeats[0].time > incarnation.first_report
            and incarnation.heartbeats[0].time > other.first_report
        )

    candidates = chain(_in_process(process, incarnation), _in_other_processes(run, process, incarnation, now))
    return next(filter(in_conflict, candidates), None)


def _in_process(process: ProcessState, incarnation: IncarnationState) -> Iterator[IncarnationState]:
    """Other incarnations of the process. Within one attempt both must take steps.

    Reports from before a rollback can be sent after it, but their totals no longer rise.
    """
    for other in process.incarnations.values():
        if other.incarnation == incarnation.incarnation:
            continue
        if other.attempt != incarnation.attempt or (other.stepping and incarnation.stepping):
            yield other


def _in_other_processes(
    run: RunState, process: ProcessState, incarnation: IncarnationState, now: float
) -> Iterator[IncarnationState]:
    """Current incarnations of other processes that are known to belong to another launch."""
    if incarnation.own_attempt or not any(
        attempt != incarnation.attempt and now < at + process.stale_after for attempt, at in run.last_reports.items()
    ):
        return
    for beside in run.processes.values():
        other = beside.incarnation
        if beside.process == process.process or other.attempt == incarnation.attempt:
            continue
        if not other.own_attempt:
            yield other
