"""A clock that is set wrong, or set right again, deletes nothing and makes no process stale."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optwrap_exporter.ingest.ingest import Ingest, Retention
from optwrap_exporter.ledger.ledger import Ledger
from optwrap_exporter.store.store import Store

from tests.exporter.trainer import Trainer, TurnedClock

DAY = 86_400.0
RETENTION = 30 * DAY


class Machine:
    """A machine whose clock is set, and the exporter on it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.wall, self.steady = TurnedClock(), TurnedClock(1000.0)
        self._stack = contextlib.ExitStack()
        self.start()

    def start(self) -> None:
        self.store = self._stack.enter_context(Store(self.directory))
        self.ledger = Ledger(self.wall, self.steady)
        self.ingest = Ingest(self.store, self.ledger, tick=0, retention=Retention(seconds=RETENTION))
        self._stack.enter_context(self.ingest)

    def stop(self) -> None:
        self._stack.close()

    def restart(self) -> None:
        self.stop()
        self.start()

    def advance(self, seconds: float) -> None:
        """Time goes by."""
        self.wall.advance(seconds)
        self.steady.advance(seconds)

    def report(self, trainer: Trainer) -> None:
        trainer.step()
        self.ingest.submit(trainer.report())

    def health(self) -> str | None:
        return self.ledger.health("lm")

    @property
    def steps(self) -> list[int]:
        return self.store.steps("lm", 0, points=100_000).columns.step


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path / "data")
    yield made
    made.stop()


@pytest.mark.parametrize("days", [31, 400, -31, -400])
def test_a_jump_of_the_clock_deletes_nothing(machine: Machine, days: float) -> None:
    """Neither at once, nor when reports bring the new time, nor after a restart, nor when the clock is right again."""
    trainer = Trainer(machine.wall)
    for _ in range(10):
        machine.report(trainer)
        machine.advance(1)
    for jump in (days, -days):
        machine.wall.advance(jump * DAY)
        machine.ingest.tick()
        machine.report(trainer)
        machine.advance(1)
        machine.ingest.tick()
        machine.restart()
        machine.ingest.tick()
        machine.report(trainer)
        machine.ingest.tick()
    assert machine.steps == list(range(1, 15))
    assert machine.ledger.runs() == ["lm"]
    machine.advance(RETENTION + 3660)  # what is deleted together may be an hour older
    machine.report(trainer)
    machine.ingest.tick()
    assert machine.steps == [15]


@pytest.mark.parametrize("days", [31, -31])
def test_a_jump_of_the_clock_makes_no_process_stale_and_hides_none_that_is(machine: Machine, days: float) -> None:
    trainer = Trainer(machine.wall)
    machine.report(trainer)
    machine.wall.advance(days * DAY)
    machine.ingest.tick()
    assert machine.health() == "ok"
    for _ in range(3):
        machine.advance(4)
        machine.report(trainer)
        machine.ingest.tick()
        assert machine.health() == "ok"
    machine.wall.advance(days * DAY)
    machine.ingest.tick()
    machine.advance(11)
    machine.ingest.tick()
    assert machine.health() == "stale"
    assert [event.kind for event in machine.store.events("lm", kind=["stale"]).items] == ["stale"]


def test_a_silent_run_is_deleted_by_its_age_whatever_its_last_report_says(machine: Machine) -> None:
    machine.wall.advance(100 * DAY)
    machine.report(Trainer(machine.wall, run="early"))
    machine.wall.advance(-100 * DAY)
    machine.advance(DAY)
    machine.report(Trainer(machine.wall, run="late"))
    machine.ingest.tick()
    assert machine.ledger.runs() == ["early", "late"]
    machine.advance(RETENTION - 60)
    machine.ingest.tick()
    assert machine.ledger.runs() == ["late"]


@given(data=st.data())
@settings(max_examples=25)
def test_data_goes_when_it_is_old_by_the_monotonic_clock_and_not_before(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Whatever is drawn: time that passes, jumps in either direction, reports, restarts."""
    machine = Machine(tmp_path_factory.mktemp("clock") / "data")
    trainer = Trainer(machine.wall)
    received: dict[int, float] = {}
    """By step, the monotonic time at which it was received."""
    restarted = 0.0
    try:
        for _ in range(data.draw(st.integers(1, 15))):
            match data.draw(st.sampled_from(["report", "report", "pass", "jump", "restart"])):
                case "report":
                    machine.report(trainer)
                    received[trainer.state.steps] = machine.steady()
                case "pass":
                    machine.advance(data.draw(st.floats(1, 20 * DAY)))
                case "jump":
                    machine.wall.now = max(1e9, machine.wall.now + data.draw(st.floats(-1000 * DAY, 1000 * DAY)))
                case "restart":
                    # Silence before it does not count, so what was received before ages from here at the latest.
                    restarted = machine.steady()
                    machine.restart()
            machine.ingest.tick()
            known = [step for step, at in received.items() if machine.steady() - at < RETENTION - 1]
            gone = [step for step, at in received.items() if machine.steady() - max(at, restarted) > RETENTION + 1]
            shown = set(machine.steps)
            assert shown >= set(known)
            assert not shown & set(gone)
    finally:
        machine.stop()
