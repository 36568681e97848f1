"""A report names few of many parameters, and one that is too large becomes smaller."""

import json
from typing import Any

import pytest
from optwrap_exporter.wire.consistency import parse_report

from optwrap._monitor.sending.transport import Answer
from optwrap._monitor.worst import MAX_PARAMETERS, Named, name_worst
from tests.optwrap.monitoring import Training, counts
from tests.optwrap.simulated_monitor import SimulatedMonitor

LIMIT = 4 << 20
"""The exporter's limit of a body, in bytes."""


def simulated(parameters: int, length: int = 0) -> SimulatedMonitor:
    """A simulated Monitor of a model with so many parameters, with paths at least so long."""
    sim = SimulatedMonitor()
    sim.training = Training(tuple(f"layer_{n:06}/w".ljust(length, "x") for n in range(parameters)))
    sim.inbox.layout = sim.training.layout
    return sim


def limited(sim: SimulatedMonitor, size: int) -> list[bytes]:
    """Let the exporter refuse larger bodies. Returns the list of those that it has refused."""
    ok, refused = sim.network.post, []

    def post(body: bytes, *, within: float | None = None, **_: Any) -> Answer:
        if len(body) > size:
            assert body not in refused, "the same body again"
            refused.append(body)
            return Answer(413, b"{}")
        return ok(body, within=within)

    sim.network.post = post  # type: ignore[method-assign]  # a proxy with a limit of its own
    return refused


def every(sim: SimulatedMonitor, values: int = 1) -> dict[str, int]:
    return dict.fromkeys(sim.training.layout.parameters, values)


def test_a_report_of_very_many_parameters_names_4096_and_counts_the_others() -> None:
    """Those that are non-finite most often; within a step the first one, and those with the most values."""
    sim = simulated(38_000)
    paths = sim.training.layout.parameters
    sim.step("skipped_not_finite", every(sim) | {paths[-1]: 9})
    sim.step("skipped_not_finite", {paths[-2]: 3})
    sim.run(0.5)
    report = sim.books.order[-1]
    totals = report["totals"]
    assert list(totals["parameters"]) == [*paths[: MAX_PARAMETERS - 1], paths[-2]]
    assert totals["parameters"][paths[-2]] == 2
    assert totals["parameter_steps"] == 38_001
    assert report["at_start"]["parameters"] == {}
    named = [one["parameter"] for one in report["offenders"] if one["step"] == 1]
    assert named == [*paths[: MAX_PARAMETERS - 1], paths[-1]]
    rest = 38_000 - MAX_PARAMETERS
    assert report["unnamed"] == [{"step": 1, "parameters": rest, "not_finite": rest}]
    assert report["offenders"][-1] == {"step": 2, "parameter": paths[-2], "not_finite": 3}


def test_the_largest_report_passes_the_exporters_limits() -> None:
    """As many records as there may be in one, each with parameters, and long paths, as in a large model."""
    sim = simulated(4200, length=80)
    for n in range(500):
        offenders = every(sim) if n < 2 else {"layer_000001/w".ljust(80, "x"): 1}
        sim.step("skipped_not_finite", offenders)
    refused = limited(sim, LIMIT)
    sim.run(3.0)
    assert not refused
    assert sim.reporter.delivered
    assert sorted(step for _, step in sim.books.steps()) == list(range(1, 501))


@pytest.mark.parametrize("size", [LIMIT, 1 << 20, 100_000, 3_000])
def test_a_report_that_is_too_large_becomes_smaller_until_it_gets_through(size: int) -> None:
    """38,000 parameters with paths of 1,000 characters, none of which fits into the smallest limit."""
    sim = simulated(38_000, length=1000)
    refused = limited(sim, size)
    for n in range(3):
        sim.step("skipped_not_finite", every(sim) if n == 1 else {sim.training.layout.parameters[7]: 1})
    sim.run(10.0)
    assert refused
    assert len(refused) < 40
    assert sim.reporter.delivered
    assert len(sim.books.steps()) == 3
    assert sim.books.dropped() == {"steps": 0, "bad_steps": 0}
    last = sim.books.order[-1]
    assert last["totals"]["not_finite_steps"] == 3
    assert last["totals"]["parameter_steps"] == 38_002


def test_a_record_that_no_limit_lets_through_is_counted_as_dropped() -> None:
    """The proxy refuses every report with a step record, however small. The totals get through."""
    sim = simulated(10)
    ok = sim.network.post

    def post(body: bytes, *, within: float | None = None, **_: Any) -> Answer:
        return Answer(413, b"{}") if json.loads(body)["steps"]["step"] else ok(body, within=within)

    sim.network.post = post  # type: ignore[method-assign]
    for _ in range(3):
        sim.step("skipped_not_finite", every(sim))
        sim.run(1.0)
    sim.run(10.0)
    assert sim.books.totals() == {"skipped_not_finite": 3, "not_finite_steps": 3}
    assert sim.books.steps() == []
    assert sim.books.dropped() == {"steps": 0, "bad_steps": 3}
    assert sim.books.order[-1]["totals"]["parameter_steps"] == 30


def test_a_resumed_training_counts_its_parameters_from_where_it_took_up() -> None:
    """So `at_start` need not name them."""
    sim = simulated(3)
    first, second, _ = sim.training.layout.parameters
    for offenders in ({first: 1}, {first: 1, second: 1}):
        sim.training.step("skipped_not_finite", offenders)
    sim.training.step("skipped_not_finite", {second: 5})
    sim.observe()
    sim.run(2.0)
    report = sim.books.order[-1]
    assert report["at_start"]["parameters"] == {}
    assert report["totals"]["parameters"] == {second: 1}
    assert "parameter_steps" not in report["totals"]
    assert counts(report["at_start"]) == {"skipped_not_finite": 2, "not_finite_steps": 2}


def test_every_report_is_as_the_exporters_model_writes_it() -> None:
    """Byte for byte: then the exporter need not parse it twice."""
    for parameters in (3, 5000):
        sim = simulated(parameters)
        for n in range(4):
            sim.step("skipped_not_finite" if n == 2 else "applied", every(sim) if n == 2 else None)
            sim.run(1.0)
        for body in sim.books.reports.values():
            assert parse_report(body).model_dump_json().encode() == body


@pytest.mark.parametrize(
    ("counts", "limit", "keep_first", "expected"),
    [
        ({}, 0, True, Named({})),
        ({"a": 1}, 1, False, Named({"a": 1})),
        ({"a": 1, "b": 2}, 0, True, Named({}, 2, 3)),
        ({"a": 1, "b": 2}, 1, False, Named({"b": 2}, 1, 1)),
        ({"a": 1, "b": 2}, 1, True, Named({"a": 1}, 1, 2)),
        ({"a": 1, "b": 1, "c": 2, "d": 2}, 3, False, Named({"a": 1, "c": 2, "d": 2}, 1, 1)),
    ],
)
def test_the_worst_are_named_in_their_order(
    counts: dict[str, int], limit: int, keep_first: bool, expected: Named
) -> None:
    named = name_worst(counts, limit, keep_first=keep_first)
    assert named == expected
    assert list(named.counts) == list(expected.counts)
