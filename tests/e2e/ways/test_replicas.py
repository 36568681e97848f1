"""Two real processes: the replica that brought a NaN is named, with its process and device, by a real exporter."""

import collections
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import RunningExporter
from tests.e2e.ways import replicas
from tests.e2e.ways.launches import free_address, run_to_the_end

pytestmark = pytest.mark.timeout(300)

PROCESSES = 2


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The exporter that was reported to, and where the devices are."""
    exporter = RunningExporter(tmp_path_factory.mktemp("exporter") / "data")
    try:
        coordinator = free_address()
        jobs = [(replicas.together, ((coordinator, PROCESSES, index),)) for index in range(PROCESSES)]
        first, *others = run_to_the_end(exporter.url, *jobs, directory=tmp_path_factory.mktemp("together"))
        assert all(where == first for where in others)
        yield exporter, first
    finally:
        exporter.stop()


@pytest.mark.parametrize("emit", replicas.EMITS)
@pytest.mark.parametrize("order", replicas.ORDERS)
def test_the_event_the_api_and_the_metrics_name_process_and_device(
    trained: tuple[RunningExporter, list[tuple[int, int]]], order: str, emit: str
) -> None:
    exporter, where = trained
    run, devices = f"{order}-{emit}", where if order == "in-order" else where[::-1]
    n = len(devices)
    assert [process for process, _ in where] == [0, 0, 1, 1]

    def named(place: int) -> dict[str, Any]:
        process, number = devices[place]
        return {"replica": place, "process": process, "device": f"cpu:{number}"}

    expected = {
        step: {**named(min(bad)), "count": len(bad), "of": n} for step, bad in enumerate(replicas.bad_rows(n), 1) if bad
    }
    firsts = collections.Counter(one["replica"] for one in expected.values())

    def get(path: str, **query: Any) -> Any:
        answer = httpx.get(f"{exporter.url}/v1/runs/{run}{path}", params=query, trust_env=False)
        assert answer.status_code == 200, answer.text
        return answer.json()

    events = get("/events", kind="skipped", limit=100)["items"]
    assert {event["step"]: event["detail"]["replica"] for event in events} == expected
    assert len(events) == len(expected)
    assert {row["step"]: {k: v for k, v in row.items() if k != "step"} for row in get("/steps")["replicas"]} == expected
    rows = {row["replica"]: row for row in get("")["replicas"]}
    for place, steps in firsts.items():
        told = [step for step, one in expected.items() if one["replica"] == place]
        assert rows[place] == {**named(place), "steps": steps, "first_step": told[0], "last_step": told[-1]}
    assert set(rows) == set(firsts)

    # Every process has the reading, and counts by itself; with the callback, every one has devices that report.
    scraped = {
        (sample.labels["process"], sample.labels["replica"]): (sample.value, sample.labels)
        for family in text_string_to_metric_families(httpx.get(f"{exporter.url}/metrics", trust_env=False).text)
        for sample in family.samples
        if sample.name == "optwrap_replica_not_finite_steps_total" and sample.labels["run"] == run
    }
    assert set(scraped) == {(str(process), at) for process in range(PROCESSES) for at in [*map(str, firsts), "other"]}
    for (_, at), (value, labels) in scraped.items():
        place = None if at == "other" else int(at)
        assert value == (0 if place is None else firsts[place])
        if place is not None:
            assert (labels["replica_process"], labels["device"]) == (
                str(named(place)["process"]),
                named(place)["device"],
            )
