"""What an incident is in the answers of the API, with its sentence: what is wrong, who, since which step."""

import math
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from types import MappingProxyType
from typing import Final

from optwrap_exporter.ledger.state.incident import IncidentRecord
from optwrap_exporter.wire.incident import Incident, IncidentReplica
from optwrap_exporter.wire.vocabulary import GOOD_OUTCOMES, NOT_FINITE_NUMBERS, IncidentKind, Outcome
from optwrap_exporter.wire.words import OUTCOMES

MOST_PROCESSES: Final = 64
"""The most processes that an answer names."""

RUNBOOKS: Final[Mapping[IncidentKind, str]] = MappingProxyType(
    {
        "conflict": "OptwrapConflict",
        "diverged": "OptwrapDiverged",
        "gave_up": "OptwrapGaveUp",
        "failed": "OptwrapFailed",
        "stopped": "OptwrapStopped",
        "stale": "OptwrapProcessStale",
        "stalled": "OptwrapStalled",
        "starved": "OptwrapStarved",
        "skipped": "OptwrapNotFiniteStreak",
    }
)
"""By kind, its heading in deploy/runbooks.md."""
_SKIPS: Final = "OptwrapSkipRatioHigh"
"""The heading for steps that were skipped although they were finite."""

_NOT_FINITE: Final[frozenset[Outcome]] = frozenset({"skipped_not_finite", "accepted_not_finite"})


def answer(run: str, one: IncidentRecord) -> Incident:
    """The incident as the API shows it."""
    replica = one.replica
    return Incident(
        id=one.id,
        run=run,
        kind=one.kind,
        state=one.state,
        attempt=one.attempt,
        processes=list(islice(_numbers(one), MOST_PROCESSES)),
        process_count=_count(one),
        opened=one.opened,
        updated=one.updated,
        closed=one.closed,
        acknowledged=one.acknowledged,
        first_step=one.first_step,
        last_step=one.last_step,
        steps=one.steps,
        applied=one.applied_steps,
        first_applied_step=one.first_applied,
        gave_up=one.gave_up,
        parameter=one.parameter,
        replica=None
        if replica is None
        else IncidentReplica(replica=replica.replica, process=replica.process, device=replica.device),
        host=one.host,
        device=one.device,
        last_clean_step=one.last_clean_step,
        outcomes=list(one.outcomes),
        reason=one.reason,
        times=one.times,
        summary=summary(one),
        runbook=RUNBOOKS[one.kind] if one.kind != "skipped" or _NOT_FINITE & {*one.outcomes} else _SKIPS,
    )


def summary(one: IncidentRecord) -> str:
    """The incident in one sentence, without anything that changes with the time alone."""
    return _SENTENCES[one.kind](one)


def verdict(one: IncidentRecord) -> str:
    """What a run whose health is `gave_up` or `diverged` because of the incident is told: what happened, what to do."""
    clean = one.last_clean_step
    remedy = (
        "restore a checkpoint from before" if clean is None else (f"restore a checkpoint at or before {number(clean)}")
    )
    if one.kind == "diverged":
        return f"{summary(one)}: {remedy} on all processes"
    known = "; acknowledged" if one.state == "acknowledged" else ""
    applied = "1 non-finite step" if one.applied_steps == 1 else f"{number(one.applied_steps)} non-finite steps"
    at = f" at step {number(one.first_applied)}" if one.first_applied is not None else ""
    return f"gave up{at}: {applied} applied, not rolled back; {remedy}{known}"


def _bad_steps(one: IncidentRecord) -> str:
    first, last = number(one.first_step or 0), number(one.last_step or 0)
    where = f"step {first}" if first == last else f"steps {first} to {last}"
    counted = "1 step" if one.steps == 1 else f"{number(one.steps)} steps"
    parts = [f"{where}: {counted} {_what(one)}"]
    if one.parameter is not None:
        parts.append(f"first {one.parameter}")
    if one.kind == "gave_up" or one.applied_steps:
        since = "" if one.first_applied in {None, one.first_step} else f" from step {number(one.first_applied or 0)} on"
        parts.append(f"{number(one.applied_steps)} applied{since}")
        if one.rolled_back:
            parts.append("rolled back")
        else:
            parts.append("not rolled back")
            if one.last_clean_step is not None:
                parts.append(f"last clean step {number(one.last_clean_step)}")
    return ", ".join(parts)


def _what(one: IncidentRecord) -> str:
    """What was wrong with its steps."""
    outcomes = set(one.outcomes)
    if not outcomes - _NOT_FINITE - GOOD_OUTCOMES:
        return "non-finite"
    if outcomes == {"skipped_large"}:
        return "skipped, norm too large"
    if outcomes <= {"skipped_large", "skipped_other"}:
        return "skipped"
    return "non-finite or skipped"


def _diverged(one: IncidentRecord) -> str:
    figures = one.figures
    odd, others, outcomes, norms = str(figures["process"]), figures["others"], figures["outcomes"], figures["norms"]
    since, count = f"since step {number(one.first_step or 0)}", _count(one)
    other = next((process for process in outcomes if process != odd), None)
    if odd not in outcomes or other is None:
        return f"{_who(one)} disagrees with other processes {since}"
    same = outcomes[odd] == outcomes[other]
    noun = "norm" if same else "outcome"
    me, them = (_norm(norms[p]) if same else f'"{OUTCOMES[outcomes[p]].word}"' for p in (odd, other))
    step = int(figures["step"])
    where = f"at step {number(step)}" + (", the first that differs" if step == one.first_step else f", {since}")
    if not others:
        return f"processes {odd} and {other} disagree: {noun} {me} and {them} {where}"
    device = f" ({one.device})" if one.device else ""
    who = f"process {odd}" + (f" on {one.host}" if one.host else "") + device
    who, has = (who, "has") if count == 1 else (f"{who} and {number(count - 1)} more", "have")
    rest = "1 other has" if others == 1 else f"{number(others)} others have"
    return f"{who} {has} {noun} {me} where {rest} {them} {where}"


def _starved(one: IncidentRecord) -> str:
    norm, limit = one.figures.get("norm"), one.figures.get("limit")
    text = f"{number(one.steps)} steps since step {number(one.first_step or 0)} without a gradient step"
    if norm is not None:
        text += f", norm {_norm(norm)} at step {number(one.figures['step'])}"
    return text if limit is None else f"{text}, limit {_norm(limit)}"


def _conflict(one: IncidentRecord) -> str:
    hosts = " and ".join(dict.fromkeys(host for host in one.figures.get("hosts", ()) if host))
    return "two jobs report under this name" + (f", from {hosts}" if hosts else "")


def _ended(one: IncidentRecord) -> str:
    launch = one.figures.get("launch")
    where = _at(one) + (f" of attempt {number(launch)}" if launch else "")
    if one.times > 1:
        text = f"failed {number(one.times)} times in a row, last {where}"
    else:
        text = f"{one.kind if one.reason else f'{_who(one)} {one.kind}'} {where}"
    text += f": {one.reason}" if one.reason else ""
    return text + ("" if one.last_clean_step is None else f"; last clean step {number(one.last_clean_step)}")


def _stale(one: IncidentRecord) -> str:
    each = "its" if _count(one) == 1 else "their"
    return f"{_who(one)} sent {each} last report {_at(one)}"


def _stalled(one: IncidentRecord) -> str:
    reports = "reports, but takes" if _count(one) == 1 else "report, but take"
    return f"{_who(one)} {reports} no step" + ("" if one.last_step is None else f" after step {number(one.last_step)}")


_SENTENCES: Final[dict[IncidentKind, Callable[[IncidentRecord], str]]] = {
    "conflict": _conflict,
    "diverged": _diverged,
    "gave_up": _bad_steps,
    "failed": _ended,
    "stopped": _ended,
    "stale": _stale,
    "stalled": _stalled,
    "starved": _starved,
    "skipped": _bad_steps,
}


def _at(one: IncidentRecord) -> str:
    return "before its first step" if one.last_step is None else f"at step {number(one.last_step)}"


def _who(one: IncidentRecord) -> str:
    """The process and its host; or how many there are, and the first of them."""
    first = next(_numbers(one), 0)
    named = f"process {first}" + (f" on {one.host}" if one.host else "")
    count = _count(one)
    return named if count <= 1 else f"{number(count)} processes ({named}, ...)"


def _count(one: IncidentRecord) -> int:
    return sum(last - first + 1 for first, last in one.processes)


def _numbers(one: IncidentRecord) -> Iterator[int]:
    return (process for first, last in one.processes for process in range(first, last + 1))


def number(value: int) -> str:
    """A count with thousands separated."""
    return f"{value:,}"


def _norm(value: float | str) -> str:
    """A norm with three digits, or by its name if it is not finite."""
    found = NOT_FINITE_NUMBERS[value] if isinstance(value, str) else value
    if not math.isfinite(found):
        return str(value) if isinstance(value, str) else str(found)
    if found >= 1000:
        return f"{found:,.0f}"
    return f"{found:.3g}"
