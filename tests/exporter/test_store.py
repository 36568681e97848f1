"""The store: what is acknowledged survives a crash, once; what is read is right; what does not fit goes in order."""

import contextlib
import itertools
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from optwrap_exporter.ledger.ledger import Ledger, Plan
from optwrap_exporter.store import schema
from optwrap_exporter.store.downsample import Axis
from optwrap_exporter.store.rollups import SIZE
from optwrap_exporter.store.store import SMALLEST_LIMIT, Store, StoreError, StoreFullError
from optwrap_exporter.wire.answers import Event, Page, StepsAnswer
from optwrap_exporter.wire.cursor import CursorError, encode
from optwrap_exporter.wire.requests import Report
from optwrap_exporter.wire.vocabulary import OUTCOMES, EventKind, to_json_number

from tests.exporter import crashing
from tests.exporter.histories import History, delivered, histories
from tests.exporter.stores import Kept
from tests.exporter.trainer import REPLICA, State, Trainer, TurnedClock, first_replica, replica_counters, sent

ROOT = Path(__file__).parents[2]


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    made = Kept(tmp_path / "data")
    yield made
    made.store.close()


@contextlib.contextmanager
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kept]:
    """For one example of a property."""
    made = Kept(tmp_path_factory.mktemp("store"))
    try:
        yield made
    finally:
        made.store.close()


def rows(answer: StepsAnswer) -> list[tuple[int, str, bool, float | str]]:
    """Step, outcome, finite, norm: NaN by its name, so that it equals itself."""
    c = answer.columns
    return list(zip(c.step, c.outcome, c.finite, map(to_json_number, c.norm), strict=True))


def all_events(page_of: Callable[[str | None], Page[Event]]) -> list[Event]:
    found, cursor = [], None
    while True:
        page = page_of(cursor)
        found += page.items
        if (cursor := page.cursor) is None:
            return found


def check_blocks(directory: Path) -> None:
    """The blocks say of the step records what the step records say."""
    with contextlib.closing(sqlite3.connect(directory / "optwrap.sqlite3")) as db:
        truth: dict[tuple[int, int, int], list[float]] = {}
        counted: dict[tuple[int, int, int], list[int]] = {}
        for run, process, step, norm, bad in db.execute("SELECT run_id, process, step, norm, bad FROM step"):
            key = (run, process, step // SIZE)
            counted.setdefault(key, [0, 0])[bad] += 1
            if not bad:
                truth.setdefault(key, []).append(float("inf") if norm is None else norm)
        stored = {
            (run, process, block): (good, bad, low, high)
            for run, process, block, good, bad, low, high in db.execute(
                "SELECT run_id, process, block, good, bad, low, high FROM block WHERE good + bad > 0"
            )
        }
    assert stored == {
        key: (good, bad, min(truth.get(key, [None])), max(truth.get(key, [None])))  # type: ignore[type-var]
        for key, (good, bad) in counted.items()
    }


# --- durability -------------------------------------------------------------------------------------------------------


@given(history=histories(), data=st.data())
@settings(max_examples=12)
def test_a_reopened_store_knows_all_that_the_ledger_knew(
    tmp_path_factory: pytest.TempPathFactory, history: History, data: st.DataObject
) -> None:
    with fresh(tmp_path_factory) as kept:
        for report in delivered(data, history):
            kept.clock.advance(data.draw(st.sampled_from([0.0, 1.0, 30.0])))
            if kept.ledger.find(report) is None:
                kept.take(report)
            for plan in kept.ledger.pass_time():
                kept.commit(plan)
            if data.draw(st.integers(0, 9)) == 0:
                before = kept.ledger.detail("lm")
                assert before is not None
                kept = kept.reopened()  # noqa: PLW2901 the first one is closed
                after = kept.ledger.detail("lm")
                assert after is not None
                assert after.model_dump_json() == before.model_dump_json()
        for process in history.processes:
            totals = {view.process: view.totals for view in kept.ledger.views()}
            assert totals[process] == history.of_process(process)
        kept.store.close()


def test_killing_the_writer_loses_nothing_acknowledged_and_doubles_nothing(tmp_path: Path) -> None:
    """Killed by signal 9 at random moments of the ingest, again and again; the next one goes on where it was."""
    last, acknowledged, killed = 400, 0, 0
    chance = random.Random(20251122)
    while acknowledged < last:
        command = [sys.executable, "-m", "tests.exporter.crashing", str(tmp_path), str(acknowledged + 1), str(last)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            if killed < 3:
                for _ in range(chance.randrange(1, 100)):
                    line = process.stdout.readline()
                    acknowledged = int(line or acknowledged)
                os.kill(process.pid, signal.SIGKILL)
                killed += 1
            for line in process.stdout:  # what it could still say before it died
                acknowledged = int(line)
        with Store(tmp_path) as store:
            ledger = Ledger(TurnedClock())
            ledger.restore(store.restore())
            (view,) = ledger.views()
            # At most one report more than it could acknowledge: committed, not answered.
            told = view.totals.steps // crashing.STEPS
            assert acknowledged <= told <= acknowledged + 1
            assert store.steps("lm", 0, points=10**9).total == told * crashing.STEPS
            check_blocks(tmp_path)
    assert killed == 3
    truth = crashing.reports(last)
    with Store(tmp_path) as store:
        ledger = Ledger(TurnedClock())
        ledger.restore(store.restore())
        answer = ledger.detail("lm")
        assert answer is not None
        assert answer.totals.steps == truth[-1].totals.steps
        assert {row.parameter: row.steps for row in answer.parameters} == dict(truth[-1].totals.parameters)
        values = sum(offender.not_finite for report in truth for offender in report.offenders)
        assert sum(row.values for row in answer.parameters) == values
        expected = [
            (step, outcome, finite, to_json_number(norm))
            for report in truth
            for step, outcome, finite, norm in zip(
                report.steps.step, report.steps.outcome, report.steps.finite, report.steps.norm, strict=True
            )
        ]
        assert rows(store.steps("lm", 0, points=10**9)) == expected
        skips = all_events(lambda cursor: store.events("lm", kind="skipped", limit=500, cursor=cursor))
        bad = [step for step, _, finite, _ in expected if not finite]
        assert [event.step for event in reversed(skips)] == bad
        streamed = []
        while messages := store.changes(streamed[-1].revision if streamed else 0).messages:
            streamed += messages
        assert [step for message in streamed for step in message.steps.step] == [row[0] for row in expected]


def test_a_transaction_that_fails_half_way_leaves_nothing(kept: Kept) -> None:
    trainer = Trainer(kept.clock)
    trainer.bad()
    kept.take(trainer.report())
    before = (kept.store.revision(), rows(kept.store.steps("lm", 0)), kept.store.events("lm"))
    trainer.bad()
    report = trainer.report()
    plan = kept.ledger.plan(report)
    twice = (*plan.events, object())  # the last thing to be written is what fails
    with pytest.raises(AttributeError):
        kept.store.commit(Plan(plan.time, plan.run, plan.process, twice, plan.report, plan.before))  # type: ignore[arg-type]
    assert (kept.store.revision(), rows(kept.store.steps("lm", 0)), kept.store.events("lm")) == before
    kept.take(report)
    assert kept.reopened().ledger.views()[0].totals.steps == 2


# --- opening ----------------------------------------------------------------------------------------------------------


def test_a_second_exporter_on_the_same_directory_is_refused(kept: Kept) -> None:
    with pytest.raises(StoreError, match=r"in use by another exporter.*--data-dir") as refused:
        Store(kept.directory)
    assert str(kept.directory) in str(refused.value)
    kept.store.close()
    Store(kept.directory).close()


def a_file(directory: Path) -> None:
    directory.write_text("")


def no_database(directory: Path) -> None:
    directory.mkdir()
    (directory / "optwrap.sqlite3").write_bytes(b"not a database at all, " * 100)


def anothers(directory: Path) -> None:
    directory.mkdir()
    with contextlib.closing(sqlite3.connect(directory / "optwrap.sqlite3")) as db:
        db.execute("CREATE TABLE songs (title TEXT)")


def of_version(directory: Path, version: int) -> None:
    Store(directory).close()
    with contextlib.closing(sqlite3.connect(directory / "optwrap.sqlite3")) as db:
        db.execute(f"PRAGMA user_version = {version}")


def newer(directory: Path) -> None:
    of_version(directory, schema.VERSION + 1)


def older(directory: Path) -> None:
    of_version(directory, schema.VERSION - 1)


def truncated(directory: Path) -> None:
    made = Kept(directory)
    trainer = Trainer(made.clock)
    for _ in range(3000):
        trainer.step()
    made.take(trainer.report())
    made.store.close()
    path = directory / "optwrap.sqlite3"
    path.write_bytes(path.read_bytes()[:6000])


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (a_file, "not a directory"),
        (no_database, "not a database"),
        (anothers, "another program"),
        (newer, "a newer exporter"),
        (older, "an older exporter"),
        (truncated, "malformed"),
    ],
)
def test_a_directory_that_cannot_be_used_is_one_clear_line(
    tmp_path: Path, spoil: Callable[[Path], None], reason: str
) -> None:
    directory = tmp_path / "data"
    spoil(directory)
    with pytest.raises(StoreError, match=reason) as refused, Store(directory) as store:
        store.restore()
    message = str(refused.value)
    assert str(directory) in message
    assert "--data-dir" in message
    assert "\n" not in message


def test_a_damaged_row_is_one_clear_line(kept: Kept) -> None:
    kept.take(Trainer(kept.clock).report())
    kept.store.close()
    with contextlib.closing(sqlite3.connect(kept.directory / "optwrap.sqlite3")) as db:
        db.execute("UPDATE incarnation SET state = '{}'")
        db.commit()
    with Store(kept.directory) as store, pytest.raises(StoreError, match=r"damaged.*--data-dir"):
        store.restore()


def test_a_limit_too_small_to_hold_anything_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=f"4096 bytes.*{SMALLEST_LIMIT}"):
        Store(tmp_path, limit_bytes=4096)


# --- reads ------------------------------------------------------------------------------------------------------------


def test_a_read_sees_one_state_and_does_not_block_the_writer(kept: Kept) -> None:
    trainer = Trainer(kept.clock)
    trainer.step()
    kept.take(trainer.report())
    with kept.store._reading() as reader:
        assert reader.execute("SELECT count(*) FROM step").fetchone() == (1,)
        trainer.step()
        kept.take(trainer.report())
        assert reader.execute("SELECT count(*) FROM step").fetchone() == (1,)
    assert kept.store.steps("lm", 0).total == 2


def test_many_threads_may_read_while_one_writes(kept: Kept) -> None:
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
    with pytest.raises(RuntimeError, match="closed"):
        kept.store.revision()


def test_a_read_during_close_raises(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    readers = kept.store._readers
    get = readers.get

    def too_late() -> sqlite3.Connection | None:
        monkeypatch.undo()
        kept.store.close()
        return get(timeout=5)

    monkeypatch.setattr(readers, "get", too_late)
    with pytest.raises(RuntimeError, match="closed"):
        kept.store.revision()


good = st.tuples(st.just("applied"), st.floats(0, 1e3) | st.sampled_from(["NaN", "Infinity"]))
bad = st.tuples(st.sampled_from(["skipped_large", "skipped_not_finite", "accepted_not_finite"]), st.floats(0, 1e3))


@given(
    gaps=st.lists(st.sampled_from([1, 1, 1, 2, 100, 5000]), min_size=1, max_size=60),
    filler=st.integers(0, 40),
    kinds=st.lists(good | bad, min_size=1, max_size=60),
    points=st.integers(0, 40),
    bounds=st.tuples(st.none() | st.integers(0, 3000), st.none() | st.integers(0, 3000)),
    axis=st.sampled_from(["step", "time"]),
    pace=st.lists(st.sampled_from([0.0, 0.1, 1.0, 500.0, -3.0]), min_size=1, max_size=7),
)
@settings(max_examples=40)
def test_downsampling_keeps_every_bad_step_and_the_extremes_of_the_good_ones(
    tmp_path_factory: pytest.TempPathFactory,
    *,
    gaps: list[int],
    filler: int,
    kinds: list[tuple[str, float | str]],
    points: int,
    bounds: tuple[int | None, int | None],
    axis: Axis,
    pace: list[float],
) -> None:
    """Against a plain reading of the records: dense and sparse numbers, whole and partial ranges, fast and slow."""
    stored: dict[int, tuple[str, float | str]] = {}
    at = 0
    for gap in gaps * (filler + 1):
        at += gap
        stored[at] = kinds[at % len(kinds)]
    columns = {
        "step": list(stored),
        "time": [1e6 + time for time in itertools.accumulate(pace[step % len(pace)] for step in stored)],
        "outcome": [outcome for outcome, _ in stored.values()],
        "finite": [outcome in {"applied", "skipped_large"} for outcome, _ in stored.values()],
        "norm": [norm for _, norm in stored.values()],
        "mini_step": [None] * len(stored),
    }
    since, until = bounds
    with fresh(tmp_path_factory) as kept:
        trainer = Trainer(kept.clock)
        trainer.state.outcomes.update(dict.fromkeys(OUTCOMES, at))
        kept.take(trainer.report(steps=columns))
        answer = kept.store.steps("lm", 0, since=since, until=until, points=points, axis=axis)
        check_blocks(kept.directory)
    asked = {s: row for s, row in stored.items() if s >= (since or 0) and (until is None or s <= until)}
    good = {s: float(norm) for s, (outcome, norm) in asked.items() if outcome == "applied"}
    got = rows(answer)
    steps = [row[0] for row in got]
    assert steps == sorted(set(steps))
    assert {(s, v, str(n)) for s, v, _, n in got} <= {(s, v, str(n)) for s, (v, n) in asked.items()}
    assert answer.total == len(asked)
    assert set(asked) - set(good) <= set(steps)
    shown = [s for s in steps if s in good]
    assert answer.sampled == (len(good) > points)
    if not answer.sampled:
        assert shown == list(good)
        return
    assert len(shown) <= points
    if points >= 2:
        as_number = {s: float("inf") if n != n else n for s, n in good.items()}  # noqa: PLR0124 NaN
        assert min(as_number.values()) == min(as_number[s] for s in shown)
        assert max(as_number.values()) == max(as_number[s] for s in shown)


@pytest.mark.parametrize("points", [10, 100, 2000])
@pytest.mark.parametrize("since", [1, 777])
def test_downsampling_keeps_the_extremes_of_every_bucket(kept: Kept, points: int, since: int) -> None:
    """Against the parts cut out by hand: of whole blocks where they hold two of them or more."""
    chance = random.Random(points)
    trainer = Trainer(kept.clock)
    norms: dict[int, float] = {}
    for _ in range(4):
        for _ in range(10_000):
            trainer.step(norm=chance.random())
            norms[trainer.state.steps] = trainer.columns["norm"][-1]
        kept.take(trainer.report())
    wanted = {step: norm for step, norm in norms.items() if step >= since}
    shown = [row[0] for row in rows(kept.store.steps("lm", 0, since=since, points=points))]
    width = -(-len(wanted) // (points // 2))
    unit, first = (SIZE, since // SIZE) if width >= 2 * SIZE else (1, since)
    together = -(-(len(norms) // unit - first + 1) // (points // 2))
    parts: dict[int, list[int]] = {}
    for step in wanted:
        parts.setdefault((step // unit - first) // together, []).append(step)
    extremes = {choose(part, key=wanted.__getitem__) for part in parts.values() for choose in (min, max)}
    assert shown == sorted(extremes)
    assert points * 0.6 <= len(shown) <= points


def test_downsampling_by_time_keeps_slow_steps_among_many_fast_ones(kept: Kept) -> None:
    """Forty thousand steps in seven minutes, then five hundred in eight hours: the hours are seen, part by part."""
    chance = random.Random(5)
    fast, slow, points = 40_000, 500, 200
    steps = list(range(1, fast + slow + 1))
    times = [step * 0.01 if step <= fast else fast * 0.01 + (step - fast) * 60.0 for step in steps]
    norms = [chance.random() for _ in steps]
    columns = {
        "step": steps,
        "time": times,
        "outcome": ["applied"] * len(steps),
        "finite": [True] * len(steps),
        "norm": norms,
        "mini_step": [None] * len(steps),
    }
    trainer = Trainer(kept.clock)
    trainer.state.outcomes.update(applied=len(steps))
    kept.take(trainer.report(steps=columns))

    def shown(axis: Axis) -> list[int]:
        found = [row[0] for row in rows(kept.store.steps("lm", 0, points=points, axis=axis))]
        assert len(found) <= points
        return found

    assert sum(step > fast for step in shown("step")) < 10
    by_time = shown("time")
    width = (times[-1] - times[0]) / (points // 2)
    parts: dict[int, list[int]] = {}
    for step, time in zip(steps, times, strict=True):
        parts.setdefault(min(points // 2 - 1, int((time - times[0]) / width)), []).append(step)
    # Where a block of steps lasts longer than a part, each part's own; before it, and on the border, those of blocks.
    clear = [part for part in parts.values() if part[0] > fast + 2 * SIZE]
    assert len(clear) > 0.6 * points // 2
    for part in clear:
        assert set(by_time) >= {choose(part, key=lambda step: norms[step - 1]) for choose in (min, max)}
    assert set(by_time) & set(range(1, fast + 1))


def test_a_step_taken_twice_is_there_twice_in_the_order_of_time(kept: Kept) -> None:
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


def busy_runs(kept: Kept) -> None:
    """Two runs, one of them of two processes, with events of several kinds."""
    trainers = [Trainer(kept.clock, process=process, process_count=2) for process in (1, 0)]
    trainers.append(Trainer(kept.clock, run="other"))
    for _ in range(6):
        kept.clock.advance(1)
        for trainer in trainers:
            trainer.step(
                "skipped_not_finite", norm="NaN", offenders={"w": 1}, replica=first_replica(1, 0, "cpu:1", 1, 2)
            )
            trainer.step()
            kept.take(trainer.report())


@pytest.mark.parametrize("kind", [None, "skipped", "streak_started", "started", "stale"])
@pytest.mark.parametrize("process", [None, 0, 1])
def test_events_page_from_the_newest_to_the_oldest_each_once(
    kept: Kept, kind: EventKind | None, process: int | None
) -> None:
    busy_runs(kept)
    whole = kept.store.events("lm", kind=kind, process=process, limit=1000)
    assert whole.cursor is None
    paged = all_events(lambda cursor: kept.store.events("lm", kind=kind, process=process, limit=3, cursor=cursor))
    assert paged == whole.items
    assert [event.id for event in paged] == sorted({event.id for event in paged}, reverse=True)
    assert all(event.kind == kind for event in paged if kind is not None)
    assert {event.run for event in paged} <= {"lm"}
    expected = {"skipped": 6, "streak_started": 6, "stale": 0, "started": 1 if process is not None else 2}
    if kind is not None:
        assert len(paged) == expected[kind]


def test_a_run_lists_a_shared_event_from_the_first_process(kept: Kept) -> None:
    busy_runs(kept)
    assert [event.process for event in kept.store.events("lm", kind="skipped").items] == [1] * 6
    assert {event.process for event in kept.store.events("lm", kind="started").items} == {0, 1}
    assert [event.process for event in kept.store.events("lm", kind="skipped", process=0).items] == [0] * 6


def test_a_cursor_of_another_list_is_refused(kept: Kept) -> None:
    busy_runs(kept)
    cursor = kept.store.events("lm", limit=1).cursor
    assert cursor is not None
    for refused in (
        lambda: kept.store.events("other", cursor=cursor),
        lambda: kept.store.events("lm", kind="skipped", cursor=cursor),
        lambda: kept.store.events("lm", process=0, cursor=cursor),
        lambda: kept.ledger.run_page(cursor=cursor),
        lambda: kept.ledger.parameter_page("lm", cursor=cursor),
    ):
        with pytest.raises(CursorError):
            refused()
    runs = kept.ledger.run_page(limit=1).cursor
    with pytest.raises(CursorError) as error:
        kept.store.events("lm", cursor=runs)
    assert error.value.value == runs


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 10**30, -(10**30)])
def test_a_cursor_with_a_number_that_no_row_can_have_is_refused(kept: Kept, number: int) -> None:
    with pytest.raises(CursorError):
        kept.store.events("lm", cursor=encode("events:lm::", [number]))
    assert kept.store.events("lm", cursor=encode("events:lm::", [2**63 - 1])).items == []


@given(cursor=st.text(max_size=60) | st.binary(max_size=30).map(lambda b: b.decode("latin-1")))
def test_no_text_is_a_cursor_by_accident(cursor: str) -> None:
    ledger = Ledger(TurnedClock())
    with pytest.raises(CursorError):
        ledger.run_page(cursor=cursor)


def test_the_stream_resumes_after_any_revision(kept: Kept) -> None:
    busy_runs(kept)
    kept.clock.advance(60)
    for plan in kept.ledger.pass_time():
        kept.commit(plan)
    everything = kept.store.changes(0).messages
    assert [message.revision for message in everything] == list(range(1, kept.store.revision() + 1))
    dumped = [message.model_dump_json() for message in everything]
    for after in range(len(everything) + 1):
        assert [m.model_dump_json() for m in kept.store.changes(after).messages] == dumped[after:]
    mine = kept.store.changes(3, "other").messages[:2]
    assert [m.revision for m in mine] == [m.revision for m in everything if m.run == "other" and m.revision > 3][:2]
    assert [event.kind for message in everything[-3:] for event in message.events] == ["stale"] * 3
    offenders = [(o.step, o.parameter, o.not_finite) for message in mine for o in message.offenders]
    assert offenders == [(3, "w", 1), (5, "w", 1)]


# --- forgetting -------------------------------------------------------------------------------------------------------


def test_old_records_and_events_go_and_totals_stay(kept: Kept) -> None:
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
    assert [event.step for event in kept.store.events("lm", kind="skipped").items] == [19, 17, 15, 13]
    assert kept.ledger.detail("lm") == before
    kept.ledger = kept.reopened().ledger
    after = kept.ledger.detail("lm")
    assert before is not None
    assert after is not None
    assert after.totals == before.totals
    assert after.parameters == before.parameters


@pytest.mark.parametrize(("reports", "records"), [(300, 40), (25, 1000)])
def test_at_the_limit_the_oldest_records_are_deleted_and_counted(tmp_path: Path, reports: int, records: int) -> None:
    """And no more of them than has to: the store stays as full as it may be."""
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


def test_a_limit_that_was_lowered_is_reached_little_by_little(kept: Kept) -> None:
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


def test_a_full_disk_first_drops_records_and_then_refuses_reports(kept: Kept) -> None:
    """As if others had filled the disk: no page more than there are now."""
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
        except StoreFullError as error:
            assert "full" in str(error)  # noqa: PT017 it comes after an unknown number of reports that fit
            refused.append(report)
    assert kept.store.size() <= full
    assert kept.ledger.detail("lm") == before
    schema.limit_pages(kept.store._db, 100 * full)  # somebody makes room: the same report is taken
    kept.take(refused[0])
    trainer.step()
    kept.take(trainer.report())
    again = kept.reopened().ledger.detail("lm")
    assert again is not None
    assert again.totals.steps == trainer.state.steps
    assert again.dropped.not_stored == left_out
    check_blocks(kept.directory)


def test_a_forgotten_run_leaves_no_row_and_no_other_run_loses_one(kept: Kept) -> None:
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


# --- whatever the wire lets through -----------------------------------------------------------------------------------

LARGE = 2**53


UNSHRUNK = [Phase.explicit, Phase.reuse, Phase.generate]
"""Without shrinking, which takes minutes where each example writes a store."""

texts = st.text("aé/\u202e'\"{}💥", min_size=1, max_size=8)


def counted(draw: st.DrawFn, since: State, outcomes: Sequence[str] = ()) -> State:
    """Counters that are nowhere below, with these outcomes at least."""
    state = since.copy()
    state.outcomes.update(outcomes)
    state.outcomes.update({name: draw(st.integers(0, LARGE // 20)) for name in OUTCOMES})
    not_finite = draw(st.integers(0, state.steps - since.steps))
    state.not_finite_steps += not_finite
    state.parameters.update(draw(st.dictionaries(texts, st.integers(0, not_finite), max_size=3)))
    return state


@st.composite
def any_report(draw: st.DrawFn) -> Report:
    """As strange as the wire allows."""
    norms = st.floats(0, allow_nan=False, allow_infinity=False) | st.sampled_from(["NaN", "Infinity", "-Infinity"])
    outcomes = draw(st.lists(st.sampled_from(["applied", "skipped_other", "accepted_not_finite"]), max_size=4))
    before = counted(draw, State())
    state = counted(draw, before, outcomes)
    n = len(outcomes)

    def column(of: st.SearchStrategy[object]) -> list[object]:
        return draw(st.lists(of, min_size=n, max_size=n))

    lived = st.integers(before.steps + 1, max(before.steps + 1, state.steps))
    steps = sorted(draw(st.lists(lived, min_size=n, max_size=n, unique=True)))
    times = st.floats(0, 4_102_444_800.0)
    gauges = ("not_finite_streak", "not_finite_streak_peak", "guard_not_finite_count", "mini_step", "every_k")
    places = st.tuples(st.sampled_from(steps or [0]), texts)
    bad = draw(st.dictionaries(places, st.integers(1, LARGE), max_size=4 if steps else 0))
    seq = draw(st.integers(1, 4) | st.integers(1, LARGE))
    replicas = st.tuples(st.none() | st.integers(0, 2**31), st.none() | st.integers(0, 9), st.none() | texts)
    firsts = draw(st.dictionaries(replicas, st.just(1), max_size=min(3, state.steps - before.steps)))
    return Trainer(
        process=draw(st.integers(0, 1)),
        incarnation=draw(st.sampled_from(["e", "e:1", "1"])),
        attempt=draw(st.sampled_from(["a", "e"])),
        state=State(),
        interval=draw(st.floats(1e-9, 3600)),
    ).report(
        draw(st.sampled_from(["starting", "running", "finished", "failed"])),
        seq=seq,
        oldest_held=draw(st.integers(1, seq)),
        sent_at=draw(times),
        totals=state.counters() | replica_counters(firsts),
        at_start=before.counters(),
        gauges=draw(st.dictionaries(st.sampled_from(gauges), st.integers(0, LARGE)))
        | draw(
            st.fixed_dictionaries({}, optional={"gradient_norm": norms, "gradient_norm_limit": st.floats(0, 1e308)})
        ),
        steps={
            "step": steps,
            "time": column(times),
            "outcome": outcomes,
            "finite": column(st.booleans()),
            "norm": column(norms),
            "mini_step": column(st.none() | st.integers(0, LARGE)),
            **({"interpolated": column(st.booleans())} if draw(st.booleans()) else {}),
        },
        offenders=[{"step": step, "parameter": path, "not_finite": n} for (step, path), n in bad.items()],
        replicas=[
            dict(zip(REPLICA, one, strict=True)) | {"step": step, "count": draw(st.integers(1, 2**31))}
            for step, one in zip(steps, firsts, strict=False)
            if one[0] is not None
        ],
        dropped={"steps": draw(st.integers(0, LARGE)), "bad_steps": draw(st.integers(0, LARGE))},
    )


@given(reports=st.lists(any_report(), min_size=1, max_size=6), data=st.data())
@settings(max_examples=25, phases=UNSHRUNK)
def test_whatever_the_wire_lets_through_is_stored_and_answered(
    tmp_path_factory: pytest.TempPathFactory, reports: list[Report], data: st.DataObject
) -> None:
    with fresh(tmp_path_factory) as kept:
        for report in reports:
            kept.clock.advance(data.draw(st.sampled_from([0.0, 20.0, 1000.0])))
            if kept.ledger.find(report) is None:
                kept.take(report)
            for plan in kept.ledger.pass_time():
                kept.commit(plan)
        answer = kept.ledger.detail("lm")
        assert answer is not None
        kept.ledger.views()
        kept.store.steps("lm", 0, points=2).model_dump_json()
        kept.store.events("lm").model_dump_json()
        for message in kept.store.changes(0).messages:
            message.model_dump_json()
        check_blocks(kept.directory)
        again = kept.reopened()
        reopened = again.ledger.detail("lm")
        again.store.close()
        assert reopened is not None
        assert (reopened.totals, reopened.replicas) == (answer.totals, answer.replicas)


def test_a_sum_stops_at_the_largest_count(kept: Kept) -> None:
    trainer = Trainer(kept.clock)
    for _ in range(1100):
        trainer.bad(w=LARGE)
    kept.take(trainer.report())
    answer = kept.reopened().ledger.detail("lm")
    assert answer is not None
    assert [(row.parameter, row.values) for row in answer.parameters] == [("w", LARGE)]
