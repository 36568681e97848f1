"""However a step is run and reported, each is counted once by each process that reports, and its offenders are named.

The truth is numpy's, of the faults that were put in; what is compared is what arrives at an exporter.
"""

import collections
import functools
import json
import socket
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.chaos.findings import counted
from tests.e2e.chaos.truth import Piece, lived
from tests.e2e.ways import job
from tests.optwrap.monitoring import Books, StubExporter
from tests.optwrap.simulation import Step

pytestmark = pytest.mark.timeout(300)

CONTEXT = get_context("forkserver")

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
    started = []
    for place, (target, given) in enumerate(jobs):
        ours, theirs = CONTEXT.Pipe()
        log = directory / f"{place}.log"
        process = CONTEXT.Process(target=target, args=(theirs, stub.endpoint, log, *given), daemon=True)
        process.start()
        theirs.close()
        started.append((process, ours, log))
    try:
        for _, ours, log in started:
            try:
                assert ours.poll(240), log.read_text()
                assert ours.recv() == "done"
            except EOFError:
                raise AssertionError(log.read_text()) from None
        for process, _, log in started:
            process.join(60)
            assert process.exitcode == 0, log.read_text()
            assert "passed over" not in log.read_text(), log.read_text()
    finally:
        for process, _, _ in started:
            process.kill()
    return found


@pytest.fixture
def stub() -> Iterator[StubExporter]:
    server = StubExporter()
    yield server
    server.close()


@pytest.fixture(scope="module")
def of_one_process(tmp_path_factory: pytest.TempPathFactory) -> Reported:
    server = StubExporter()
    try:
        return run(server, (job.alone, ()), directory=tmp_path_factory.mktemp("alone"))
    finally:
        server.close()


@pytest.fixture(scope="module", params=[2, 4])
def of_processes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Reported]:
    server, n = StubExporter(), request.param
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    try:
        jobs = [(job.together, ((coordinator, n, index),)) for index in range(n)]
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
    for reports in books.epochs().values():
        for report in reports:
            columns = report["steps"]
            for row in zip(*(columns[name] for name in ("step", "verdict", "finite", "mini_step")), strict=True):
                assert row[0] not in rows, f"step {row[0]} twice"
                rows[row[0]] = row[1:]
            for one in report["offenders"]:
                offenders[one["step"]][one["parameter"]] = one["not_finite"]
    assert rows == {
        number: (step.verdict, step.finite, step.gauges["mini_step"]) for number, step in enumerate(true, 1)
    }
    assert offenders == {number: step.offenders for number, step in enumerate(true, 1) if step.offenders}
    assert books.dropped() == {"steps": 0, "bad_steps": 0}


def test_the_truth_has_everything_in_it() -> None:
    """Steps that were accumulated, applied and skipped, and every parameter as an offender."""
    last = truth(job.STEPS)[-1]
    assert {verdict for verdict, n in last.verdicts.items() if n} >= {"applied", "accumulated", "skipped_not_finite"}
    assert len(last.parameters) == 3


@pytest.mark.parametrize("emit", job.EMITS)
@pytest.mark.parametrize("way", job.WAYS)
def test_every_way_of_a_step_is_counted_alike(way: str, emit: str, of_one_process: Reported) -> None:
    check(of_one_process[f"{way}-{emit}", 0], job.MANY if way == "ahead" else job.STEPS)


@pytest.mark.parametrize("order", job.ORDERS)
def test_of_several_processes_each_counts_every_step_from_its_reading(
    order: str, of_processes: tuple[int, Reported]
) -> None:
    n, reported = of_processes
    for process in range(n):
        check(reported[f"{n}-{order.replace(' ', '-')}-reading", process], job.STEPS)


@pytest.mark.parametrize("order", job.ORDERS)
def test_of_several_processes_the_owner_of_the_meshs_first_device_counts_every_step_by_callback(
    order: str, of_processes: tuple[int, Reported]
) -> None:
    """And the others are there, and count nothing."""
    n, reported = of_processes
    owner = 0 if order == "in order" else n - 1
    for process in range(n):
        books = reported[f"{n}-{order.replace(' ', '-')}-callback", process]
        if process == owner:
            check(books, job.STEPS)
        else:
            assert books.totals() == {}
            assert books.order, "it has said that it is there"
            assert books.order[-1]["state"] == "finished"
