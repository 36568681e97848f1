"""The ingest's ticks: stale processes, retention, and runs that are forgotten."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from optwrap_exporter.ingest.ingest import Ingest, Retention
from optwrap_exporter.ledger.ledger import Ledger
from optwrap_exporter.ledger.plan import Plan
from optwrap_exporter.store.condition import StoreState, StoreUnavailableError
from optwrap_exporter.store.store import SMALLEST_LIMIT, Store
from optwrap_exporter.wire.vocabulary import Health

from tests.exporter.ingests import Exporter
from tests.exporter.trainer import State, Trainer, TurnedClock


@pytest.fixture
def exporter(tmp_path: Path) -> Iterator[Exporter]:
    with Exporter(tmp_path / "data") as running:
        yield running


def health(exporter: Exporter) -> Health:
    return exporter.detail.health


def stale_events(exporter: Exporter) -> int:
    return len(exporter.store.events("lm", kind=["stale"]).items)


def test_a_stale_process_is_one_event_over_ticks_and_restarts(tmp_path: Path) -> None:
    clock = TurnedClock()
    trainer = Trainer(clock)
    with Exporter(tmp_path, clock) as exporter:
        exporter.ingest.submit(trainer.report())
        clock.advance(11)
        exporter.ingest.tick()
        exporter.ingest.tick()
        assert stale_events(exporter) == 1
    with Exporter(tmp_path, clock) as exporter:
        clock.advance(60)
        exporter.ingest.tick()
        assert stale_events(exporter) == 1
        assert health(exporter) == "stale"
        exporter.ingest.submit(trainer.report())
        assert health(exporter) == "starting"
        clock.advance(11)
        exporter.ingest.tick()
        assert stale_events(exporter) == 2


def test_processes_that_go_stale_together_are_all_stored(exporter: Exporter) -> None:
    for process in range(3):
        exporter.ingest.submit(Trainer(exporter.clock, process=process).report())
    exporter.clock.advance(60)
    exporter.ingest.tick()
    assert sorted(event.process for event in exporter.store.events("lm", kind=["stale"]).items) == [0, 1, 2]
    assert [row.health for row in exporter.detail.processes] == ["stale"] * 3
    told = exporter.store.revision()
    exporter.ingest.tick()
    assert exporter.store.revision() == told


def test_the_writer_thread_ticks(tmp_path: Path) -> None:
    """It ticks by a real clock; how soon is not asserted."""
    clock, told = TurnedClock(), threading.Event()
    with Store(tmp_path) as store:
        ingest = Ingest(store, Ledger(clock), tick=0.01)
        with ingest:
            ingest.submit(Trainer(clock).report())
            ingest.subscribe(lambda _: told.set())
            clock.advance(60)
            assert told.wait(60)
        assert [event.kind for event in store.events("lm").items] == ["stale", "started"]


def test_a_failed_tick_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, told, failed = TurnedClock(), threading.Event(), threading.Event()
    with Store(tmp_path) as store:
        ingest = Ingest(store, Ledger(clock), tick=0.01)
        commit = store.commit

        def fails_once(plan: Plan, digest: bytes | None = None) -> tuple[int, Plan]:
            if plan.report is None and not failed.is_set():
                failed.set()
                raise StoreUnavailableError(StoreState("full"))
            return commit(plan, digest)

        monkeypatch.setattr(store, "commit", fails_once)
        with ingest:
            ingest.submit(Trainer(clock).report())
            ingest.subscribe(lambda _: told.set())
            clock.advance(60)
            assert told.wait(60)
        assert failed.is_set()


def test_deleted_records_are_counted_and_the_count_survives_a_restart(tmp_path: Path) -> None:
    """They are counted for each incarnation, and a later tick does not change the counts."""
    clock = TurnedClock()
    with Exporter(tmp_path, clock, limit_bytes=SMALLEST_LIMIT) as exporter:
        state = State()
        for _ in range(3):
            trainer = Trainer(clock, state=state)
            state = trainer.state
            for _ in range(15):
                for _ in range(1000):
                    trainer.step()
                exporter.ingest.submit(trainer.report())
                clock.advance(1)
        clock.advance(60)
        exporter.ingest.tick()
        stored = exporter.store.steps("lm", 0).total
        assert stored > 10_000
        assert exporter.detail.dropped.not_stored == state.steps - stored
        before = exporter.detail
    with Exporter(tmp_path, clock, limit_bytes=SMALLEST_LIMIT) as exporter:
        assert exporter.detail == before


def test_retention_deletes_old_records_and_silent_runs_but_no_live_totals(tmp_path: Path) -> None:
    clock = TurnedClock()
    with Exporter(tmp_path, clock, retention=Retention(seconds=1000)) as exporter:
        dead = Trainer(clock, run="dead")
        dead.step()
        exporter.ingest.submit(dead.report("finished"))
        live = Trainer(clock)
        for _ in range(30):
            clock.advance(100)
            live.bad()
            exporter.ingest.submit(live.report())
        exporter.ingest.tick()
        assert exporter.ledger.runs() == ["lm"]
        assert exporter.store.steps("dead", 0).total == 0
        assert exporter.store.steps("lm", 0).columns.step == list(range(20, 31))
        before = exporter.detail
        assert before.totals.steps == 30
    with Exporter(tmp_path, clock) as exporter:
        assert exporter.detail.totals == before.totals
        assert exporter.ledger.runs() == ["lm"]


def test_forgetting_a_run_deletes_it_and_its_client_starts_again_at_zero(exporter: Exporter) -> None:
    trainer = Trainer(exporter.clock)
    trainer.step()
    exporter.ingest.submit(trainer.report())
    assert exporter.ingest.forget("lm")
    assert not exporter.ingest.forget("lm")
    assert exporter.ledger.runs() == []
    exporter.ingest.submit(trainer.report(oldest_held=2))
    assert (exporter.detail.totals.steps, exporter.detail.unseen) == (0, 1)
    trainer.step()
    exporter.ingest.submit(trainer.report(oldest_held=3))
    assert (exporter.detail.totals.steps, exporter.detail.unseen) == (1, 1)
