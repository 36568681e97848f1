"""Rejects reports whose fields contradict each other, and parses the body of a report.

Every field of a report can be within its bounds while the report as a whole describes impossible counts. If it were
stored, totals, streaks and events would be wrong for ever.
"""

from collections import Counter

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from optwrap_exporter.wire.errors import inconsistent
from optwrap_exporter.wire.fields import check_fields
from optwrap_exporter.wire.requests import Counters, Report
from optwrap_exporter.wire.size import check_size
from optwrap_exporter.wire.vocabulary import ENDED, OUTCOMES, SATURATED


def parse_report(body: str | bytes) -> Report:
    """Parse and check the body of POST /v1/reports.

    Raises:
      OversizeError: it has too many JSON values to be parsed.
      pydantic.ValidationError: it is not JSON, breaks a bound, or contradicts itself.
    """
    if isinstance(body, str):
        body = body.encode("utf-8", "surrogatepass")
    check_size(body)
    check_fields(body)
    report = Report.model_validate_json(body)
    try:
        _check(report)
    except PydanticCustomError as error:
        # Within pydantic's validation it would copy the whole body into the error.
        detail = InitErrorDetails(type=error, loc=(), input=None)
        raise ValidationError.from_exception_data("Report", [detail]) from None
    return report


def _check(report: Report) -> None:
    """Raise the first contradiction in a report as a PydanticCustomError."""
    if report.oldest_held > report.seq:
        raise inconsistent("oldest_held", f"at most seq, {report.seq}", report.oldest_held)
    if report.reason is not None and report.state not in ENDED:
        raise inconsistent("reason", "absent unless state is finished, failed or stopped", report.reason)
    if report.last_clean_step is not None and report.state != "stopped":
        raise inconsistent("last_clean_step", "absent unless state is stopped", report.last_clean_step)
    _check_counters(report.totals, report.at_start)
    _check_step_records(report)
    _check_offenders(report)
    _check_unnamed(report)
    _check_replica_records(report)


def _check_counters(totals: Counters, at_start: Counters) -> None:
    """No count is below its value in `at_start`, and no count of non-finite steps exceeds the number of steps."""
    for name in ("steps", "gradient_steps", "not_finite_steps"):
        if getattr(totals, name) < getattr(at_start, name):
            raise inconsistent(f"totals.{name}", _at_least(getattr(at_start, name)), getattr(totals, name))
    for outcome in OUTCOMES:
        before, now = getattr(at_start.outcomes, outcome), getattr(totals.outcomes, outcome)
        if now < before:
            raise inconsistent(f"totals.outcomes.{outcome}", _at_least(before), now)
    saturated = totals.not_finite_steps >= SATURATED
    for path, before in at_start.parameters.items():
        if totals.parameters.get(path, 0) < before:
            raise inconsistent(f"totals.parameters.{path}", _at_least(before), totals.parameters.get(path, 0))
        if before > at_start.not_finite_steps and not saturated:
            allowed = f"at most not_finite_steps, {at_start.not_finite_steps}"
            raise inconsistent(f"at_start.parameters.{path}", allowed, before)
    # Totals are sums of the differences, so the differences are checked too.
    steps = totals.steps - at_start.steps
    not_finite = totals.not_finite_steps - at_start.not_finite_steps
    if not_finite > steps:
        most = at_start.not_finite_steps + steps
        allowed = f"at most at_start.not_finite_steps plus the steps since, {most}"
        raise inconsistent("totals.not_finite_steps", allowed, totals.not_finite_steps)
    if saturated:
        return
    first = sum(one.steps for one in totals.replicas) - sum(one.steps for one in at_start.replicas)
    if first > steps:
        allowed = f"at most {steps} steps in all: each step since at_start has at most one first replica"
        raise inconsistent("totals.replicas", allowed, first)
    for path, count in totals.parameters.items():
        most = at_start.parameters.get(path, 0) + not_finite
        if count > most:
            allowed = f"at most its count at_start plus the non-finite steps since, {most}"
            raise inconsistent(f"totals.parameters.{path}", allowed, count)


def _at_least(at_start: int) -> str:
    return f"at least its value at_start, {at_start}"


def _check_step_records(report: Report) -> None:
    """Step numbers rise from `at_start` to `totals`, and no outcome occurs more often than it was counted."""
    totals, at_start, records = report.totals, report.at_start, report.steps
    before = at_start.steps
    for index, step in enumerate(records.step):
        if not before < step <= totals.steps:
            allowed = f"above the step before it, {before}, and at most totals.steps, {totals.steps}"
            raise inconsistent(f"steps.step[{index}]", allowed, step)
        before = step
    for outcome, count in Counter(records.outcome).items():
        counted = getattr(totals.outcomes, outcome) - getattr(at_start.outcomes, outcome)
        if count > counted:
            allowed = f"{outcome} at most {counted} times: its count in totals minus its count in at_start"
            raise inconsistent("steps.outcome", allowed, f"{count} times")


def _check_offenders(report: Report) -> None:
    """Offenders belong to steps in `steps`, each parameter occurs once in a step, and each has one of two fields."""
    steps = set(report.steps.step)
    seen: set[tuple[int, str]] = set()
    for index, offender in enumerate(report.offenders):
        if offender.step not in steps:
            raise inconsistent(f"offenders[{index}].step", "a step in steps.step of this report", offender.step)
        if (offender.not_finite is None) == (offender.norm_share is None):
            got = "neither" if offender.not_finite is None else "both"
            raise inconsistent(f"offenders[{index}]", "either not_finite or norm_share", got)
        key = (offender.step, offender.parameter)
        if key in seen:
            raise inconsistent(f"offenders[{index}]", "each parameter of a step once", f"{offender.parameter} again")
        seen.add(key)


def _check_unnamed(report: Report) -> None:
    """Counts of unnamed offenders belong to steps in `steps`, one to a step."""
    steps, seen = set(report.steps.step), set[int]()
    for index, one in enumerate(report.unnamed):
        if one.step not in steps or one.step in seen:
            raise inconsistent(f"unnamed[{index}].step", "a step in steps.step of this report, each once", one.step)
        seen.add(one.step)


def _check_replica_records(report: Report) -> None:
    """Replica records belong to steps in `steps`, one to a step, and `of` is at least `replica` plus `count`."""
    steps, seen = set(report.steps.step), set[int]()
    for index, record in enumerate(report.replicas):
        if record.step not in steps or record.step in seen:
            allowed = "a step in steps.step of this report, each once"
            raise inconsistent(f"replicas[{index}].step", allowed, record.step)
        seen.add(record.step)
        if record.of is not None and record.replica + record.count > record.of:
            allowed = f"at least replica + count, {record.replica + record.count}"
            raise inconsistent(f"replicas[{index}].of", allowed, record.of)
