"""Parameters that a report counts and does not name: in metrics, events and after a restart."""

from pathlib import Path
from typing import Any

import pytest
from optwrap_exporter.ledger.state import counters, incarnation
from optwrap_exporter.wire.vocabulary import MOST_PARAMETERS

from tests.exporter.running import Job, Served, TurnedClock, served


def wide(job: Job, parameter_steps: int, unnamed: int) -> dict[str, Any]:
    """A report of the job in which further parameters were non-finite."""
    report = job.report()
    report["totals"]["parameter_steps"] = parameter_steps
    report["unnamed"] = [
        {"step": step, "parameters": unnamed, "not_finite": 2 * unnamed} for step in (job.state.steps,)
    ]
    return report


def others(site: Served) -> float:
    """The value of the metric for parameters without a label of their own."""
    start = 'optwrap_parameter_not_finite_steps_total{parameter="other",process="0",run="lm"} '
    (line,) = [line for line in site.scrape().splitlines() if line.startswith(start)]
    return float(line.removeprefix(start))


def test_parameters_without_a_name_are_in_the_metric_other(tmp_path: Path) -> None:
    """Also those that are named later, once only; and after a restart."""
    clock, job = TurnedClock(), Job()
    with served(tmp_path / "data", clock) as site:
        job.step("skipped_not_finite", "NaN", a=1)
        site.send(wide(job, 5, 4))
        assert others(site) == 4
        job.step("skipped_not_finite", "NaN", a=1, b=1)
        site.send(wide(job, 8, 1))
        assert others(site) == 5
        assert {row["parameter"]: row["steps"] for row in site.get("/v1/runs/lm/parameters")["items"]} == {
            "a": 2,
            "b": 1,
        }
    with served(tmp_path / "data", clock) as site:
        assert others(site) == 5
        job.step("applied")
        report = job.report()
        report["totals"]["parameter_steps"] = 8
        site.send(report)
        assert others(site) == 5


def test_an_event_counts_the_parameters_that_have_no_name(site: Served) -> None:
    """Whether or not some have one."""
    job = Job()
    job.step("skipped_not_finite", "NaN", a=1, b=3)
    site.send(wide(job, 40, 38))
    job.step("skipped_not_finite", "NaN")
    report = wide(job, 41, 1)
    report["steps"]["finite"] = [False]
    report["totals"]["not_finite_steps"] = 2
    site.send(report)
    second, first = site.get("/v1/runs/lm/events", kind="skipped")["items"]
    assert (first["detail"]["parameter_count"], first["detail"]["first"], first["detail"]["largest"]) == (40, "a", "b")
    assert (second["detail"]["parameter_count"], second["detail"]["parameters"]) == (1, [])


def test_a_report_that_names_too_many_or_counts_too_few_is_refused(site: Served) -> None:
    job = Job()
    job.step("skipped_not_finite", "NaN", a=1)
    report = job.report()
    parameters = {f"p{n}": 1 for n in range(MOST_PARAMETERS)}
    for change, field in (
        ({"parameters": {**parameters, "a": 1}}, "totals.parameters"),
        ({"parameters": parameters, "parameter_steps": MOST_PARAMETERS - 1}, "totals.parameter_steps"),
    ):
        answer = site.client.post("/v1/reports", json={**report, "totals": {**report["totals"], **change}})
        assert [one["field"] for one in answer.json()["detail"]] == [field]
    unnamed = {"step": 1, "parameters": 1, "not_finite": 1}
    for wrong in ([{**unnamed, "step": 2}], [unnamed, unnamed]):
        answer = site.client.post("/v1/reports", json={**report, "unnamed": wrong})
        assert [one["field"] for one in answer.json()["detail"]] == [f"unnamed[{len(wrong) - 1}].step"]
    assert site.get("/v1/runs")["items"] == []


def test_an_incarnation_keeps_a_bounded_number_of_names(site: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many reports name others. The counts of the others are in `other`."""
    for module in (counters, incarnation):
        monkeypatch.setattr(module, "MOST_NAMES", 5)
    job = Job()
    for first in range(0, 12, 3):
        job.step("skipped_not_finite", "NaN", **{f"p{first + n}": 1 for n in range(3)})
        site.send(job.report())
    assert [row["parameter"] for row in site.get("/v1/runs/lm/parameters")["items"]] == [f"p{n}" for n in range(5)]
    named = sum(row["steps"] for row in site.get("/v1/runs/lm/parameters")["items"])
    assert others(site) == 12 - named == 7
