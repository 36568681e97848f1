"""However a step is run and reported, each is counted once by each process that reports, and its offenders are named.

The truth is numpy's, of the faults that were put in; what is compared is what arrives at an exporter.
"""

import collections
import functools
import itertools
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from optwrap._monitor.backlog import GOOD_OUTCOMES
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
    """Run processes to their end, and keep the books of what they report."""
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


def collected(request: pytest.FixtureRequest) -> list[tuple[str, job.Form]]:
    """The ways and forms of the cases that need this fixture and are run this time: no others are worth a training."""
    name, param = request.fixturename, getattr(request, "param", None)
    return [
        (item.callspec.params["way"], item.callspec.params["form"])
        for item in request.session.items
        if isinstance(item, pytest.Function) and name in item.fixturenames and item.callspec.params.get(name) == param
    ]


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
    """Totals, each step's record and its offenders are the truth; nothing is double, nothing is missing."""
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
                offenders[one["step"]][one["parameter"]] = one["not_finite"]
    assert rows == {
        number: (step.outcome, step.finite, step.gauges["mini_step"]) for number, step in enumerate(true, 1)
    }
    assert offenders == {number: step.offenders for number, step in enumerate(true, 1) if step.offenders}
    assert books.dropped() == {"steps": 0, "bad_steps": 0}


def test_the_truth_has_everything_in_it() -> None:
    """Steps that were accumulated, applied and skipped, and every parameter as an offender."""
    last = truth(job.STEPS)[-1]
    assert {outcome for outcome, n in last.outcomes.items() if n} >= {"applied", "accumulated", "skipped_not_finite"}
    assert len(last.parameters) == 3


def test_steps_wait_at_the_end_of_the_truth() -> None:
    """So that those which the last state hands over would be missed."""
    for steps, form in itertools.product((job.STEPS, job.MANY), job.FORMS):
        waiting = 0
        for step in truth(steps):
            due = waiting + 1 >= form.callback_every or not step.finite or step.outcome not in GOOD_OUTCOMES
            waiting = 0 if due else waiting + 1
        assert (waiting > 0) == (form.callback_every > 1)


def named(value: Any) -> str:
    return str(value)


@pytest.mark.parametrize("form", job.FORMS, ids=named)
@pytest.mark.parametrize("way", job.WAYS)
def test_every_way_of_a_step_is_counted_alike(way: str, form: job.Form, of_one_process: Reported) -> None:
    check(of_one_process[f"{way}-{form}", 0], job.MANY if way == "ahead" else job.STEPS)


@pytest.mark.parametrize("form", job.FORMS, ids=named)
@pytest.mark.parametrize("way", job.ORDERS)
def test_of_several_processes_each_that_reports_counts_every_step(
    way: str, form: job.Form, of_processes: tuple[int, Reported]
) -> None:
    """By reading it is each; by callback the owner of the mesh's first device, and the others are there."""
    n, reported = of_processes
    owner = 0 if way == "in-order" else n - 1
    for process in range(n):
        books = reported[f"{n}-{way}-{form}", process]
        if form == job.READING or process == owner:
            check(books, job.STEPS)
        else:
            assert books.totals() == {}
            assert books.order, "it has said that it is there"
            assert books.order[-1]["state"] == "finished"
