"""Records are deleted by age, by size, on a full disk and on request; totals stay, and the loss is counted."""

import contextlib
import itertools
import sqlite3
from pathlib import Path

import pytest
from optwrap_exporter.store import condition, schema
from optwrap_exporter.store.condition import StoreUnavailableError
from optwrap_exporter.store.store import SMALLEST_LIMIT
from optwrap_exporter.wire.requests import Report

from tests.exporter.stores import Kept, busy_runs, check_blocks, rows
from tests.exporter.trainer import Trainer


def test_old_records_and_events_are_deleted_and_totals_stay(kept: Kept) -> None:
    trainer = Trainer(kept.clock)
    for _ in range(10):
        trainer.bad()
        trainer.step()
        kept.take(trainer.report())
        kept.clock.advance(10)
    before = kept.ledger.detail("lm")
    while kept.store.retire(kept.clock.now - 45):
        pass
    check_blocks(kept.directory)
    assert kept.store.steps("lm", 0).columns.step == list(range(13, 21))
    assert [event.step for event in kept.store.events("lm", kind=["skipped"]).items] == [19, 17, 15, 13]
    assert kept.ledger.detail("lm") == before
    kept.ledger = kept.reopened().ledger
    after = kept.ledger.detail("lm")
    assert before is not None
    assert after is not None
    assert after.totals == before.totals
    assert after.parameters == before.parameters


@pytest.mark.parametrize(("reports", "records"), [(300, 40), (25, 1000)])
def test_at_the_limit_the_oldest_records_are_deleted_and_counted(tmp_path: Path, reports: int, records: int) -> None:
    """No more than needed: the store stays as full as it may be."""
    kept = Kept(tmp_path, limit_bytes=SMALLEST_LIMIT)
    trainers = [Trainer(kept.clock, process=process, process_count=2) for process in range(2)]
    sizes: list[int] = []
    for _ in range(reports):
        kept.clock.advance(1)
        for trainer in trainers:
            for _ in range(records):
                trainer.step()
            trainer.bad()
            kept.take(trainer.report())
        sizes.append(kept.store.size())
    full = next(place for place, size in enumerate(sizes) if size > 0.75 * SMALLEST_LIMIT)
    assert max(sizes) <= SMALLEST_LIMIT
    assert min(sizes[full:]) > 0.75 * SMALLEST_LIMIT
    last = trainers[1].state.steps
    for view in kept.ledger.views():
        steps = kept.store.steps("lm", view.process, points=10**6).columns.step
        assert steps == list(range(steps[0], last + 1))
        assert view.dropped.not_stored == last - len(steps) > 0
        assert view.totals.steps == last
    check_blocks(tmp_path)
    answer = kept.ledger.detail("lm")
    kept.store.close()
    again = Kept(tmp_path, clock=kept.clock)
    assert again.ledger.detail("lm") == answer
    again.store.close()


def test_a_lowered_limit_is_reached_in_small_deletions(kept: Kept) -> None:
    trainer = Trainer(kept.clock)
    for _ in range(60):
        for _ in range(1000):
            trainer.step()
        kept.take(trainer.report())
    kept.store.close()
    lower = Kept(kept.directory, clock=kept.clock, limit_bytes=SMALLEST_LIMIT)
    sizes = [lower.store.size()]
    while len(sizes) == 1 or sizes[-1] < sizes[-2]:
        lower.ledger.count_not_stored(lower.store.make_room())
        sizes.append(lower.store.size())
    assert sizes[0] > 1.5 * SMALLEST_LIMIT > SMALLEST_LIMIT > sizes[-1] > 0.75 * SMALLEST_LIMIT
    assert max(before - after for before, after in itertools.pairwise(sizes)) < SMALLEST_LIMIT / 4
    (view,) = lower.ledger.views()
    assert view.dropped.not_stored == 60_000 - lower.store.steps("lm", 0).total
    lower.store.close()


def test_a_full_disk_first_drops_records_and_then_refuses_reports(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """The full disk is a limit of SQLite's pages at the present size."""
    monkeypatch.setattr(condition, "TRIAL_SECONDS", 0.0)
    trainer = Trainer(kept.clock)
    for _ in range(300):
        trainer.step()
    kept.take(trainer.report())
    full = kept.store.size()
    schema.limit_pages(kept.store._db, full)
    left_out = 0
    while not left_out:
        for _ in range(300):
            trainer.step()
        kept.take(trainer.report())
        answer = kept.ledger.detail("lm")
        assert answer is not None
        left_out = answer.dropped.not_stored
        assert answer.totals.steps == trainer.state.steps
        assert kept.store.steps("lm", 0).total == trainer.state.steps - left_out
    refused: list[Report] = []
    while not refused:
        report = trainer.report()
        before = kept.ledger.detail("lm")
        try:
            kept.take(report)
        except StoreUnavailableError as error:
            assert "full" in str(error)  # noqa: PT017 it comes after an unknown number of reports that fit
            refused.append(report)
    assert kept.store.size() <= full
    assert kept.ledger.detail("lm") == before
    schema.limit_pages(kept.store._db, 100 * full)  # somebody makes room: the same report is taken
    assert kept.store.look()
    kept.take(refused[0])
    trainer.step()
    kept.take(trainer.report())
    again = kept.reopened().ledger.detail("lm")
    assert again is not None
    assert again.totals.steps == trainer.state.steps
    assert again.dropped.not_stored == left_out
    check_blocks(kept.directory)


def test_forgetting_a_run_deletes_all_its_rows_and_no_others(kept: Kept) -> None:
    busy_runs(kept)
    other = (rows(kept.store.steps("other", 0)), kept.store.events("other"))
    assert kept.store.forget("lm")
    assert not kept.store.forget("lm")
    kept.ledger.forget("lm")
    assert (rows(kept.store.steps("other", 0)), kept.store.events("other")) == other
    with contextlib.closing(sqlite3.connect(kept.directory / "optwrap.sqlite3")) as db:
        for table in schema.OF_RUN:
            assert db.execute(f"SELECT count(DISTINCT run_id) FROM {table}").fetchone() == (1,)
        assert db.execute("SELECT count(*) FROM parameter").fetchone() == (1,)
    revision = kept.store.revision()
    trainer = Trainer(kept.clock)
    trainer.bad()
    assert kept.take(trainer.report()) > revision  # a client that was further may come back with its last event id
    assert kept.store.steps("lm", 0).total == 1
