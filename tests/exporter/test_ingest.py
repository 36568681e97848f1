"""Ingest: the queue, the writer's errors, and the listeners that hear of each commit."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest
from optwrap_exporter.ingest.group_commit import BusyError, Committed, ConflictError
from optwrap_exporter.ledger.plan import Plan
from optwrap_exporter.store.condition import StoreState, StoreUnavailableError
from optwrap_exporter.store.connections import ClosedError
from optwrap_exporter.wire.answers import Acknowledgement

from tests.exporter.ingests import Exporter, changed, everything
from tests.exporter.trainer import Trainer


@pytest.fixture
def exporter(tmp_path: Path) -> Iterator[Exporter]:
    with Exporter(tmp_path / "data") as running:
        yield running


def test_a_report_is_answered_once_it_is_committed(exporter: Exporter) -> None:
    trainer = Trainer(exporter.clock)
    trainer.step()
    answer = exporter.ingest.submit(trainer.report())
    assert answer == Acknowledgement(acknowledged=1, interval=1.0)
    assert not answer.duplicate
    assert exporter.detail.totals.steps == 1
    assert exporter.store.steps("lm", 0).total == 1


def test_a_report_that_cannot_be_stored_changes_nothing(exporter: Exporter, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(exporter.clock)
    trainer.step()
    exporter.ingest.submit(trainer.report())
    before = everything(exporter)
    trainer.step()
    report = trainer.report()

    def full(*_: object) -> tuple[int, Plan]:
        raise StoreUnavailableError(StoreState("full"))

    with monkeypatch.context() as patched:
        patched.setattr(exporter.store, "commit", full)
        with pytest.raises(StoreUnavailableError):
            exporter.ingest.submit(report)
    assert everything(exporter) == before
    exporter.ingest.submit(report)
    assert exporter.detail.totals.steps == 2


def test_an_error_in_one_report_does_not_end_the_writer(exporter: Exporter, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(exporter.clock)
    report = trainer.report()

    def broken(*_: object) -> Plan:
        raise ZeroDivisionError

    with monkeypatch.context() as patched:
        patched.setattr(exporter.ledger, "plan", broken)
        with pytest.raises(ZeroDivisionError):
            exporter.ingest.submit(report)
    assert exporter.ingest.alive
    exporter.ingest.submit(report)


def test_a_full_queue_refuses_reports_until_it_is_shorter(tmp_path: Path) -> None:
    trainer = Trainer()
    exporter = Exporter(tmp_path, waiting=3)
    waiting = [exporter.ingest.offer(trainer.report()) for _ in range(3)]
    assert exporter.ingest.waiting == 3
    refused = trainer.report()
    with pytest.raises(BusyError) as busy:
        exporter.ingest.offer(refused)
    assert busy.value.retry_after > 0
    with exporter:
        assert [future.result().acknowledged for future in waiting] == [1, 2, 3]
        assert exporter.ingest.submit(refused).acknowledged == 4


def test_a_cancelled_report_is_not_stored(tmp_path: Path) -> None:
    trainer = Trainer()
    exporter = Exporter(tmp_path)
    first, second = (exporter.ingest.offer(trainer.report()) for _ in range(2))
    assert first.cancel()
    with exporter:
        assert second.result().acknowledged == 0  # the oldest that the client holds is missing
        assert exporter.ingest.waiting == 0


def test_closing_answers_waiting_reports_and_refuses_new_ones(tmp_path: Path) -> None:
    trainer = Trainer()
    exporter = Exporter(tmp_path)
    waiting = [exporter.ingest.offer(trainer.report()) for _ in range(20)]
    alive = [exporter.ingest.alive]
    with exporter:
        alive.append(exporter.ingest.alive)
    alive.append(exporter.ingest.alive)
    assert alive == [False, True, False]
    assert [future.result().acknowledged for future in waiting] == list(range(1, 21))
    for closed in (lambda: exporter.ingest.submit(trainer.report()), exporter.ingest.tick):
        with pytest.raises(ClosedError):
            closed()
    exporter.ingest.close()


def test_concurrent_clients_are_all_counted(exporter: Exporter) -> None:
    def client(process: int) -> None:
        trainer = Trainer(exporter.clock, process=process, process_count=8)
        for _ in range(20):
            trainer.step()
            exporter.ingest.submit(trainer.report())

    threads = [threading.Thread(target=client, args=(process,)) for process in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [row.totals.steps for row in exporter.detail.processes] == [20] * 8
    assert exporter.detail.totals.steps == 20
    assert exporter.store.revision() == 160


def test_a_listener_is_called_when_the_commit_can_be_read(exporter: Exporter) -> None:
    heard: list[tuple[Committed, int, int]] = []

    def listen(committed: Committed) -> None:
        heard.append((committed, exporter.store.revision(), exporter.detail.totals.steps))

    def broken(_: Committed) -> None:
        raise ZeroDivisionError

    exporter.ingest.subscribe(broken)
    unsubscribe = exporter.ingest.subscribe(listen)
    trainer = Trainer(exporter.clock)
    for _ in range(2):
        trainer.step()
        report = trainer.report()
        exporter.ingest.submit(report)
        exporter.ingest.submit(report)
    exporter.clock.advance(60)
    exporter.ingest.tick()
    unsubscribe()
    exporter.ingest.submit(trainer.report())
    lm = frozenset({"lm"})
    assert heard == [(Committed(1, lm), 1, 1), (Committed(2, lm), 2, 2), (Committed(3, lm), 3, 2)]


def test_futures_carry_errors(exporter: Exporter) -> None:
    trainer = Trainer(exporter.clock)
    report = trainer.report()
    offered: list[Future[Acknowledgement]] = [exporter.ingest.offer(one) for one in (report, changed(report), report)]
    assert offered[0].result().acknowledged == 1
    assert isinstance(offered[1].exception(), ConflictError)
    assert offered[2].result().duplicate
