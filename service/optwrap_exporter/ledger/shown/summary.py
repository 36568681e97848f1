"""The verdict on a run or a process in one sentence: what is wrong, with which process, since which step, what to do.

Page, terminal and API show the same sentence. Pure. A duration is as of the time that is passed in, and rounded down,
so that it never contradicts a more exact one. The sentence on a process has none: its row is shown until it changes.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from optwrap_exporter.ledger import ranges
from optwrap_exporter.ledger.change import failures
from optwrap_exporter.ledger.change.health import HealthSince, Judged, cause
from optwrap_exporter.ledger.incidents import summary as incidents
from optwrap_exporter.ledger.state.conditions import Seen
from optwrap_exporter.ledger.state.process import ProcessState
from optwrap_exporter.ledger.state.run import RunState
from optwrap_exporter.wire.vocabulary import INCIDENT_OF, Health, Scope

RUNBOOKS: Final[Mapping[Health, str]] = MappingProxyType(
    {health: incidents.RUNBOOKS[kind] for health, kind in INCIDENT_OF.items()} | {"degraded": "OptwrapProcessMissing"}
)
"""By health, its heading in deploy/runbooks.md."""
_WELL: Final[frozenset[Health]] = frozenset({"ok", "finished", "starting"})
_GAPS_NAMED: Final = 3
_LOOK: Final = "see whether the training still runs, and start it again if not"


def of_run(
    run: RunState, current: HealthSince, members: Sequence[Judged], leading: ProcessState, *, now: float, scope: Scope
) -> str:
    """The verdict on a run.

    Args:
      run: the run.
      current: its health.
      members: its processes with their healths.
      leading: the process whose gauges it shows.
      now: the exporter's clock.
      scope: what the exporter hears.
    """
    if (incident := cause(run, current.health)) is not None:
        return incidents.verdict(incident)
    expected = max(members, key=lambda one: one.process.incarnation.first_report).process.source.process_count
    if current.health == "degraded":
        return _missing([one.process.process for one in members], expected)
    found = [one for one in members if one.health.health == current.health]
    if current.health in _WELL or not found:  # without one it is the next launch of a crash loop
        partial = len(members) < expected and scope == "host"
        return _well(run, current.health, members, leading) + (
            f"; {len(members):,} of {expected:,} processes report here" * partial
        )
    found = [one for one in found if not one.acknowledged] or found
    shown = min(found, key=lambda one: (one.process.incarnation.reason is None, one.health.since, one.process.process))
    reasons = {one.process.incarnation.reason for one in found}
    who = _who(shown.process, len(found), len(members) if len(reasons) == 1 else 0)
    if current.health == "stale" and len(found) < len(members):
        silent = f"{len(found):,} of {len(members):,} processes silent for {duration(now - shown.health.since)}"
        return f"{silent}: {who}, {_after(shown.process)}; {_LOOK}"
    text = _SENTENCES[current.health](shown.process, who, f" for {duration(now - shown.health.since)}")
    again = max((one.times for one in run.incidents if one.kind == current.health), default=1)
    return text if again == 1 else f"{text}; {again:,} attempts in a row failed like this"


def runbook(of: Health, members: Iterable[Judged]) -> str | None:
    """The heading in deploy/runbooks.md for a run of that health; None if nothing is wrong with it."""
    if of == "failed" and all(one.health.health != of for one in members):
        return "OptwrapCrashLoop"
    return RUNBOOKS.get(of)


def of_process(run: RunState, process: ProcessState, current: HealthSince) -> str | None:
    """What is wrong with a process of a run; None if nothing is."""
    if (incident := cause(run, current.health, process.process)) is not None:
        return incidents.verdict(incident)
    if current.health in _WELL:
        return None
    return _SENTENCES[current.health](process, _who(process, 1, 0), "")


def duration(seconds: float) -> str:
    """A duration in its largest unit, rounded down: `50 s`, `4 min`, `3 h`, `2 days`."""
    if seconds < 60:
        return f"{int(seconds) if seconds < 10 else int(seconds / 10) * 10} s"
    if seconds < 7200:
        return f"{int(seconds / 60)} min"
    if seconds < 2 * 86_400:
        return f"{int(seconds / 3600)} h"
    return f"{int(seconds / 86_400)} days"


def number(value: float) -> str:
    """A number with three digits: `80`, `0.0123`, `8.02e+03`; `NaN`, `Infinity`."""
    if math.isfinite(value):
        return f"{value:.3g}"
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def norm_of(process: ProcessState) -> Seen | None:
    """The gradient norm of the last step, finite or not; else the last finite one; None if none is known."""
    norm = process.gauges.gradient_norm
    if norm is None:
        return process.gradient_norm
    return Seen(norm, process.incarnation.totals.steps, process.incarnation.rose.arrived)


def _who(process: ProcessState, those: int, members: int) -> str:
    """`process 12 on host-3`, `process 12 on host-3 and 3 more`, or `all 64 processes`."""
    if those == members and those > 1:
        return f"all {those:,} processes"
    host = process.source.host
    more = f" and {those - 1:,} more" if those > 1 else ""
    return f"process {process.process}{f' on {host}' if host else ''}{more}"


def _well(run: RunState, health: Health, members: Iterable[Judged], leading: ProcessState) -> str:
    step = leading.incarnation.totals.steps
    if health == "finished":
        return f"finished at step {step:,}"
    failed = failures.before(run, [one.process for one in members])
    before = "" if failed is None or (failed.lost and failed.launches < failures.LOOP) else _failed_before(failed)
    launch = f" of attempt {run.attempts_total:,}" if before else ""
    if not leading.incarnation.share.steps:
        return f"started, no step yet{f' after step {step:,}' if step else ''}{before}"
    taken, skipped = (sum(column) for column in zip(*leading.recent, strict=True)) if leading.recent else (0, 0)
    some = f"; {skipped:,} of the last {taken:,} steps were skipped" if skipped else ""
    return f"at step {step:,}{launch}{some}{before}"


def _failed_before(failed: failures.Failures) -> str:
    """How often the run failed right before its current launch, and how the last time."""
    many = "attempt before" if failed.launches == 1 else f"{failed.launches:,} before"
    where = "before its first step" if failed.step is None else f"at step {failed.step:,}"
    how = "ended early" if failed.lost else "failed"
    return f"; the {many} {how}, last {where}" + (f": {failed.reason}" if failed.reason else "")


def _missing(present: Iterable[int], expected: int) -> str:
    """Which processes have not reported: their numbers too, if they are in a few ranges."""
    reporting = ranges.union((index, index) for index in present)
    gaps = [
        (last + 1, first - 1)
        for (_, last), (first, _) in zip([(0, -1), *reporting], [*reporting, (expected, expected)], strict=True)
        if last + 1 < first
    ]
    names = ", ".join(str(first) if first == last else f"{first} to {last}" for first, last in gaps[:_GAPS_NAMED])
    more = ", ..." if len(gaps) > _GAPS_NAMED else ""
    count = expected - ranges.count(reporting, 0, expected)
    have = "has" if count == 1 else "have"
    return f"{count:,} of {expected:,} processes {have} not reported ({names}{more}): see whether they were started"


def _conflict(process: ProcessState, who: str, silence: str) -> str:
    del who, silence  # both jobs may have all processes
    conflict = process.conditions.conflict
    parties = () if conflict is None else (conflict.older, conflict.newer)
    named = " and ".join(f"attempt {one.attempt}{f' on {one.host}' if one.host else ''}" for one in parties)
    return f"two jobs report under this name: {named}; stop one of them, or give it another run name"


def _failed(process: ProcessState, who: str, silence: str) -> str:
    del silence
    told, steps = process.incarnation.reason, process.incarnation.totals.steps
    reason = (
        f"{told}; see its log, and mend the cause before it starts again"
        if told
        else "it gave no reason, so see its log"
    )
    return f"{who} failed at step {steps:,}: {reason}{_rollback(process)}"


def _stopped(process: ProcessState, who: str, silence: str) -> str:
    del silence
    reason = f": {process.incarnation.reason}" if process.incarnation.reason else ""
    return f"{who} stopped at step {process.incarnation.totals.steps:,}{reason}{_rollback(process)}"


def _rollback(process: ProcessState) -> str:
    clean = process.incarnation.last_clean_step
    return "" if clean is None else f"; restore a checkpoint at or before {clean:,}"


def _stale(process: ProcessState, who: str, silence: str) -> str:
    return f"{who} silent{silence}, {_after(process)}; {_LOOK}"


def _after(process: ProcessState) -> str:
    step = process.incarnation.totals.steps
    return f"after step {step:,}" if step else "before its first step"


def _stalled(process: ProcessState, who: str, silence: str) -> str:
    after = f"{who} took no step{silence}, after step {process.incarnation.totals.steps:,}"
    return f"{after}; it still reports, so see what it waits for: data, a lock, another process"


def _starved(process: ProcessState, who: str, silence: str) -> str:
    del silence
    steps, at = process.steps_without_gradient_step, process.gradient_step_at or 0
    all_skipped = _skipped_at_the_end(process) >= min(steps, sum(part.steps for part in process.recent))
    what = "were skipped" if all_skipped else "brought no gradient step"
    norm, limit = norm_of(process), process.gauges.gradient_norm_limit
    about = f", norm {number(norm.value)} at step {norm.step:,}" if norm is not None else ""
    against = f", limit {number(limit)}" if limit is not None else ""
    remedy = f"restore a checkpoint at or before {at:,}" if at else "start it again from other parameters"
    if limit is not None and norm is not None and norm.value >= limit:
        remedy = f"raise the limit if such norms are right, else {remedy}"
    since = f"{steps:,} steps since step {at + 1:,}"
    return f"{who} starved: {since} {what}{about}{against}; {remedy}"


def _skipped_at_the_end(process: ProcessState) -> int:
    """How many of the last steps were skipped with none between them that was not, as far as the parts tell."""
    found = 0
    for steps, skipped in reversed(process.recent):
        found += skipped
        if skipped < steps:
            break
    return found


def _skipping(process: ProcessState, who: str, silence: str) -> str:
    del silence
    streak, steps = process.gauges.not_finite_streak or 0, process.incarnation.totals.steps
    limit = process.gauges.guard_not_finite_limit
    since = f"since step {max(1, steps - streak + 1):,}"
    many = f"step {steps:,} was" if streak == 1 else f"{streak:,} steps in a row {since} were"
    return f"{many} non-finite on {who}" + (
        "" if limit is None or streak > limit else f"; the guard gives up after {limit:,}"
    )


# By health, the sentence. Its arguments are the process, its name with the others of that health, and for how long the
# health has held: " for 4 min", or "".
_SENTENCES: Final[Mapping[Health, Callable[[ProcessState, str, str], str]]] = MappingProxyType(
    {
        "conflict": _conflict,
        "failed": _failed,
        "stopped": _stopped,
        "stale": _stale,
        "stalled": _stalled,
        "starved": _starved,
        "skipping": _skipping,
    }
)
