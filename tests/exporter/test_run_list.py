"""The list of runs: filters, orders and pages."""

from typing import Any

import pytest
from optwrap_exporter.wire.vocabulary import HEALTHS

from tests.exporter.running import Job, Served


@pytest.fixture(scope="module")
def filled(shared: Served) -> Served:
    """Runs of several healths; the names are not in the order of anything else."""
    jobs = {
        name: Job(run=name, clock=shared.clock, incarnation=f"of-{name}")
        for name in ("dora", "Ann", "ben", "carl", "eve")
    }
    for number, (name, job) in enumerate(jobs.items()):
        shared.clock.advance(1)
        for _ in range(number + 1):
            job.step()
        if name == "ben":
            job.step("skipped_not_finite", "NaN", w=1)
        shared.send(job.report("failed" if name == "carl" else "finished" if name == "Ann" else "running"))
    shared.clock.advance(5)
    for name in ("dora", "ben"):
        shared.send(jobs[name].report())
    return shared


def names(site: Served, **query: Any) -> list[str]:
    return [run["run"] for run in site.get("/v1/runs", **query)["items"]]


def test_the_worst_run_is_first(filled: Served) -> None:
    found = filled.get("/v1/runs")["items"]
    ranks = [HEALTHS.index(run["health"]) for run in found]
    assert ranks == sorted(ranks)
    assert [run["run"] for run in found] == ["carl", "ben", "Ann", "dora", "eve"]


@pytest.mark.parametrize(
    ("sort", "expected"),
    [
        ("run", ["Ann", "ben", "carl", "dora", "eve"]),
        ("first_report", ["eve", "carl", "ben", "Ann", "dora"]),
        ("last_report", ["ben", "dora", "eve", "carl", "Ann"]),
        ("steps", ["eve", "ben", "carl", "Ann", "dora"]),
        ("skipped", ["ben", "Ann", "carl", "dora", "eve"]),
    ],
)
def test_runs_are_sorted(filled: Served, sort: str, expected: list[str]) -> None:
    assert names(filled, sort=sort) == expected
    paged: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        page = filled.get("/v1/runs", sort=sort, limit=2, **cursor)
        paged += [run["run"] for run in page["items"]]
        if page["cursor"] is None:
            break
        cursor = {"cursor": page["cursor"]}
    assert paged == expected


def test_runs_are_filtered_by_health_and_name(filled: Served) -> None:
    assert names(filled, health="failed") == ["carl"]
    assert names(filled, health=["failed", "finished"]) == ["carl", "Ann"]
    assert names(filled, health="stalled") == []
    assert names(filled, q="AN") == ["Ann"]
    assert names(filled, q="e", health="ok") == ["eve"]
    assert names(filled, archived="true") == []


def test_a_cursor_of_another_order_is_refused(filled: Served) -> None:
    cursor = filled.get("/v1/runs", limit=1)["cursor"]
    assert filled.client.get("/v1/runs", params={"sort": "run", "cursor": cursor}).status_code == 422


@pytest.mark.parametrize("query", [{"health": "ill"}, {"sort": "size"}, {"archived": "perhaps"}, {"q": "x" * 200}])
def test_a_wrong_filter_is_named(filled: Served, query: dict[str, str]) -> None:
    answer = filled.client.get("/v1/runs", params=query)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["field"] == next(iter(query))
