"""Group commit: many reports in one transaction are what they would be one by one, and none harms another."""

import asyncio
import json
import sqlite3
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optwrap_exporter.ingest.group_commit import GROUP, Committed, ConflictError, GroupCommit, Offer
from optwrap_exporter.ingest.ingest import digest_of
from optwrap_exporter.ingest.load import Load
from optwrap_exporter.ledger.plan import Plan
from optwrap_exporter.wire.answers import Acknowledgement
from optwrap_exporter.wire.requests import Report

from tests.exporter.histories import History, delivered, histories
from tests.exporter.ingests import Exporter, changed, everything
from tests.exporter.stores import Kept
from tests.exporter.trainer import Trainer


@pytest.fixture
def waiting(tmp_path: Path) -> Iterator[Exporter]:
    """An exporter whose writer has not started: what is offered before it starts is one group."""
    exporter = Exporter(tmp_path / "data")
    yield exporter
    exporter.ingest.close()
    exporter.store.close()


def offered(exporter: Exporter, reports: Sequence[Report]) -> list[Future[Acknowledgement]]:
    """The futures of reports that were offered together."""
    futures = [exporter.ingest.offer(report) for report in reports]
    if not exporter.ingest.alive:
        exporter.ingest.start()
    for future in futures:
        future.exception(30)
    return futures


def commits(exporter: Exporter) -> list[str]:
    """The COMMITs of the writer's connection from now on."""
    found: list[str] = []
    exporter.store._db.set_trace_callback(lambda sql: found.append(sql) if sql == "COMMIT" else None)
    return found


def test_reports_that_wait_are_one_transaction_and_one_notification(waiting: Exporter) -> None:
    heard: list[Committed] = []
    waiting.ingest.subscribe(heard.append)
    seen = commits(waiting)
    trainers = [Trainer(waiting.clock, run=f"run-{n}") for n in range(5)]
    futures = offered(waiting, [trainer.report() for trainer in trainers])
    assert [future.result().acknowledged for future in futures] == [1] * 5
    assert len(seen) == 1
    assert heard == [Committed(5, frozenset(f"run-{n}" for n in range(5)))]


def test_a_group_is_bounded(waiting: Exporter) -> None:
    seen = commits(waiting)
    trainer = Trainer(waiting.clock)
    futures = offered(waiting, [trainer.report() for _ in range(2 * GROUP + 1)])
    assert [future.result().acknowledged for future in futures] == list(range(1, 2 * GROUP + 2))
    assert len(seen) == 3


def test_reports_of_one_process_in_a_group_are_folded_in_their_order(waiting: Exporter) -> None:
    """A streak that spans them is one streak, and a step that two of them carry is stored once."""
    trainer = Trainer(waiting.clock)
    reports = []
    for _ in range(4):
        trainer.step()
        trainer.bad()
        trainer.bad()
        reports.append(trainer.report())
    again = json.loads(reports[-1].model_dump_json()) | {"seq": 5}
    futures = offered(waiting, [*reports, Report.model_validate_json(json.dumps(again))])
    assert [future.result().acknowledged for future in futures] == [1, 2, 3, 4, 5]
    assert waiting.detail.totals.steps == 12
    assert waiting.store.steps("lm", 0).total == 12
    events = [event.kind for event in reversed(waiting.store.events("lm").items)]
    assert events.count("streak_started") == 4
    assert events.count("streak_ended") == 3
    assert events.count("skipped") == 8


@given(history=histories(), data=st.data())
@settings(max_examples=15)
def test_groups_store_what_single_reports_store(
    tmp_path_factory: pytest.TempPathFactory, history: History, data: st.DataObject
) -> None:
    """Every answer, step, event and revision is the same, however the reports are grouped."""
    arriving = delivered(data, history)
    sizes = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    texts = []
    for grouped in (False, True):
        exporter = Exporter(tmp_path_factory.mktemp("grouped") / "data")
        writer = GroupCommit(exporter.store, exporter.ledger, Load(cpu=lambda: 0.0))
        answers: list[str] = []
        left = [Offer(report, digest_of(report)) for report in arriving]
        turn = 0
        while left:
            size = sizes[turn % len(sizes)] if grouped else 1
            answers += map(str, writer.take(left[:size]))
            left = left[size:]
            turn += 1
        texts.append((answers, everything(exporter), exporter.store.events("lm", limit=1000).model_dump_json()))
        exporter.store.close()
    assert texts[0] == texts[1]


def test_a_refused_report_does_not_fail_the_others_of_its_group(waiting: Exporter) -> None:
    trainer, other = Trainer(waiting.clock), Trainer(waiting.clock, run="other")
    first = trainer.report()
    trainer.step()
    second = trainer.report()
    wrong_attempt = trainer.report(attempt="another")
    futures = offered(waiting, [first, changed(first), first, wrong_attempt, second, other.report()])
    assert futures[0].result().acknowledged == 1
    assert isinstance(futures[1].exception(), ConflictError)
    assert futures[2].result().duplicate
    assert isinstance(futures[3].exception(), ConflictError)
    assert futures[4].result().acknowledged == 2
    assert futures[5].result().acknowledged == 1
    assert waiting.detail.totals.steps == 1


def test_if_the_commit_fails_every_report_gets_the_error_and_nothing_has_changed(waiting: Exporter) -> None:
    """Also nothing that later plans would see: the same reports are new when they come again."""
    trainers = [Trainer(waiting.clock, process=process, process_count=2) for process in range(2)]
    trainers[0].step()
    trainers[1].bad()
    reports = [trainer.report() for trainer in trainers]
    before = everything(waiting)

    def refuse(action: int, operation: str | None, *_: Any) -> int:
        return sqlite3.SQLITE_DENY if (action, operation) == (sqlite3.SQLITE_TRANSACTION, "COMMIT") else 0

    waiting.store._db.set_authorizer(refuse)
    futures = offered(waiting, [*reports, reports[0]])
    assert [type(future.exception()) for future in futures] == [sqlite3.DatabaseError] * 3
    assert everything(waiting) == before
    assert waiting.ledger.find(reports[0]) is None
    waiting.store._db.set_authorizer(None)
    alone = [waiting.ingest.submit(report) for report in reversed(reports)]
    assert not any(answer.duplicate for answer in alone)
    diverged = waiting.store.events("lm", kind=["diverged"]).items
    assert [event.detail["outcomes"] for event in diverged] == [{"0": "applied", "1": "skipped_not_finite"}]
    assert [event.process for event in diverged] == [0], "the report that came last is compared with the first"


def test_a_report_that_breaks_the_writing_fails_alone(waiting: Exporter, monkeypatch: pytest.MonkeyPatch) -> None:
    real = waiting.ledger.plan

    def plan(report: Report, asked: float = 0.0) -> Plan:
        found = real(report, asked)
        if report.run == "poison":
            found = Plan(found.time, found.run, found.process, (object(),), report, found.before)  # type: ignore[arg-type]
        return found

    monkeypatch.setattr(waiting.ledger, "plan", plan)
    reports = [Trainer(waiting.clock, run=run).report() for run in ("a", "poison", "b")]
    futures = offered(waiting, reports)
    assert isinstance(futures[1].exception(), AttributeError)
    assert [futures[n].result().acknowledged for n in (0, 2)] == [1, 1]
    assert waiting.ledger.runs() == ["a", "b"]


def test_processes_that_disagree_within_a_group_have_diverged(waiting: Exporter) -> None:
    trainers = [Trainer(waiting.clock, process=process, process_count=2) for process in range(2)]
    trainers[0].step()
    trainers[1].bad()
    offered(waiting, [trainer.report() for trainer in trainers])
    (diverged,) = waiting.store.events("lm", kind=["diverged"]).items
    assert diverged.detail["processes"] == [0, 1]


def test_readers_see_nothing_of_a_group_before_its_commit(waiting: Exporter, monkeypatch: pytest.MonkeyPatch) -> None:
    real, seen = waiting.store.commit_group, []

    def commit_group(plans: Sequence[tuple[Plan, bytes | None]]) -> int:
        seen.append((waiting.ledger.runs(), waiting.store.revision(), len(plans)))
        return real(plans)

    monkeypatch.setattr(waiting.store, "commit_group", commit_group)
    trainer = Trainer(waiting.clock)
    offered(waiting, [trainer.report() for _ in range(3)])
    assert seen == [([], 0, 3)]
    assert waiting.store.revision() == 3


def test_an_event_loop_is_woken_once_for_a_group(waiting: Exporter, monkeypatch: pytest.MonkeyPatch) -> None:
    async def offer() -> tuple[list[int], int]:
        loop, woken = asyncio.get_running_loop(), []
        trainer = Trainer(waiting.clock)
        futures = [waiting.ingest.offer_async(trainer.report()) for _ in range(8)]
        wake = loop.call_soon_threadsafe

        def counted(*arguments: Any) -> Any:
            woken.append(arguments)
            return wake(*arguments)

        monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
        waiting.ingest.start()
        answers = await asyncio.wait_for(asyncio.gather(*futures), 30)
        return [answer.acknowledged for answer in answers], len(woken)

    assert asyncio.run(offer()) == (list(range(1, 9)), 1)


def test_a_report_whose_client_is_gone_is_not_stored(waiting: Exporter) -> None:
    async def offer() -> tuple[bool, int]:
        trainer = Trainer(waiting.clock)
        gone = waiting.ingest.offer_async(trainer.report(), gone=lambda: True)
        here = waiting.ingest.offer_async(Trainer(waiting.clock, run="other").report(), gone=lambda: False)
        waiting.ingest.start()
        answer = await asyncio.wait_for(here, 30)
        await asyncio.wait({gone}, timeout=30)
        return gone.cancelled(), answer.acknowledged

    assert asyncio.run(offer()) == (True, 1)
    assert waiting.ledger.runs() == ["other"]


def test_room_is_made_once_for_a_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Kept(tmp_path / "data", limit_bytes=1 << 20)
    asked: list[int] = []
    real = kept.store.make_room

    def make_room(records: int = 0) -> Any:
        asked.append(records)
        return real(records)

    monkeypatch.setattr(kept.store, "make_room", make_room)
    trainer = Trainer(kept.clock)
    reports = []
    for _ in range(5):
        trainer.step()
        reports.append(trainer.report())
    GroupCommit(kept.store, kept.ledger, Load()).take([Offer(report, digest_of(report)) for report in reports])
    assert asked == [5]
    kept.store.close()
