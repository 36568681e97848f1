"""However a step is run and reported, each reporting process counts it once and names its non-finite parameters.

What arrives at an exporter is compared with a numpy simulation of the same faults.
"""

import collections
import functools
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.chaos.findings import counted
from tests.e2e.chaos.truth import Piece, lived
from tests.e2e.ways import job
from tests.e2e.ways.launches import free_address, run_to_the_end
from tests.optwrap.monitoring import Books, StubExporter
from tests.optwrap.simulation import Step

pytestmark = [pytest.mark.timeout(300), pytest.mark.thin(5)]

Reported = dict[tuple[str, int], Books]
"""By run and process."""


@functools.cache
def truth(steps: int) -> list[Step]:
    return lived(job.SEED, job.RECIPE, [Piece(0, steps)])


def run(stub: StubExporter, *jobs: tuple[Callable[..., None], tuple[Any, ...]], directory: Path) -> Reported:
    """Run processes to their end; returns what each has reported."""
    found: Reported = collections.defaultdict(Books)

    def answer(body: bytes, _: socket.socket) -> tuple[int, dict[str, str], bytes]:
        report = json.loads(body)
        with stub._condition:
            return 200, {}, json.dumps(found[report["run"], report["process"]].take(body)).encode()

    stub.answer = answer
    said = run_to_the_end(stub.endpoint, *jobs, directory=directory)
    assert said == ["done"] * len(jobs)
    return found


@pytest.fixture
def stub() -> Iterator[StubExporter]:
    server = StubExporter()
    yield server
    server.close()


def collected(request: pytest.FixtureRequest) -> list[tuple[str, job.Emit]]:
    """The cases that use this fixture and were selected: only these need a training."""
    name, param = request.fixturename, getattr(request, "param", None)
    cases: list[Any] = [
        item.callspec.params
        for item in request.session.items
        if isinstance(item, pytest.Function) and name in item.fixturenames
    ]
    return [(case["way"], case["emit"]) for case in cases if case.get(name) == param]


@pytest.fixture(scope="module")
def of_one_process(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reported:
    server = StubExporter()
    cases = collected(request)
    try:
        return run(server, (job.alone, (cases,)), directory=tmp_path_factory.mktemp("alone"))
    finally:
        server.close()


@pytest.fixture(scope="module", params=[2, 4])
def of_processes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Reported]:
    server, n = StubExporter(), request.param
    cases = collected(request)
    coordinator = free_address()
    try:
        jobs = [(job.together, ((coordinator, n, index), cases)) for index in range(n)]
        return n, run(server, *jobs, directory=tmp_path_factory.mktemp("together"))
    finally:
        server.close()


def check(books: Books, steps: int) -> None:
    """Totals, step records and non-finite parameters are the truth; nothing is there twice, and nothing is missing."""
    true = truth(steps)
    expected = {key: n for key, n in counted(true[-1]).items() if n}
    assert books.totals() == expected
    rows: dict[int, tuple[Any, ...]] = {}
    offenders: dict[int, dict[str, int]] = collections.defaultdict(dict)
    for reports in books.incarnations().values():
        for report in reports:
            columns = report["steps"]
            for row in zip(*(columns[name] for name in ("step", "outcome", "finite", "mini_step")), strict=True):
                assert row[0] not in rows, f"step {row[0]} twice"
                rows[row[0]] = row[1:]
            for one in report["offenders"]:
                if "not_finite" in one:  # otherwise it is a share of a finite norm, see test_largest_parameters.py
                    offenders[one["step"]][one["parameter"]] = one["not_finite"]
    assert rows == {
        number: (step.outcome, step.finite, step.gauges["mini_step"]) for number, step in enumerate(true, 1)
    }
    assert offenders == {
        number: step.nonfinite_parameters for number, step in enumerate(true, 1) if step.nonfinite_parameters
    }
    assert books.dropped() == {"steps": 0, "bad_steps": 0}


def test_the_truth_has_everything_in_it() -> None:
    """Steps that were accumulated, applied and skipped, and every parameter non-finite in some step."""
    last = truth(job.STEPS)[-1]
    assert {outcome for outcome, n in last.outcomes.items() if n} >= {"applied", "accumulated", "skipped_not_finite"}
    assert len(last.parameters) == 3


@pytest.mark.parametrize("emit", job.EMITS)
@pytest.mark.parametrize("way", job.WAYS)
def test_every_way_of_a_step_is_counted_alike(way: str, emit: job.Emit, of_one_process: Reported) -> None:
    check(of_one_process[f"{way}-{emit}", 0], job.MANY if way == "ahead" else job.STEPS)


@pytest.mark.parametrize("emit", job.EMITS)
@pytest.mark.parametrize("way", job.ORDERS)
def test_of_several_processes_each_that_reports_counts_every_step(
    way: str, emit: job.Emit, of_processes: tuple[int, Reported]
) -> None:
    """By reading, each process does; by callback, the one that owns the mesh's first device. The others say hello."""
    n, reported = of_processes
    owner = 0 if way == "in-order" else n - 1
    for process in range(n):
        books = reported[f"{n}-{way}-{emit}", process]
        if emit == "reading" or process == owner:
            check(books, job.STEPS)
        else:
            assert books.totals() == {}
            assert books.order, "it has said hello"
            assert books.order[-1]["state"] == "finished"
