"""Compares every number that can be read at the end with the truth. Each assertion says what differs."""

import collections
import dataclasses
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from tests.deploy.prometheus import Prometheus
from tests.e2e.chaos.storm import Storm, Stretch
from tests.e2e.chaos.truth import Piece, lived
from tests.optwrap.simulation import Step

OUTCOMES: Final = (
    *("applied", "accumulated", "skipped_not_finite", "skipped_large", "skipped_other"),
    "accepted_not_finite",
)
_SKIPPED: Final = {f"skipped_{reason}": reason for reason in ("not_finite", "large", "other")}

Counts = Counter[str]
"""Steps by outcome; `not_finite_steps`; and steps by parameter, as `parameter PATH`."""


@dataclasses.dataclass(frozen=True)
class Known:
    """The truth about one stretch, up to the last step that was reported."""

    stretch: Stretch
    steps: Mapping[int, Step]
    """From the one after its start to the last one in a stored report."""
    share: Counts
    """What the exporter has to count, from what its present data directory holds."""
    covered: range
    """The steps that it has to count."""


def known(storm: Storm) -> list[Known]:
    """The truth about every stretch.

    Counting starts at the stretch's start, unless the reports from there are lost with a data directory: then it starts
    at the smallest totals of those that the present directory holds.
    """
    delivered = storm.delivered()
    found = []
    for stretch in storm.stretches:
        deliveries = delivered.get(stretch.incarnation, [])
        reached = max([stretch.start, *(delivery.report["totals"]["steps"] for delivery in deliveries)])
        assert reached >= stretch.flushed, f"{stretch}: flushed {stretch.flushed}, delivered {reached}"
        path = (*stretch.path, Piece(stretch.launch, reached))
        history = lived(storm.schedule.seed, storm.schedule.recipe, path)
        held = [each.report for each in deliveries if each.directory == storm.network.directory]
        totals = [report["totals"]["steps"] for report in held] or [stretch.start]
        whole = any(report["oldest_held"] == 1 for report in held)
        covered = range((stretch.start if whole else min(totals)) + 1, max(totals) + 1)
        share = counted(history[covered.stop - 2]) - counted(before(history, covered.start)) if covered else Counter()
        steps = dict(enumerate(history[stretch.start :], stretch.start + 1))
        found.append(Known(stretch, steps, share, covered))
    return found


def before(history: Sequence[Step], number: int) -> Step | None:
    """The step before the one with that number."""
    return history[number - 2] if number > 1 else None


def counted(step: Step | None) -> Counts:
    """The counters after a step."""
    if step is None:
        return Counter()
    found = Counter({**step.outcomes, "not_finite_steps": step.not_finite_steps})
    found.update({f"parameter {name}": count for name, count in step.parameters.items()})
    return found


def totals(of: Mapping[str, Any]) -> Counts:
    """The counters in totals of a report or of the API."""
    found = Counter({**of["outcomes"], "not_finite_steps": of["not_finite_steps"]})
    found.update({f"parameter {name}": count for name, count in of.get("parameters", {}).items()})
    return found


def without_parameters(counts: Counts) -> Counts:
    """The API's totals of a process have no parameters."""
    return Counter({key: n for key, n in counts.items() if not key.startswith("parameter ")})


def added(counts: Iterable[Counts]) -> Counts:
    found: Counts = Counter()
    for each in counts:
        found.update(each)
    return found


def largest(counts: Iterable[Counts]) -> Counts:
    found: Counts = Counter()
    for each in counts:
        found |= each
    return found


def same(what: str, found: Counts, expected: Counts) -> None:
    """Assert that the counts are equal; a missing count is zero."""
    differ = {key: (found[key], expected[key]) for key in {*found, *expected} if found[key] != expected[key]}
    assert not differ, f"{what}: (found, true) {differ}"


def check(storm: Storm, prometheus: Prometheus) -> None:
    """Check everything.

    Raises:
      AssertionError: a number differs from the truth.
    """
    truth = known(storm)
    check_answers(storm)
    check_records(storm, truth)
    check_totals(storm, truth)
    check_events(storm, truth)
    check_prometheus(storm, truth, prometheus)
    check_logs(storm)


def check_answers(storm: Storm) -> None:
    """No report is refused, and every report with steps belongs to a stretch."""
    answers = Counter(delivery.status for delivery in storm.network.deliveries)
    assert set(answers) == {200}, answers
    incarnations = {stretch.incarnation for stretch in storm.stretches}
    for incarnation, deliveries in storm.delivered().items():
        if incarnation not in incarnations:
            assert not any(delivery.report["totals"]["steps"] for delivery in deliveries), (
                f"{incarnation} belongs to no stretch"
            )


def check_totals(storm: Storm, truth: list[Known]) -> None:
    """The API's totals of each process, of the run and of its parameters."""
    run = storm.exporter.get(f"/v1/runs/{storm.run_name}")
    by_process = {row["process"]: totals(row["totals"]) for row in run["processes"]}
    assert set(by_process) == set(range(storm.schedule.processes))
    for process, found in by_process.items():
        expected = added(one.share for one in truth if one.stretch.process == process)
        same(f"totals of process {process}", found, without_parameters(expected))

    of_run = added(
        largest(
            added(one.share for one in truth if (one.stretch.process, one.stretch.launch) == (process, launch))
            for process in by_process
        )
        for launch in {one.stretch.launch for one in truth}
    )
    found = totals(run["totals"])
    parameters = {f"parameter {row['parameter']}": row["steps"] for row in run["parameters"]}
    found.update(parameters)
    same("totals of the run", found, of_run)

    last = max(truth, key=lambda one: (one.stretch.launch, one.stretch.order))
    reached = last.covered.stop - 1
    same("the state's totals", totals(run["state_totals"]), without_parameters(counted(last.steps[reached])))
    # An accepted non-finite step is shown as gave_up for a while.
    assert run["health"] in ({"gave_up", "finished"} if found["accepted_not_finite"] else {"finished"})
    seen = {step for one in truth for step in one.covered}
    assert run["unseen"] == len(set(range(1, reached + 1)) - seen)
    if not storm.losses:
        values: Counter[str] = Counter()
        for launch in {one.stretch.launch for one in truth}:
            of_launch = [
                added(
                    Counter(step.nonfinite_parameters)
                    for one in truth
                    for step in one.steps.values()
                    if (one.stretch.process, one.stretch.launch) == (process, launch)
                )
                for process in by_process
            ]
            values.update(largest(of_launch))
        same("values by parameter", Counter({row["parameter"]: row["values"] for row in run["parameters"]}), values)


def check_records(storm: Storm, truth: list[Known]) -> None:
    """Each step has one record or is counted as dropped; and the API has the records that were stored."""
    delivered = storm.delivered()
    kept: dict[int, Counter[tuple[Any, ...]]] = collections.defaultdict(Counter)
    for one in truth:
        deliveries = delivered.get(one.stretch.incarnation, [])
        records: dict[int, tuple[Any, ...]] = {}
        by_seq = {delivery.report["seq"]: delivery.report for delivery in deliveries}
        here = {delivery.report["seq"] for delivery in deliveries if delivery.directory == storm.network.directory}
        for seq, report in by_seq.items():
            columns = report["steps"]
            for row in zip(*(columns[name] for name in ("step", "outcome", "finite", "norm")), strict=True):
                assert row[0] not in records, f"{one.stretch.incarnation}: step {row[0]} has two records"
                records[row[0]] = row
                if seq in here:
                    kept[one.stretch.process][row[:3]] += 1
        for step, row in records.items():
            true = one.steps[step]
            assert row[1:3] == (true.outcome, true.finite), (
                f"{one.stretch.incarnation}, step {step}: {row}, true: {true}"
            )
        dropped = max((sum(report["dropped"].values()) for report in by_seq.values()), default=0)
        missing = set(one.steps) - set(records)
        assert len(missing) == dropped, f"{one.stretch}: {sorted(missing)} are missing, {dropped} dropped"
    for process in range(storm.schedule.processes):
        answer = storm.exporter.get(f"/v1/runs/{storm.run_name}/steps", process=process, points=100_000)
        columns = answer["columns"]
        found = Counter(zip(columns["step"], columns["outcome"], columns["finite"], strict=True))
        assert not answer["sampled"]
        assert found == kept[process], f"records of process {process}: {found - kept[process]}, {kept[process] - found}"


def check_events(storm: Storm, truth: list[Known]) -> None:
    """Each bad step has one event, and there are no others."""
    run, delivered = storm.run_name, storm.delivered()
    for process in range(storm.schedule.processes):
        found = _events(storm, process=process)
        expected: Counter[tuple[str, int]] = Counter()
        for one in (one for one in truth if one.stretch.process == process):
            recorded = {
                step
                for delivery in delivered.get(one.stretch.incarnation, [])
                if delivery.directory == storm.network.directory
                for step in delivery.report["steps"]["step"]
            }
            for step in recorded:
                outcome = one.steps[step].outcome
                if outcome not in ("applied", "accumulated"):
                    expected["skipped" if outcome in _SKIPPED else outcome, step] += 1
        bad = Counter((one["kind"], one["step"]) for one in found if one["kind"] in ("skipped", "accepted_not_finite"))
        assert bad == expected, f"{run}, events of process {process}: {bad - expected}, {expected - bad}"
        kinds = Counter(one["kind"] for one in found)
        assert kinds["started"] <= 1
        if not storm.losses:
            assert kinds["started"] == 1
            starts = sorted(one.stretch.start for one in truth if one.stretch.process == process and one.stretch.start)
            resumed = sorted(one["step"] for one in found if one["kind"] == "resumed")
            # A process that was killed before its first report is unknown.
            assert not Counter(resumed) - Counter(starts), f"resumed at {resumed}, true: {starts}"
        assert not kinds["conflict"], "no process runs twice at the same time"
        assert not kinds["diverged"], [one for one in found if one["kind"] == "diverged"]


def _events(storm: Storm, **query: Any) -> list[dict[str, Any]]:
    found, cursor = [], None
    while True:
        more: dict[str, str] = {} if cursor is None else {"cursor": cursor}
        page = storm.exporter.get(f"/v1/runs/{storm.run_name}/events", limit=1000, **query, **more)
        found += page["items"]
        if (cursor := page["cursor"]) is None:
            return found


def check_prometheus(storm: Storm, truth: list[Known], prometheus: Prometheus) -> None:
    """Every counter ends at the truth, and falls only when a data directory is lost: to Prometheus a counter reset."""
    run = f'run="{storm.run_name}"'
    now = float(prometheus.get("query", query="time()")["result"][1])
    prometheus.wait_until(f"timestamp(optwrap_steps_total{{{run}}}) > {now}")
    for process in range(storm.schedule.processes):
        expected = added(one.share for one in truth if one.stretch.process == process)
        counters = {
            "optwrap_steps_total": sum(expected[outcome] for outcome in OUTCOMES),
            "optwrap_gradient_steps_total": expected["applied"] + expected["accepted_not_finite"],
            "optwrap_not_finite_steps_total": expected["not_finite_steps"],
            "optwrap_accepted_not_finite_steps_total": expected["accepted_not_finite"],
            **{
                f'optwrap_skipped_steps_total{{reason="{reason}"}}': expected[outcome]
                for outcome, reason in _SKIPPED.items()
            },
            **{
                f'optwrap_parameter_not_finite_steps_total{{parameter="{key.removeprefix("parameter ")}"}}': count
                for key, count in expected.items()
                if key.startswith("parameter ") and count
            },
            'optwrap_parameter_not_finite_steps_total{parameter="other"}': 0,
        }
        for name, true in counters.items():
            family, labels = re.fullmatch(r"(\w+)(?:{(.*)})?", name).groups()  # type: ignore[union-attr]
            selector = f'{family}{{{run},process="{process}"{"," + labels if labels else ""}}}'
            series = prometheus.get("query", query=f"{selector}[1d]")["result"]
            assert len(series) == 1, f"{selector}: {len(series)} series"
            samples = [float(value) for _, value in series[0]["values"]]
            assert samples[-1] == true, f"{selector} ends at {samples[-1]}, true: {true}"
            falls = [(a, b) for a, b in itertools.pairwise(samples) if b < a]
            assert len(falls) <= storm.losses, f"{selector} fell: {falls}"
            (resets,) = prometheus.instant(f"resets({selector}[1d])")
            assert resets[1] == len(falls)
            if family != "optwrap_parameter_not_finite_steps_total":
                assert samples[0] == 0, f"{selector} was first seen at {samples[0]}"


def check_logs(storm: Storm) -> None:
    """The exporter logs no problem, and the trainers log only planned ones."""
    lines = [line for line in storm.exporter.log.splitlines() if "listening on" not in line]
    assert not lines, lines
    for job in storm.jobs:
        for line in job.log.splitlines():
            assert "was ignored" not in line, job.log
            assert "was lost" not in line, job.log
            assert "internal error" not in line, job.log
