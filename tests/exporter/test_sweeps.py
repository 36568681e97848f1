"""Old records are deleted in sweeps: many steps of one process at once, and only once enough of them are too old."""

from pathlib import Path

import pytest
from optwrap_exporter.store import retention
from optwrap_exporter.store.steps import rollups
from optwrap_exporter.store.store import Store

from tests.exporter.stores import Kept, check_blocks
from tests.exporter.trainer import Trainer


def filled(kept: Kept, reports: int = 30, processes: int = 3) -> None:
    """A report of ten steps of each process every ten seconds, the last step bad."""
    trainers = [Trainer(kept.clock, process=process, process_count=processes) for process in range(processes)]
    for _ in range(reports):
        for trainer in trainers:
            for _ in range(9):
                trainer.step()
            trainer.bad()
            kept.take(trainer.report())
        kept.clock.advance(10)


def stored(store: Store, processes: int = 3) -> list[list[int]]:
    """The step numbers of each process."""
    return [store.steps("lm", process, points=10_000).columns.step for process in range(processes)]


def test_a_sweep_begins_once_the_oldest_are_older_by_the_slack_and_then_deletes_all(kept: Kept) -> None:
    filled(kept)
    before = kept.clock.now - 205  # 10 of 30 reports are older
    assert not kept.store.retire(before, slack=100)
    assert stored(kept.store) == [list(range(1, 301))] * 3
    while kept.store.retire(before, slack=90):
        pass
    assert stored(kept.store) == [list(range(101, 301))] * 3
    assert {event.step for event in kept.events("skipped")} == set(range(110, 301, 10))
    check_blocks(kept.directory)


@pytest.mark.parametrize("slices", range(5))
def test_a_sweep_that_was_interrupted_is_done_by_the_next_exporter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slices: int
) -> None:
    monkeypatch.setattr(retention, "_SLICE", 20)  # one process a slice
    kept = Kept(tmp_path / "data")
    filled(kept)
    before = kept.clock.now - 205
    for _ in range(slices):
        assert kept.store.retire(before)
    check_blocks(kept.directory)
    again = kept.reopened()
    detail = again.ledger.detail("lm")
    while again.store.retire(before):
        pass
    assert stored(again.store) == [list(range(101, 301))] * 3
    assert again.store._db.execute("SELECT count(*) FROM change").fetchone() == (60,)
    assert again.store._db.execute("SELECT count(*) FROM offender").fetchone() == (60,)
    check_blocks(again.directory)
    assert again.ledger.detail("lm") == detail
    again.store.close()


def test_a_slice_that_fails_is_deleted_by_the_next_call(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(kept)
    with monkeypatch.context() as patch:
        patch.setattr(rollups, "rewrite", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            kept.store.retire(kept.clock.now - 205)
    while kept.store.retire(kept.clock.now - 205):
        pass
    assert stored(kept.store) == [list(range(101, 301))] * 3
    check_blocks(kept.directory)
