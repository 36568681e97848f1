"""Incidents in the store: what was acknowledged stays so, whatever happens to the exporter; and they are bounded."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from optwrap_exporter.ingest.ingest import Retention
from optwrap_exporter.ingest.operations import UnknownError
from optwrap_exporter.store import incident_list
from optwrap_exporter.wire.cursor import CursorError
from optwrap_exporter.wire.incident import Incident

from tests.exporter.histories import History, delivered, histories
from tests.exporter.ingests import Exporter
from tests.exporter.stores import fresh
from tests.exporter.trainer import START, Trainer, TurnedClock

ROOT = Path(__file__).parents[2]

DYING = """
import asyncio, sys, time
from pathlib import Path
from optwrap_exporter.ingest.ingest import Ingest
from optwrap_exporter.ledger.ledger import Ledger
from optwrap_exporter.store.store import Store
from tests.exporter.trainer import Trainer, TurnedClock

store = Store(Path(sys.argv[1]))
ingest = Ingest(store, Ledger(TurnedClock()))
ingest.start()
trainer = Trainer(TurnedClock())
trainer.step()
trainer.bad("accepted_not_finite")
ingest.submit(trainer.report())

async def operate():
    await ingest.acknowledge(1)
    await ingest.archive("lm")

asyncio.run(operate())
print("acknowledged", flush=True)
time.sleep(600)
"""


@pytest.fixture
def exporter(tmp_path: Path) -> Iterator[Exporter]:
    with Exporter(tmp_path / "data") as made:
        yield made


def gave_up(exporter: Exporter, **trainer: str) -> Trainer:
    """A run whose optimizer took a non-finite value in step 2."""
    made = Trainer(exporter.clock, **trainer)
    made.step()
    made.bad("accepted_not_finite")
    exporter.ingest.submit(made.report())
    return made


def everything(exporter: Exporter) -> list[Incident]:
    return exporter.store.incidents(limit=1000).items


def test_an_acknowledgement_survives_kill_9(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", DYING, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "acknowledged\n"
        os.kill(process.pid, signal.SIGKILL)
    with Exporter(tmp_path) as exporter:
        (found,) = everything(exporter)
        assert (found.kind, found.state, found.acknowledged) == ("gave_up", "acknowledged", START)
        assert exporter.ledger.health("lm") == "skipping"
        assert exporter.detail.archived


@given(history=histories(), data=st.data())
@settings(max_examples=15, phases=[Phase.generate])
def test_a_reopened_store_has_the_same_incidents(
    tmp_path_factory: pytest.TempPathFactory, history: History, data: st.DataObject
) -> None:
    with fresh(tmp_path_factory) as kept:
        for report in delivered(data, history):
            kept.clock.advance(data.draw(st.sampled_from([0.0, 1.0, 30.0])))
            if kept.ledger.find(report) is None:
                kept.take(report)
            for plan in kept.ledger.pass_time():
                kept.commit(plan)
        (before,) = kept.ledger.shown()
        stored = [one.id for one in kept.store.incidents("lm", limit=1000).items]
        assert stored[:20] == sorted((one.id for one in (*before.incidents, *before.past_incidents)), reverse=True)[:20]
        again = kept.reopened()
        (after,) = again.ledger.shown()
        assert after.incidents == before.incidents
        assert after.past_incidents == before.past_incidents
        again.store.close()


def test_to_acknowledge_is_idempotent_and_refuses_what_is_unknown(exporter: Exporter) -> None:
    gave_up(exporter)
    (open_one,) = everything(exporter)
    first = asyncio.run(exporter.ingest.acknowledge(open_one.id))
    exporter.clock.advance(5)
    revision = exporter.store.revision()
    assert asyncio.run(exporter.ingest.acknowledge(open_one.id)) == first
    assert exporter.store.revision() == revision
    assert everything(exporter) == [first]
    assert exporter.detail.incidents == [first]
    with pytest.raises(UnknownError, match="incident 17"):
        asyncio.run(exporter.ingest.acknowledge(17))


def test_an_operation_has_its_place_among_the_reports(exporter: Exporter) -> None:
    """Reports that wait before it are folded before it, those after it after it."""
    trainer = gave_up(exporter)

    async def operate() -> None:
        for _ in range(3):
            trainer.bad("accepted_not_finite")
        earlier = exporter.ingest.offer(trainer.report())
        acknowledged = asyncio.ensure_future(exporter.ingest.acknowledge(1))
        await asyncio.sleep(0)
        for _ in range(120):
            trainer.step()
        trainer.bad("accepted_not_finite")
        later = exporter.ingest.offer(trainer.report())
        assert (await acknowledged).steps == 4
        await asyncio.wrap_future(earlier)
        await asyncio.wrap_future(later)

    asyncio.run(operate())
    assert [(one.state, one.steps) for one in everything(exporter)] == [("open", 1), ("acknowledged", 4)]


def test_a_run_is_hidden_and_shown_again(exporter: Exporter) -> None:
    trainer = gave_up(exporter)
    asyncio.run(exporter.ingest.archive("lm"))
    trainer.step()
    exporter.ingest.submit(trainer.report())
    assert exporter.detail.archived, "a report does not show it again"
    assert exporter.detail.totals.steps == 3
    asyncio.run(exporter.ingest.restore("lm"))
    (state,) = exporter.ledger.shown()
    assert not state.archived
    with pytest.raises(UnknownError, match="run 'other'"):
        asyncio.run(exporter.ingest.archive("other"))


def test_a_deleted_run_that_reports_again_is_a_new_run(exporter: Exporter) -> None:
    gave_up(exporter)
    told: list[frozenset[str]] = []
    exporter.ingest.subscribe(lambda committed: told.append(committed.runs))
    asyncio.run(exporter.ingest.delete("lm"))
    assert told == [{"lm"}]
    assert exporter.ledger.runs() == []
    assert everything(exporter) == []
    with pytest.raises(UnknownError):
        asyncio.run(exporter.ingest.delete("lm"))
    new = Trainer(exporter.clock)
    new.step()
    exporter.ingest.submit(new.report())
    assert exporter.detail.incidents == []
    assert exporter.detail.health == "ok"


def test_the_list_filters_by_run_kind_state_outcome_and_time(exporter: Exporter) -> None:
    gave_up(exporter, run="a")
    exporter.clock.advance(100)
    b = Trainer(exporter.clock, run="b")
    b.step("skipped_large", norm=80.0)
    for _ in range(200):
        b.step()
    exporter.ingest.submit(b.report())
    exporter.clock.advance(100)
    asyncio.run(exporter.ingest.acknowledge(1))

    def listed(**chosen: object) -> list[tuple[str, str]]:
        items = exporter.store.incidents(**chosen).items  # type: ignore[arg-type]
        return [(one.run, one.kind) for one in items]

    both = [("b", "skipped"), ("a", "gave_up")]
    assert listed() == both
    assert listed(run="a") == [("a", "gave_up")]
    assert listed(run="nobody") == []
    assert listed(kind=["skipped"]) == [("b", "skipped")]
    assert listed(kind=["skipped", "gave_up"]) == both
    assert listed(state=["closed"]) == [("b", "skipped")]
    assert listed(state=["acknowledged", "open"]) == [("a", "gave_up")]
    assert listed(outcome=["skipped_large"]) == [("b", "skipped")]
    assert listed(outcome=["accepted_not_finite", "skipped_other"]) == [("a", "gave_up")]
    assert listed(since=START + 101) == [("a", "gave_up")], "b was over before, a is not"
    assert listed(since=START + 100) == both
    assert listed(until=START + 100) == [("a", "gave_up")]
    assert listed(until=START) == []


def test_pages_join_to_the_list_and_a_cursor_is_of_one_list(exporter: Exporter) -> None:
    for name in "abcde":
        gave_up(exporter, run=name)
    pages: list[list[str]] = []
    cursor: str | None = None
    while True:
        page = exporter.store.incidents(limit=2, cursor=cursor)
        pages.append([one.run for one in page.items])
        if (cursor := page.cursor) is None:
            break
    assert pages == [["e", "d"], ["c", "b"], ["a"]]
    with pytest.raises(CursorError):
        exporter.store.incidents("a", cursor=exporter.store.incidents(limit=1).cursor)


def test_the_incidents_of_a_run_are_bounded(exporter: Exporter, monkeypatch: pytest.MonkeyPatch) -> None:
    """The live ones are kept however many there are."""
    monkeypatch.setattr(incident_list, "MOST_OF_RUN", 5)
    trainer = gave_up(exporter)
    for _ in range(12):
        for _ in range(150):
            trainer.step()
        trainer.bad()
        exporter.ingest.submit(trainer.report())
    found = everything(exporter)
    assert len(found) == 6
    assert (found[-1].id, found[-1].kind, found[-1].state) == (1, "gave_up", "open")
    with Exporter(exporter.directory.with_name("other")) as other:
        assert everything(other) == []


def test_retention_deletes_incidents_that_are_over(tmp_path: Path) -> None:
    with Exporter(tmp_path, retention=Retention(seconds=1000)) as exporter:
        trainer = gave_up(exporter)
        for _ in range(150):
            trainer.step()
        trainer.bad()
        for _ in range(150):
            trainer.step()
        exporter.ingest.submit(trainer.report())
        assert [one.state for one in everything(exporter)] == ["closed", "open"]
        for _ in range(30):
            exporter.clock.advance(100)
            trainer.step()
            exporter.ingest.submit(trainer.report())
            exporter.ingest.tick()
        assert [one.kind for one in everything(exporter)] == ["gave_up"]
        assert [one.kind for one in exporter.detail.incidents] == ["gave_up"], "what is listed can be acknowledged"


def test_ids_are_not_given_twice(tmp_path: Path) -> None:
    """Not even of a run that was deleted: an old page must not acknowledge something else."""
    clock = TurnedClock()
    with Exporter(tmp_path, clock) as exporter:
        gave_up(exporter)
        asyncio.run(exporter.ingest.delete("lm"))
    with Exporter(tmp_path, clock) as exporter:
        gave_up(exporter)
        assert [one.id for one in everything(exporter)] == [2]
