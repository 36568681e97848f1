"""Each report counts once: duplicates, conflicts, and reports that arrive out of order."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optwrap_exporter.ingest.group_commit import BusyError, ConflictError
from optwrap_exporter.ingest.ingest import Retention, digest_of
from optwrap_exporter.ledger import ranges
from optwrap_exporter.wire.requests import Report

from tests.exporter.histories import History, delivered, histories
from tests.exporter.ingests import Exporter, changed, everything
from tests.exporter.trainer import Trainer, TurnedClock, sent


@pytest.fixture
def exporter(tmp_path: Path) -> Iterator[Exporter]:
    with Exporter(tmp_path / "data") as running:
        yield running


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


def test_a_known_seq_with_other_content_is_a_conflict_and_changes_nothing(exporter: Exporter) -> None:
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


def test_an_incarnation_that_changes_its_attempt_is_a_conflict_and_changes_nothing(exporter: Exporter) -> None:
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


def test_another_attempt_is_refused_before_anything_is_planned(
    exporter: Exporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan for a report of 3 MB takes tenths of a second."""
    trainer = Trainer(exporter.clock)
    exporter.ingest.submit(trainer.report())
    monkeypatch.setattr(exporter.ledger, "plan", None)
    with pytest.raises(ConflictError, match=r"attempt: second: expected .*first"):
        exporter.ingest.submit(trainer.report(attempt="second"))


def test_too_many_gaps_are_refused(exporter: Exporter, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ingest keeps only so many ranges of seqs; the client sends a refused report again."""
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


def test_a_conflict_is_recognized_after_a_restart(tmp_path: Path) -> None:
    trainer = Trainer()
    report = trainer.report()
    with Exporter(tmp_path) as exporter:
        exporter.ingest.submit(report)
    with Exporter(tmp_path) as exporter:
        with pytest.raises(ConflictError):
            exporter.ingest.submit(changed(report))
        assert exporter.ingest.submit(report).duplicate


def test_the_same_seq_of_another_process_or_run_is_another_report(exporter: Exporter) -> None:
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
