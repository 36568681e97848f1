"""What everybody can read at the end, against the truth. Every check is an assertion that says what differs."""

import collections
import dataclasses
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping
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
    """The truth about one stretch, as far as anybody was told of it."""

    stretch: Stretch
    reached: int
    """The last step that any report told of."""
    share: Counts
    steps: Mapping[int, Step]
    """From the one after its start to the last that was told."""


def known(storm: Storm) -> list[Known]:
    """What there is to be counted: what was trained up to the last step that a report has told the exporter."""
    delivered = storm.delivered()
    found = []
    for stretch in storm.stretches:
        reports = [delivery.report for delivery in delivered.get(stretch.incarnation, [])]
        reached = max([stretch.start, *(report["totals"]["steps"] for report in reports)])
        assert reached >= stretch.flushed, f"{stretch}: flushed {stretch.flushed}, delivered {reached}"
        path = (*stretch.path, Piece(stretch.launch, reached))
        steps = lived(storm.schedule.seed, storm.schedule.recipe, path)
        before = steps[stretch.start - 1] if stretch.start else None
        share = counted(steps[-1]) - counted(before) if len(steps) > stretch.start else Counter()
        found.append(Known(stretch, reached, share, dict(enumerate(steps[stretch.start :], stretch.start + 1))))
    return found


def counted(step: Step | None) -> Counts:
    """The counters after a step."""
    if step is None:
        return Counter()
    found = Counter({**step.outcomes, "not_finite_steps": step.not_finite_steps})
    found.update({f"parameter {name}": count for name, count in step.parameters.items()})
    return found


def totals(of: Mapping[str, Any]) -> Counts:
    """The wire's and the API's totals."""
    found = Counter({**of["outcomes"], "not_finite_steps": of["not_finite_steps"]})
    found.update({f"parameter {name}": count for name, count in of.get("parameters", {}).items()})
    return found


def without_parameters(counts: Counts) -> Counts:
    """As a process's totals are in the API."""
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
    """Equal, a count that is not there being zero."""
    differ = {key: (found[key], expected[key]) for key in {*found, *expected} if found[key] != expected[key]}
    assert not differ, f"{what}: (found, true) {differ}"


def check(storm: Storm, prometheus: Prometheus) -> None:
    """Everything.

    Raises:
      AssertionError: something is not as it is true.
    """
    truth = known(storm)
    check_answers(storm)
    check_records(storm, truth)
    check_totals(storm, truth)
    check_events(storm, truth)
    check_prometheus(storm, truth, prometheus)
    check_logs(storm)


def check_answers(storm: Storm) -> None:
    """Nothing that the library sends is refused, and what has an incarnation is somebody's."""
    answers = Counter(delivery.status for delivery in storm.network.deliveries)
    assert set(answers) == {200}, answers
    incarnations = {stretch.incarnation for stretch in storm.stretches}
    for incarnation, deliveries in storm.delivered().items():
        if incarnation not in incarnations:
            assert not any(delivery.report["totals"]["steps"] for delivery in deliveries), f"{incarnation} is nobody's"


def check_totals(storm: Storm, truth: list[Known]) -> None:
    """The API's totals: of each process, of the run, of its parameters."""
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
    if storm.lost:
        # What was lost is known by each process's own sum only, which in each launch may be less than another's.
        least = largest(added(one.share for one in truth if one.stretch.process == p) for p in by_process)
        outside = {key: (n, least[key], of_run[key]) for key, n in found.items() if not least[key] <= n <= of_run[key]}
        assert not outside, f"totals of the run: (found, at least, at most) {outside}"
    else:
        same("totals of the run", found, of_run)

    last = max(truth, key=lambda one: (one.stretch.launch, one.stretch.order))
    same("the state's totals", totals(run["state_totals"]), without_parameters(counted(last.steps[last.reached])))
    # What was let in stays said for a while.
    assert run["health"] in ({"gave_up", "finished"} if found["accepted_not_finite"] else {"finished"})
    if not storm.lost:
        seen = {step for one in truth for step in one.steps}
        assert run["unseen"] == len(set(range(1, last.reached + 1)) - seen)
        values: Counter[str] = Counter()
        for launch in {one.stretch.launch for one in truth}:
            of_launch = [
                added(
                    Counter(step.offenders)
                    for one in truth
                    for step in one.steps.values()
                    if (one.stretch.process, one.stretch.launch) == (process, launch)
                )
                for process in by_process
            ]
            values.update(largest(of_launch))
        same("values by parameter", Counter({row["parameter"]: row["values"] for row in run["parameters"]}), values)


def check_records(storm: Storm, truth: list[Known]) -> None:
    """Each step has told of itself once, or is in the dropped count; and what was told is what the API has."""
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
                assert row[0] not in records, f"{one.stretch.incarnation}: step {row[0]} was told twice"
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
    """Each bad step once; nothing that did not happen."""
    run, delivered = storm.run_name, storm.delivered()
    for process in range(storm.schedule.processes):
        found = _events(storm, process=process)
        expected: Counter[tuple[str, int]] = Counter()
        for one in (one for one in truth if one.stretch.process == process):
            told = {
                step
                for delivery in delivered.get(one.stretch.incarnation, [])
                if delivery.directory == storm.network.directory
                for step in delivery.report["steps"]["step"]
            }
            for step in told:
                outcome = one.steps[step].outcome
                if outcome not in ("applied", "accumulated"):
                    expected["skipped" if outcome in _SKIPPED else outcome, step] += 1
        bad = Counter((one["kind"], one["step"]) for one in found if one["kind"] in ("skipped", "accepted_not_finite"))
        assert bad == expected, f"{run}, events of process {process}: {bad - expected}, {expected - bad}"
        kinds = Counter(one["kind"] for one in found)
        assert kinds["started"] <= 1
        if not storm.lost:
            assert kinds["started"] == 1
            starts = sorted(one.stretch.start for one in truth if one.stretch.process == process and one.stretch.start)
            resumed = sorted(one["step"] for one in found if one["kind"] == "resumed")
            # One that was killed before it told of itself was not there.
            assert not Counter(resumed) - Counter(starts), f"resumed at {resumed}, true: {starts}"
        assert not kinds["conflict"], "nobody lived twice"
        assert not kinds["diverged"], [one for one in found if one["kind"] == "diverged"]


def _events(storm: Storm, **query: Any) -> list[dict[str, Any]]:
    found, cursor = [], None
    while True:
        more = {} if cursor is None else {"cursor": cursor}
        page = storm.exporter.get(f"/v1/runs/{storm.run_name}/events", limit=1000, **query, **more)
        found += page["items"]
        if (cursor := page["cursor"]) is None:
            return found


def check_prometheus(storm: Storm, truth: list[Known], prometheus: Prometheus) -> None:
    """Every counter has come to the truth without ever falling, and rose by all that it was seen to begin with less."""
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
            assert not falls, f"{selector} fell: {falls}"
            (reset,) = prometheus.instant(f"resets({selector}[1d])")
            assert reset[1] == 0
            grown = sum(b - a for a, b in itertools.pairwise(samples))
            assert grown == true - samples[0], f"{selector} grew by {grown}"
            if family != "optwrap_parameter_not_finite_steps_total":
                assert samples[0] == 0, f"{selector} was first seen at {samples[0]}"


def check_logs(storm: Storm) -> None:
    """The exporter has nothing to complain of, and no trainer of more than was planned."""
    said = [line for line in storm.exporter.log.splitlines() if "listening on" not in line]
    assert not said, said
    for job in storm.jobs:
        for line in job.log.splitlines():
            assert "passed over" not in line, job.log
            assert "was lost" not in line, job.log
            assert "failed; trying on" not in line, job.log
