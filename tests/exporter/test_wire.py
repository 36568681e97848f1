"""The wire: which reports are valid, the error details of the others, and the JSON of answers."""

import copy
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optwrap_exporter.wire import vocabulary as wire
from optwrap_exporter.wire.answers import RunDetail, RunSummary
from optwrap_exporter.wire.consistency import parse_report
from optwrap_exporter.wire.errors import ErrorDetail, error_details
from optwrap_exporter.wire.requests import Gauges, StepColumns
from pydantic import ValidationError

from tests.exporter.trainer import Trainer, sent

ROOT = Path(__file__).parents[2]


def documented() -> dict[str, Any]:
    """The example of docs/reference/wire.md."""
    text = (ROOT / "docs" / "reference" / "wire.md").read_text()
    found = re.search(r"```json\n(.*?)```", text, re.DOTALL)
    assert found is not None
    example: dict[str, Any] = json.loads(found.group(1))
    return example


def wrong(report: Any) -> list[ErrorDetail]:
    """What is said of it; nothing if it is right."""
    try:
        parse_report(report if isinstance(report, str | bytes) else json.dumps(report))
    except ValidationError as error:
        return error_details(error)
    return []


def test_the_documented_report_is_valid() -> None:
    report = sent(documented())
    assert math.isnan(report.steps.norm[0])
    assert report.totals.outcomes.accumulated == 9


def at(*path: str | int) -> Callable[[dict[str, Any], Any], None]:
    """Sets one place of a report."""

    def put(report: dict[str, Any], value: Any) -> None:
        inner: Any = report
        for part in path[:-1]:
            inner = inner[part]
        inner[path[-1]] = value

    return put


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        (("run",), "", "run"),
        (("run",), "-lm", "run"),
        (("run",), "a b", "run"),
        (("run",), "lm\n", "run"),
        (("run",), "x" * 129, "run"),
        (("run",), None, "run"),
        (("process",), -1, "process"),
        (("process",), 65_536, "process"),
        (("process",), "0", "process"),
        (("process",), True, "process"),
        (("incarnation",), "e" * 65, "incarnation"),
        (("incarnation",), "é", "incarnation"),
        (("attempt",), "", "attempt"),
        (("attempt",), "a" * 129, "attempt"),
        (("seq",), 0, "seq"),
        (("seq",), 1.5, "seq"),
        (("seq",), 1, "oldest_held"),
        (("oldest_held",), 0, "oldest_held"),
        (("oldest_held",), 4, "oldest_held"),
        (("interval",), 0, "interval"),
        (("interval",), 3601, "interval"),
        (("interval",), math.inf, "interval"),
        (("sent_at",), -1, "sent_at"),
        (("sent_at",), math.nan, "sent_at"),
        (("sent_at",), 1e11, "sent_at"),
        (("state",), "paused", "state"),
        (("source", "host"), "node\x00", "source.host"),
        (("source", "process_count"), 0, "source.process_count"),
        (("totals", "steps"), 13, "totals.steps"),
        (("totals", "gradient_steps"), 3, "totals.gradient_steps"),
        (("totals", "not_finite_steps"), 13, "totals.not_finite_steps"),
        (("totals", "outcomes", "applied"), -2, "totals.outcomes.applied"),
        (("totals", "outcomes", "applied"), 2**53 + 1, "totals.outcomes.applied"),
        (("totals", "parameters", ""), 1, 'totals.parameters.""'),
        (("totals", "parameters", "a\nb"), 1, r"totals.parameters.a\nb"),
        (("totals", "parameters", "a\x85b"), 1, r"totals.parameters.a\x85b"),
        (("totals", "parameters", "w" * 1025), 1, "totals.parameters." + "w" * 181 + "…"),
        (("totals", "parameters", "w"), -1, "totals.parameters.w"),
        (("at_start", "parameters", "w"), 1, "totals.parameters.w"),
        (("at_start", "not_finite_steps"), 1, "at_start.not_finite_steps"),
        (("base",), None, "base"),
        (("gauges", "mini_step"), -1, "gauges.mini_step"),
        (("gauges", "gradient_norm"), -0.5, "gauges.gradient_norm"),
        (("gauges", "gradient_norm"), "nan", "gauges.gradient_norm"),
        (("gauges", "gradient_norm_limit"), "Infinity", "gauges.gradient_norm_limit"),
        (("gauges", "loss"), 1, "gauges.loss"),
        (("steps", "norm"), [1.0], "steps.norm"),
        (("steps", "step"), [0, 1], "steps.step[0]"),
        (("steps", "time", 1), math.inf, "steps.time[1]"),
        (("steps", "outcome", 0), "skipped", "steps.outcome[0]"),
        (("steps", "finite", 0), 1, "steps.finite[0]"),
        (("steps", "norm", 1), -1.0, "steps.norm[1]"),
        (("steps", "norm", 1), math.nan, "steps.norm[1]"),
        (("steps", "norm", 1), "inf", "steps.norm[1]"),
        (("steps", "mini_step", 1), -1, "steps.mini_step[1]"),
        (("steps", "interpolated"), [True], "steps.interpolated"),
        (("offenders", 0, "not_finite"), 0, "offenders[0].not_finite"),
        (("offenders", 0, "parameter"), "\ud800", "body"),
        (("totals", "replicas", 0, "steps"), 0, "totals.replicas[0].steps"),
        (("totals", "replicas", 0, "replica"), -1, "totals.replicas[0].replica"),
        (("totals", "replicas", 0, "device"), "a\nb", "totals.replicas[0].device"),
        (("totals", "replicas", 0, "process"), 65_536, "totals.replicas[0].process"),
        (("replicas", 0, "count"), 0, "replicas[0].count"),
        (("replicas", 0, "of"), 0, "replicas[0].of"),
        (("replicas", 0, "replica"), None, "replicas[0].replica"),
        (("replicas", 0, "device"), "d" * 257, "replicas[0].device"),
        (("dropped", "steps"), -1, "dropped.steps"),
        (("loss",), 1.0, "loss"),
    ],
    ids=lambda value: ".".join(map(str, value)) if isinstance(value, tuple) else repr(value)[:20],
)
def test_a_wrong_field_is_refused_and_named(path: tuple[str | int, ...], value: Any, field: str) -> None:
    report = documented()
    at(*path)(report, value)
    assert field in [detail.field for detail in wrong(report)]


OPTIONAL = {"gauges", "steps", "offenders", "unnamed", "replicas", "dropped"}


@pytest.mark.parametrize("name", sorted(set(documented()) - OPTIONAL))
def test_a_missing_field_is_named(name: str) -> None:
    report = documented()
    del report[name]
    assert [(detail.field, detail.value) for detail in wrong(report)] == [(name, "absent")]


@pytest.mark.parametrize("key", ["steps", "gradient_steps", "not_finite_steps"])
def test_totals_below_those_at_the_start_are_refused(key: str) -> None:
    report = documented()
    report["at_start"] = copy.deepcopy(report["totals"])
    for counters in (report["totals"], report["at_start"]):
        counters["parameters"] = {}
    outcome = {"steps": "skipped_large", "gradient_steps": "applied", "not_finite_steps": "skipped_large"}[key]
    report["at_start"]["outcomes"][outcome] += 1
    report["at_start"]["steps"] += 1
    report["at_start"]["gradient_steps"] += key == "gradient_steps"
    report["at_start"]["not_finite_steps"] += key == "not_finite_steps"
    details = wrong(report)
    assert details
    assert all("at_start" in detail.allowed for detail in details)


def skipping() -> dict[str, Any]:
    """A report of the steps 6 and 7 of a resumed state, both skipped; what came before them was good but for one."""
    trainer = Trainer()
    trainer.bad()
    for _ in range(4):
        trainer.step()
    resumed = Trainer(state=trainer.state)
    resumed.bad(w=1)
    resumed.bad(w=2, b=3)
    report = resumed.json()
    assert wrong(report) == []
    return report


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        # Of an incarnation that took up with 1 step non-finite, in w, and had 2 more, both in w and one in b.
        (("totals", "parameters", "w"), 4, "totals.parameters.w"),
        (("totals", "parameters", "b"), 3, "totals.parameters.b"),
        (("totals", "parameters", "b"), 2**53, "totals.parameters.b"),
        (("at_start", "parameters"), {"w": 2}, "at_start.parameters.w"),
        (("at_start", "not_finite_steps"), 0, "at_start.parameters.w"),
        (("totals", "not_finite_steps"), 4, "totals.not_finite_steps"),
        (("steps", "step"), [6, 8], "steps.step[1]"),
        (("steps", "step"), [6, 2**53], "steps.step[1]"),
        (("steps", "step"), [7, 6], "steps.step[1]"),
        (("steps", "step"), [6, 6], "steps.step[1]"),
        (("steps", "step"), [5, 7], "steps.step[0]"),
        (("steps", "outcome"), ["skipped_not_finite", "skipped_large"], "steps.outcome"),
        (("offenders", 0, "step"), 5, "offenders[0].step"),
        (("offenders", 1), {"step": 6, "parameter": "w", "not_finite": 1}, "offenders[1]"),
    ],
)
def test_contradictions_are_refused_and_named(path: tuple[str | int, ...], value: Any, field: str) -> None:
    """Each part is in bounds, but no training can have all of these counts."""
    report = skipping()
    at(*path)(report, value)
    assert field in [detail.field for detail in wrong(report)]


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        (("totals", "replicas"), [{"replica": 1, "steps": 2}, {"replica": 1, "steps": 3}], "totals.replicas[1]"),
        (("totals", "replicas"), [{"replica": 1, "steps": 6}, {"replica": 2, "steps": 7}], "totals.replicas"),
        (("at_start", "replicas"), [{"replica": 1, "steps": 1}, {"replica": 1, "steps": 1}], "at_start.replicas[1]"),
        (("replicas", 0, "step"), 10, "replicas[0].step"),
        (("replicas",), [{"step": 11, "replica": 5, "count": 1}] * 2, "replicas[1].step"),
        (("replicas", 0, "of"), 5, "replicas[0].of"),
        (("replicas", 0, "count"), 4, "replicas[0].of"),
    ],
)
def test_contradictory_replicas_are_refused(path: tuple[str | int, ...], value: Any, field: str) -> None:
    """The documented report has one non-finite step, from the sixth of eight replicas."""
    report = documented()
    at(*path)(report, value)
    assert field in [detail.field for detail in wrong(report)]


def test_a_report_without_replicas_is_serialized_without_them() -> None:
    report = Trainer().report()
    assert not report.replicas
    assert not report.totals.replicas
    assert "replicas" not in report.model_dump_json()
    assert "replicas" in sent(documented()).model_dump_json()


def test_counters_that_saturated_are_no_contradiction() -> None:
    """The library's counters stop at the largest uint32. One that has stopped is not compared with the others."""
    full = 2**32 - 1
    trainer = Trainer()
    trainer.state.outcomes.update(accumulated=1, skipped_not_finite=full)
    trainer.state.not_finite_steps = full
    trainer.state.parameters.update(w=full, b=4)
    report = trainer.json()
    # It began before a step that was non-finite, in b alone: less that one, but w had stopped before.
    report["at_start"] = {**report["totals"], "not_finite_steps": full - 1, "steps": full, "parameters": {"w": full}}
    report["at_start"]["outcomes"] = {**report["totals"]["outcomes"], "skipped_not_finite": full - 1}
    assert wrong(report) == []


def test_more_parameters_than_allowed_are_refused() -> None:
    report = documented()
    report["offenders"] = []
    del report["totals"]["parameter_steps"]
    report["totals"]["parameters"] = {str(i): 1 for i in range(wire.MOST_PARAMETERS)}
    assert wrong(report) == []
    report["totals"]["parameters"]["one more"] = 1
    assert [detail.field for detail in wrong(report)] == ["totals.parameters"]


def test_a_body_that_is_not_json_is_one_error() -> None:
    for body in ("", "{", "[]", "nan", b"\xff\xfe", '{"run": "\\ud800"}'):
        details = wrong(body)
        assert [detail.field for detail in details] == ["body"]


def test_error_details_are_short_printable_and_one_per_field() -> None:
    report = documented()
    report["run"] = "x\x1b[31m\u202e" * 1000
    report["steps"]["norm"] = ["bad"] * 5000
    details = wrong(report)
    assert [detail.field for detail in details] == ["run", "steps.norm[0]"], "the first wrong norm is enough"
    for detail in details:
        assert max(len(detail.field), len(detail.value)) <= 200
        assert (detail.field + detail.value + detail.allowed).isprintable()


def test_an_invalid_norm_is_one_error() -> None:
    report = documented()
    report["gauges"]["gradient_norm"] = "big"
    (detail,) = wrong(report)
    assert detail == ErrorDetail(
        field="gauges.gradient_norm", value="big", allowed="a valid number, or 'NaN', 'Infinity' or '-Infinity'"
    )


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(data=st.data())
def test_any_value_is_accepted_or_refused_with_details(data: st.DataObject) -> None:
    report = documented()
    inner: Any = report
    while True:
        key = data.draw(st.sampled_from(sorted(inner) if isinstance(inner, dict) else range(len(inner))))
        if isinstance(inner[key], dict | list) and inner[key] and data.draw(st.booleans()):
            inner = inner[key]
            continue
        inner[key] = data.draw(values)
        break
    body = json.dumps(report)
    for detail in wrong(body):
        assert detail.field
        assert detail.allowed
        json.dumps(detail.model_dump()).encode()


norms = st.floats(min_value=0, allow_nan=False) | st.just(math.nan) | st.just(-math.inf)


@given(norms=st.lists(norms, min_size=1, max_size=5))
def test_every_norm_survives_the_wire(norms: list[float]) -> None:
    trainer = Trainer()
    for norm in norms:
        trainer.step(norm=wire.to_json_number(norm))
    report = trainer.report()
    again = parse_report(report.model_dump_json())
    assert again.model_dump_json() == report.model_dump_json()
    for got, norm in zip(again.steps.norm, norms, strict=True):
        assert got == norm or (math.isnan(got) and math.isnan(norm))


def test_answers_write_nonfinite_numbers_as_names_and_omit_absent_fields() -> None:
    gauges = Gauges(gradient_norm=math.nan, mini_step=0)
    columns = StepColumns(
        step=[1, 2], time=[0, 1], outcome=["applied"] * 2, finite=[True] * 2, norm=[math.inf, 2.5], mini_step=[None, 1]
    )
    for dumped in (
        (gauges.model_dump(mode="json"), columns.model_dump(mode="json")),
        (json.loads(gauges.model_dump_json()), json.loads(columns.model_dump_json())),
    ):
        assert dumped[0] == {"gradient_norm": "NaN", "mini_step": 0}
        assert dumped[1]["norm"] == ["Infinity", 2.5]
        assert dumped[1]["mini_step"] == [None, 1]
        assert "interpolated" not in dumped[1]


def test_the_answer_about_a_run_has_every_documented_field() -> None:
    both = {
        "run", "health", "since", "summary", "runbook", "reason", "last_clean_step", "first_report", "last_report",
        "totals", "unseen", "unseen_not_finite", "process_count", "missing", "gauges", "norm", "update_norm", "scalars",
        "steps_per_second", "last_step", "last_step_time", "skipped_recently", "lost_steps", "lost_seconds",
        "attempts_total", "processes",
    }  # fmt: skip
    assert set(RunSummary.model_fields) == both
    assert set(RunDetail.model_fields) == both | {
        "state_totals", "parameters", "replicas", "dropped", "attempts", "left_out",
    }  # fmt: skip
