"""The launches of a run that failed one after the other, up to the one that runs now. Pure."""

from collections.abc import Iterable
from typing import Final, NamedTuple

from optwrap_exporter.ledger.state.compaction import IncarnationSum
from optwrap_exporter.ledger.state.incarnation import IncarnationState
from optwrap_exporter.ledger.state.process import ProcessState
from optwrap_exporter.ledger.state.run import RunState

LOOP: Final = 3
"""So many launches in a row are a crash loop. The alert OptwrapCrashLoop counts as many new attempts."""

SOON: Final = 3600.0
"""Seconds: a lost launch counts only if the next one began so soon after it. A person may end one for good."""


class Failures(NamedTuple):
    """The launches in a row that failed right before the current one, which is not past the last one's end yet."""

    launches: int
    lost: bool
    """Whether one of them was lost: it sent no final report."""
    step: int | None
    """Where the last of them ended; None before its first step."""
    reason: str | None
    """Why it ended, if it said so."""
    since: float
    """When it sent its last report, by the exporter's clock."""
    acknowledged: bool
    """Whether somebody acknowledged the incident of its end."""

    @property
    def loop(self) -> bool:
        """Whether they are a crash loop that nobody has acknowledged."""
        return self.launches >= LOOP and not self.acknowledged


def before(run: RunState, members: Iterable[ProcessState]) -> Failures | None:
    """The failures right before the current launch; None if there are none, or the launch is past them.

    A launch that was lost counts only if the next one began soon, and no further: a job that is preempted again and
    again, but makes progress, does not fail. It counts the launches that the process still keeps one by one.

    Args:
      run: the run.
      members: the processes that determine its health.
    """
    process = min(members, key=lambda one: (-one.incarnation.first_report, one.process))
    ends = {part.attempt: part for part in process.parts}
    ends.pop(process.incarnation.attempt)
    found: list[IncarnationSum | IncarnationState] = []
    began, started = process.incarnation.began_at, process.incarnation.first_report
    for part in reversed(ends.values()):
        further = part.began_at is not None and began is not None and began > part.began_at
        if part.state != "failed" and (part.ended or further or started > part.last_report + SOON):
            break
        found.append(part)
        began, started = part.began_at if part.began_at is not None else began, part.first_report
    if not found:
        return None
    last = found[0]
    known = (one for one in (*run.past_incidents, *run.incidents) if one.kind in {"failed", "stale"})
    incident = max((one for one in known if one.attempt == last.attempt), key=lambda one: one.id, default=None)
    end = _end(last) if incident is None else max(_end(last), incident.last_step or 0)
    if process.incarnation.totals.steps > end:
        return None
    reason = last.reason if incident is None else incident.reason
    acknowledged = incident is not None and incident.state == "acknowledged"
    lost = any(part.state != "failed" for part in found)
    return Failures(len(found), lost, end or None, reason, last.last_report, acknowledged)


def _end(part: IncarnationSum | IncarnationState) -> int:
    return part.last_step if isinstance(part, IncarnationSum) else part.totals.steps
