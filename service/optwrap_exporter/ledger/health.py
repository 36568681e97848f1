"""Health: of a process, and of a run. Pure; every function says what holds and since when, by the exporter's clock.

The conditions in the order of `wire.HEALTHS`; the first that holds counts.
"""

from collections.abc import Iterable, Iterator
from statistics import median
from typing import Final

from optwrap_exporter.ledger.run import ProcessState, RunState
from optwrap_exporter.wire.requests import Gauges
from optwrap_exporter.wire.vocabulary import HEALTHS, Health

GAVE_UP: Final = 300.0
"""Seconds for which a step that was accepted though not finite is the worst there is to say."""
PEAK: Final = 300.0
"""Seconds over which the longest streak is taken."""
_SILENT: Final = 10.0
_STUCK: Final = 300.0

Verdict = tuple[Health, float]


def silence(interval: float) -> float:
    """Seconds without a report after which a process that reports every `interval` seconds is stale."""
    return max(3 * interval, _SILENT)


def patience(process: ProcessState) -> float:
    """Seconds without a step after which the process is stalled."""
    return max(_STUCK, 10 * median(process.durations)) if process.durations else _STUCK


def hunger(gauges: Gauges) -> int:
    """Steps without a gradient step after which a process is starved."""
    return max(100, 10 * (gauges.every_k or 1))


def stale_since(process: ProcessState, now: float, listening: float) -> float | None:
    """Since when it has been silent for too long; `listening`: since when this exporter could have heard it."""
    if process.stale is not None or process.ended is not None:
        return process.stale
    since = max(process.last_report, listening) + silence(process.interval)
    return since if now >= since else None


def stalled_since(process: ProcessState, now: float, listening: float) -> float | None:
    """Since when it has reported for too long without a step."""
    if process.stalled is not None or process.ended is not None:
        return process.stalled
    moved = max(process.last_step or 0.0, process.incarnation.first_report, listening)
    if now < moved + _STUCK:  # no patience is shorter; to know it exactly takes a median
        return None
    since = moved + patience(process)
    return since if now >= since else None


def of_process(process: ProcessState, now: float, listening: float) -> Verdict:
    """What holds of a process, and since when."""
    return next(_conditions(process, now, listening))


def _conditions(process: ProcessState, now: float, listening: float) -> Iterator[Verdict]:
    cleared = process.cleared
    if process.conflict is not None:
        since, last = process.conflict
        until = last + silence(process.interval)
        if now < until:
            yield "conflict", since
        cleared = max(cleared, until)
    if process.gave_up is not None:
        since, last = process.gave_up
        if now < last + GAVE_UP:
            yield "gave_up", since
        cleared = max(cleared, last + GAVE_UP)
    if process.ended is not None:
        yield "failed" if process.incarnation.state == "failed" else "finished", process.ended
    if (stale := stale_since(process, now, listening)) is not None:
        yield "stale", stale
    if (stalled := stalled_since(process, now, listening)) is not None:
        yield "stalled", stalled
    if process.starved is not None:
        yield "starved", process.starved
    if process.skipping is not None:
        yield "skipping", process.skipping
    if process.incarnation.share.steps == 0:
        yield "starting", process.incarnation.first_report
    yield "ok", max(cleared, process.incarnation.first_report)


def relevant(run: RunState, now: float) -> list[ProcessState]:
    """The processes that are the run now, by index: those of its newest attempt, and others that outlive its start.

    What a killed attempt left behind, and the next one does not have, is no part of the run's health.
    """
    newest = max(run.processes.values(), key=lambda process: process.incarnation.first_report).incarnation.attempt
    began = attempt_began(run, newest)

    def belongs(process: ProcessState) -> bool:
        grace = silence(process.interval)
        return (
            process.incarnation.attempt == newest
            or process.last_report + grace > now
            or process.last_report > began + grace
        )

    return [process for _, process in sorted(run.processes.items()) if belongs(process)]


def attempt_began(run: RunState, attempt: str) -> float:
    """When the first report of an attempt came."""
    return min(
        state.first_report
        for process in run.processes.values()
        for state in process.incarnations.values()
        if state.attempt == attempt
    )


def of_run(run: RunState, now: float, listening: float) -> Verdict:
    """What holds of a run: of its worst process; or degraded, where some are missing. Finished only when all are."""
    members = relevant(run, now)
    return overall(
        [of_process(process, now, listening) for process in members],
        expected=process_count(members),
        began=min(process.incarnation.first_report for process in members),
    )


def process_count(members: Iterable[ProcessState]) -> int:
    """How many processes the job says it has: as the one that started last says."""
    return max(members, key=lambda process: process.incarnation.first_report).source.process_count


def overall(verdicts: list[Verdict], *, expected: int, began: float) -> Verdict:
    """What holds of a run whose processes are in these healths.

    Args:
      verdicts: one for each process that reports.
      expected: how many there should be.
      began: when the first of them did.
    """
    healths = {health for health, _ in verdicts}
    if healths != {"finished"}:
        healths.discard("finished")
    worst = min(healths, key=HEALTHS.index)
    missing = len(verdicts) < expected
    if missing and HEALTHS.index(worst) > HEALTHS.index("degraded"):
        return "degraded", began
    times = [since for health, since in verdicts if health == worst]
    # A run is ill from the first process on, and well, or finished, with the last.
    return worst, max(times) if worst in {"ok", "finished"} else min(times)
