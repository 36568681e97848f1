"""Ingest: each report once, refused reports harm nothing, and who listens hears of what is committed."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optwrap_exporter.ingest import BusyError, ClosedError, Committed, ConflictError, Ingest, Retention, digest_of
from optwrap_exporter.ledger import ranges
from optwrap_exporter.ledger.ledger import Ledger, Plan
from optwrap_exporter.store.store import SMALLEST_LIMIT, Store, StoreFullError
from optwrap_exporter.wire.answers import Acknowledgement, RunDetail
from optwrap_exporter.wire.requests import Report

from tests.exporter.histories import History, delivered, histories
from tests.exporter.trainer import State, Trainer, TurnedClock, sent


class Exporter:
    """Store, ledger and ingest on one directory; started, with a clock that the test turns."""

    def __init__(
        self,
        directory: Path,
        clock: TurnedClock | None = None,
        *,
        waiting: int = 256,
        retention: Retention | None = None,
        limit_bytes: int | None = None,
    ) -> None:
        self.directory = directory
        self.clock = clock or TurnedClock()
        self.store = Store(directory, limit_bytes=limit_bytes)
        self.ledger = Ledger(self.clock)
        self.ingest = Ingest(self.store, self.ledger, clock=self.clock, waiting=waiting, tick=0, retention=retention)

    def __enter__(self) -> "Exporter":
        self.ingest.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ingest.close()
        self.store.close()

    @property
    def detail(self) -> RunDetail:
        answer = self.ledger.detail("lm")
        assert answer is not None
        return answer


@pytest.fixture
def exporter(tmp_path: Path) -> Iterator[Exporter]:
    with Exporter(tmp_path / "data") as running:
        yield running


def everything(exporter: Exporter) -> str:
    """All that can be asked, as one text."""
    runs = [exporter.ledger.detail(run) for run in exporter.ledger.runs()]
    return json.dumps(
        [
            exporter.store.revision(),
            *(run.model_dump_json() for run in runs if run is not None),
            *(message.model_dump_json() for message in exporter.store.changes(0, limit=10_000)),
            *(exporter.store.steps("lm", p, points=10**6).model_dump_json() for p in range(4)),
        ]
    )


def test_a_report_is_answered_once_it_is_committed(exporter: Exporter) -> None:
    trainer = Trainer(exporter.clock)
    trainer.step()
    answer = exporter.ingest.submit(trainer.report())
    assert answer == Acknowledgement(acknowledged=1, interval=1.0)
    assert not answer.duplicate
    assert exporter.detail.totals.steps == 1
    assert exporter.store.steps("lm", 0).total == 1


@given(history=histories(), data=st.data())
@settings(max_examples=20)
def test_repeating_everything_in_any_order_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, history: History, data: st.DataObject
) -> None:
    arriving = delivered(data, history)
    with Exporter(tmp_path_factory.mktemp("ingest")) as exporter:
        for report in arriving:
            exporter.ingest.submit(report)
        before = everything(exporter)
        for report in data.draw(st.permutations(arriving)):
            exporter.clock.advance(0.001)
            answer = exporter.ingest.submit(report)
            assert answer.duplicate
            assert answer.acknowledged >= report.oldest_held - 1
        exporter.clock.now -= 0.001 * len(arriving)
        assert everything(exporter) == before


def changed(report: Report) -> Report:
    return sent(json.loads(report.model_dump_json()) | {"sent_at": report.sent_at + 1})


def test_other_content_under_the_same_incarnation_and_seq_is_a_conflict_that_harms_nothing(exporter: Exporter) -> None:
    trainer = Trainer(exporter.clock)
    first, second = trainer.report(), trainer.report()
    exporter.ingest.submit(second)
    exporter.ingest.submit(first)
    before = everything(exporter)
    for report in (first, second):
        with pytest.raises(ConflictError, match=rf"incarnation {trainer.incarnation}, seq {report.seq}"):
            exporter.ingest.submit(changed(report))
    assert everything(exporter) == before
    assert exporter.ingest.submit(first).duplicate
    trainer.step()
    assert exporter.ingest.submit(trainer.report()).acknowledged == 3
    assert exporter.detail.totals.steps == 1


def test_an_incarnation_of_another_attempt_is_a_conflict_that_harms_nothing(exporter: Exporter) -> None:
    """An incarnation is of one launch: which process speaks for a launch, and what it skipped, is told by that."""
    trainer = Trainer(exporter.clock)
    trainer.bad()
    exporter.ingest.submit(trainer.report())
    before = everything(exporter)
    trainer.bad()
    report = trainer.report(attempt="second")
    with pytest.raises(ConflictError, match=r"attempt: second: expected .*first"):
        exporter.ingest.submit(report)
    assert everything(exporter) == before
    exporter.ingest.submit(sent(json.loads(report.model_dump_json()) | {"attempt": "first"}))
    assert exporter.detail.totals.steps == 2


def test_too_many_gaps_are_refused(exporter: Exporter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which reports came is kept exactly; what cannot be kept is for the client to send again."""
    monkeypatch.setattr(ranges, "MOST", 4)
    trainer = Trainer(exporter.clock)
    reports = []
    for _ in range(9):
        trainer.bad()
        reports.append(trainer.report())
    for report in reports[:7:2]:
        exporter.ingest.submit(report)
    before = everything(exporter)
    with pytest.raises(BusyError):
        exporter.ingest.submit(reports[8])
    assert everything(exporter) == before
    for place in (1, 8, 3, 5, 7):
        assert not exporter.ingest.submit(reports[place]).duplicate
    assert exporter.ingest.submit(reports[8]).acknowledged == 9
    assert exporter.store.steps("lm", 0).total == 9


def test_reports_below_oldest_held_leave_no_gap(exporter: Exporter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "MOST", 4)
    trainer = Trainer(exporter.clock)
    for seq in range(1, 100, 2):
        trainer.seq = seq - 1
        trainer.step()
        assert exporter.ingest.submit(trainer.report(oldest_held=max(1, seq - 2))).acknowledged >= seq - 2
    assert exporter.detail.totals.steps == 50


def test_a_conflict_is_known_after_a_restart_too(tmp_path: Path) -> None:
    trainer = Trainer()
    report = trainer.report()
    with Exporter(tmp_path) as exporter:
        exporter.ingest.submit(report)
    with Exporter(tmp_path) as exporter:
        with pytest.raises(ConflictError):
            exporter.ingest.submit(changed(report))
        assert exporter.ingest.submit(report).duplicate


def test_the_same_incarnation_and_seq_of_another_process_or_run_is_another_report(exporter: Exporter) -> None:
    for run in ("lm", "other"):
        for process in range(2):
            trainer = Trainer(exporter.clock, run=run, process=process, incarnation="same")
            assert not exporter.ingest.submit(trainer.report()).duplicate


def test_a_duplicate_is_recognized_after_its_digest_is_deleted(tmp_path: Path) -> None:
    trainer = Trainer()
    trainer.step()
    report = trainer.report()
    clock = TurnedClock()
    with Exporter(tmp_path, clock, retention=Retention(seconds=100)) as exporter:
        exporter.ingest.submit(report)
        clock.advance(90)
        exporter.ingest.submit(trainer.report())
        clock.advance(90)
        exporter.ingest.tick()
        assert exporter.store.digest(report) is None
        assert exporter.ingest.submit(report).duplicate
        assert exporter.detail.totals.steps == 1


def test_the_digest_depends_on_content_alone() -> None:
    report = Trainer().json()
    spaced = Report.model_validate_json(json.dumps(dict(reversed(report.items())), indent=4))
    assert digest_of(spaced) == digest_of(sent(report))
    for other in ({"sent_at": 1.0}, {"process": 1}, {"dropped": {"steps": 1, "bad_steps": 0}}):
        assert digest_of(sent(report | other)) != digest_of(sent(report))


def test_a_report_that_cannot_be_stored_changes_no_answer(exporter: Exporter, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(exporter.clock)
    trainer.step()
    exporter.ingest.submit(trainer.report())
    before = everything(exporter)
    trainer.step()
    report = trainer.report()

    def full(*_: object) -> tuple[int, Plan]:
        raise StoreFullError("no room")

    with monkeypatch.context() as patched:
        patched.setattr(exporter.store, "commit", full)
        with pytest.raises(StoreFullError):
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
    assert not exporter.ingest.alive
    with exporter:
        assert exporter.ingest.alive
    assert not exporter.ingest.alive
    assert [future.result().acknowledged for future in waiting] == list(range(1, 21))
    for closed in (lambda: exporter.ingest.submit(trainer.report()), exporter.ingest.tick):
        with pytest.raises(ClosedError):
            closed()
    exporter.ingest.close()


def test_many_clients_at_once_are_each_counted_right(exporter: Exporter) -> None:
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


def stale_events(exporter: Exporter) -> int:
    return len(exporter.store.events("lm", kind="stale").items)


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
        assert exporter.detail.health == "stale"
        exporter.ingest.submit(trainer.report())
        assert exporter.detail.health == "starting"
        clock.advance(11)
        exporter.ingest.tick()
        assert stale_events(exporter) == 2


def test_processes_that_go_stale_together_are_all_stored(exporter: Exporter) -> None:
    for process in range(3):
        exporter.ingest.submit(Trainer(exporter.clock, process=process).report())
    exporter.clock.advance(60)
    exporter.ingest.tick()
    assert sorted(event.process for event in exporter.store.events("lm", kind="stale").items) == [0, 1, 2]
    assert [row.health for row in exporter.detail.processes] == ["stale"] * 3
    told = exporter.store.revision()
    exporter.ingest.tick()
    assert exporter.store.revision() == told


def test_the_writer_thread_ticks(tmp_path: Path) -> None:
    """The writer's own looks, over a real clock; nothing is asserted of how soon."""
    clock, told = TurnedClock(), threading.Event()
    with Store(tmp_path) as store:
        ingest = Ingest(store, Ledger(clock), clock=clock, tick=0.01)
        with ingest:
            ingest.submit(Trainer(clock).report())
            ingest.subscribe(lambda _: told.set())
            clock.advance(60)
            assert told.wait(60)
        assert [event.kind for event in store.events("lm").items] == ["stale", "started"]


def test_a_failed_tick_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, told, failed = TurnedClock(), threading.Event(), threading.Event()
    with Store(tmp_path) as store:
        ingest = Ingest(store, Ledger(clock), clock=clock, tick=0.01)
        commit = store.commit

        def fails_once(plan: Plan, digest: bytes | None = None) -> tuple[int, Plan]:
            if plan.report is None and not failed.is_set():
                failed.set()
                raise StoreFullError("no room")
            return commit(plan, digest)

        monkeypatch.setattr(store, "commit", fails_once)
        with ingest:
            ingest.submit(Trainer(clock).report())
            ingest.subscribe(lambda _: told.set())
            clock.advance(60)
            assert told.wait(60)
        assert failed.is_set()


def test_deleted_records_are_counted_and_the_count_survives_a_restart(tmp_path: Path) -> None:
    """They are counted for each incarnation, and a later tick keeps the counts."""
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


def test_futures_carry_errors(exporter: Exporter) -> None:
    trainer = Trainer(exporter.clock)
    report = trainer.report()
    offered: list[Future[Acknowledgement]] = [exporter.ingest.offer(one) for one in (report, changed(report), report)]
    assert offered[0].result().acknowledged == 1
    assert isinstance(offered[1].exception(), ConflictError)
    assert offered[2].result().duplicate
