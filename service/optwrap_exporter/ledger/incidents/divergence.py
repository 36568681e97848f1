"""Makes incidents of divergence: one of each attempt, with all processes that disagree with the others."""

from typing import Any, Final

from optwrap_exporter.ledger import ranges
from optwrap_exporter.ledger.change.divergence import Divergence
from optwrap_exporter.ledger.incidents.changes import IncidentChanges
from optwrap_exporter.ledger.state.incarnation import IncarnationState
from optwrap_exporter.ledger.state.run import RunState
from optwrap_exporter.wire.requests import Report
from optwrap_exporter.wire.vocabulary import to_json_number

START_SECONDS: Final = 30.0
"""Seconds in which the processes of a job send their first reports."""


def add_divergence(changes: IncidentChanges, run: RunState, incarnation: IncarnationState, found: Divergence) -> None:
    """Add a divergence.

    Args:
      changes: the incidents.
      run: the run, with the report that shows it.
      incarnation: the report's incarnation.
      found: the divergence.
    """
    known = [one for one in changes.live(["diverged"]) if one.attempt == incarnation.attempt]
    acknowledged = [one for one in known if one.state == "acknowledged"]
    odd = [p for p in found.odd if not any(ranges.contains(one.processes, p) for one in acknowledged)]
    if not odd:
        return
    one = next((one for one in known if one.state == "open"), None)
    if one is None:
        one = changes.open(
            "diverged",
            incarnation.attempt,
            incarnation.generation,
            changes.now,
            last_clean_step=found.step - 1,
            **_named(run, found, odd[0]),
        )
    steps = ranges.of(found.steps)
    more = one.with_steps(steps, ()).compact()
    clean = found.step - 1 if one.last_clean_step is None else min(one.last_clean_step, found.step - 1)
    changes.keep(more)
    changes.put(
        more,
        processes=ranges.union([*one.processes, *ranges.of(odd)]),
        updated=changes.now if more.bad != one.bad else one.updated,
        last_clean_step=clean,
        figures={**one.figures, "others": max(one.figures["others"], found.others)},
    )


def _named(run: RunState, found: Divergence, odd: int) -> dict[str, Any]:
    """The process, its host and device, and what it reported beside the others."""
    votes = sorted(found.votes.items())
    figures = {
        "process": odd,
        "step": found.step,
        "others": found.others,
        "outcomes": {str(process): vote.outcome for process, vote in votes},
        "norms": {str(process): to_json_number(vote.norm) for process, vote in votes},
    }
    process = run.processes.get(odd)
    if process is None:
        return {"figures": figures}
    return {"host": process.source.host or None, "device": process.source.device_kind or None, "figures": figures}


def voters(run: RunState, report: Report, now: float) -> int:
    """How many processes of the report's attempt can be expected to report its steps.

    These are the ones that report; soon after the first of them has, all processes of the job.
    """
    mine = [process for process in run.processes.values() if process.incarnation.attempt == report.attempt]
    began = min((process.incarnation.first_report for process in mine), default=now)
    if now < began + START_SECONDS:
        return report.source.process_count
    others = (process for process in mine if process.process != report.process)
    return 1 + sum(one.conditions.ended is None and one.conditions.stale is None for one in others)
