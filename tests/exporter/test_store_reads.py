"""Each read sees one committed state while the writer goes on; step records are as reported."""

import sqlite3
import threading

import pytest
from optwrap_exporter.store.connections import ClosedError

from tests.exporter.stores import Kept, check_blocks, rows
from tests.exporter.trainer import Trainer, sent


def test_a_read_sees_one_state_and_does_not_block_the_writer(kept: Kept) -> None:
    trainer = Trainer(kept.clock)
    trainer.step()
    kept.take(trainer.report())
    with kept.store._connections.reading() as reader:
        assert reader.execute("SELECT count(*) FROM step").fetchone() == (1,)
        trainer.step()
        kept.take(trainer.report())
        assert reader.execute("SELECT count(*) FROM step").fetchone() == (1,)
    assert kept.store.steps("lm", 0).total == 2


def test_threads_read_while_one_writes(kept: Kept) -> None:
    trainer = Trainer(kept.clock)
    done = threading.Event()
    totals: list[list[int]] = [[] for _ in range(8)]

    def read(seen: list[int]) -> None:
        while not done.is_set():
            answer = kept.store.steps("lm", 0, points=10**6)
            assert answer.total == len(answer.columns)
            seen.append(answer.total)

    threads = [threading.Thread(target=read, args=(seen,)) for seen in totals]
    for thread in threads:
        thread.start()
    for _ in range(100):
        trainer.step()
        kept.take(trainer.report())
    done.set()
    for thread in threads:
        thread.join()
    for seen in totals:
        assert seen == sorted(seen)


def test_a_closed_store_is_not_read(kept: Kept) -> None:
    kept.store.close()
    kept.store.close()
    with pytest.raises(ClosedError, match="closed"):
        kept.store.revision()


def test_a_read_during_close_raises(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    free = kept.store._connections._free
    get = free.get

    def too_late() -> sqlite3.Connection | None:
        monkeypatch.undo()
        kept.store.close()
        return get(timeout=5)

    monkeypatch.setattr(free, "get", too_late)
    with pytest.raises(ClosedError, match="closed"):
        kept.store.revision()


def test_a_step_taken_twice_has_two_records_in_the_order_of_time(kept: Kept) -> None:
    first = Trainer(kept.clock)
    first.step(norm=1.0)
    first.step(norm=2.0)
    kept.take(first.report())
    kept.clock.advance(1)
    again = Trainer(kept.clock, attempt="second")
    again.step(norm=3.0)
    kept.take(again.report())
    assert [(row[0], row[3]) for row in rows(kept.store.steps("lm", 0))] == [(1, 1.0), (1, 3.0), (2, 2.0)]


def test_a_step_reported_twice_is_stored_once(kept: Kept) -> None:
    trainer = Trainer(kept.clock)
    trainer.step(norm=1.0)
    report = trainer.json()
    kept.take(sent(report))
    kept.take(sent(report | {"seq": 2, "steps": {**report["steps"], "norm": [9.0]}}))
    answer = kept.store.steps("lm", 0)
    assert (answer.total, rows(answer)[0][3]) == (1, 1.0)
    check_blocks(kept.directory)


def test_estimated_times_are_marked(kept: Kept) -> None:
    trainer = Trainer(kept.clock)
    trainer.step()
    trainer.step()
    report = trainer.json()
    report["steps"]["interpolated"] = [False, True]
    kept.take(sent(report))
    assert kept.store.steps("lm", 0).columns.interpolated == [False, True]
    assert kept.store.steps("lm", 0, until=1).columns.interpolated is None


def test_an_unknown_run_or_process_has_nothing(kept: Kept) -> None:
    kept.take(Trainer(kept.clock).report())
    assert kept.store.steps("nobody", 0).total == 0
    assert kept.store.steps("lm", 7).columns.step == []
    assert kept.store.events("nobody").items == []
    assert kept.store.changes(0, "nobody").messages == []
