"""Two live trainings of one run and process are a conflict; resumes, rollbacks and backlogs are not."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optwrap_exporter.ledger.change.events import NewEvent
from optwrap_exporter.ledger.ledger import Ledger
from optwrap_exporter.wire.requests import Report
from optwrap_exporter.wire.vocabulary import own_attempt

from tests.exporter.ledgers import Watched
from tests.exporter.trainer import START, State, Trainer, TurnedClock, take

SKEWS = (-3600.0, -30.0, 0.0, 30.0, 3600.0)


class Lives:
    """Trainers, each with its host's clock, that report to one exporter once a second."""

    def __init__(self) -> None:
        self.watched = Watched()
        self.clocks: list[TurnedClock] = []
        self.events: list[NewEvent] = []

    def new(self, attempt: str, skew: float = 0.0, *, state: State | None = None, **who: Any) -> Trainer:
        clock = TurnedClock(self.watched.clock.now + skew)
        self.clocks.append(clock)
        return Trainer(clock, attempt=attempt, state=state or State(), **who)

    def take(self, report: Report) -> None:
        self.events += take(self.watched.ledger, report).events

    def live(self, seconds: int, *trainers: Trainer, outcome: str | None = "applied") -> list[str]:
        """Each reports once a second; returns the run's health after each."""
        found: list[str] = []
        for _ in range(seconds):
            self.advance(1)
            for trainer in trainers:
                if outcome is not None:
                    trainer.step(outcome)
                self.take(trainer.report())
                found.append(self.watched.of_run()[0])
        return found

    def advance(self, seconds: float) -> None:
        self.watched.clock.advance(seconds)
        for clock in self.clocks:
            clock.advance(seconds)

    @property
    def told(self) -> list[NewEvent]:
        return [event for event in self.events if event.kind == "conflict"]


@pytest.fixture
def lives() -> Lives:
    return Lives()


# --- what is one ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skew", SKEWS)
@pytest.mark.parametrize("outcome", ["applied", None])
def test_two_live_attempts_are_a_conflict_whatever_their_clocks_say(
    lives: Lives, skew: float, outcome: str | None
) -> None:
    one = lives.new("one")
    lives.live(5, one)
    other = lives.new("other", skew)
    lives.live(5, one, other, outcome=outcome)
    assert lives.watched.of_run()[0] == "conflict"
    assert set(lives.live(30, one, other, outcome=outcome)) == {"conflict"}
    (event,) = lives.told
    assert event.detail == {
        "older": {"attempt": "one", "host": "node-0"},
        "newer": {"attempt": "other", "host": "node-0"},
    }


def test_attempts_that_begin_together_are_a_conflict(lives: Lives) -> None:
    assert lives.live(6, lives.new("one"), lives.new("other"))[-1] == "conflict"


@pytest.mark.parametrize("skew", SKEWS)
def test_two_jobs_that_inherit_one_attempt_are_a_conflict(lives: Lives, skew: float) -> None:
    one, other = lives.new("same"), lives.new("same", skew)
    assert lives.live(8, one, other)[-1] == "conflict"


@pytest.mark.parametrize("skew", SKEWS)
def test_live_attempts_in_different_processes_are_a_conflict(lives: Lives, skew: float) -> None:
    one, other = lives.new("one"), lives.new("other", skew, process=1)
    lives.live(8, one, other)
    assert lives.watched.of(0)[0] == lives.watched.of(1)[0] == lives.watched.of_run()[0] == "conflict"
    assert [event.process for event in lives.told] == [1, 0]


def test_a_conflict_ends_after_one_attempt_is_silent_and_may_begin_again(lives: Lives) -> None:
    one, other = lives.new("one"), lives.new("other")
    lives.live(8, one, other)
    since = lives.watched.of()[1]
    last = lives.watched.clock.now - START
    assert lives.live(9, other)[-1] == "conflict"
    assert lives.watched.of() == ("conflict", since)
    lives.live(12, other)
    assert lives.watched.of_run()[0] == "ok"
    assert lives.watched.of() in [("ok", last + seconds) for seconds in range(10, 21)]
    assert lives.live(8, one, other)[-1] == "conflict"


def test_a_second_conflict_of_two_attempts_is_another_event(lives: Lives) -> None:
    one = lives.new("one")
    lives.live(1, one)
    other = lives.new("other")
    lives.live(8, one, other)
    lives.live(30, other)
    lives.live(8, one, other)
    assert len(lives.told) == len({event.key for event in lives.told}) == 2


@pytest.mark.parametrize("process", [0, 1])
def test_a_conflict_ends_when_the_older_attempt_finishes(lives: Lives, process: int) -> None:
    one, other = lives.new("one"), lives.new("other", process=process)
    lives.live(8, one, other)
    lives.take(one.report("finished"))
    assert lives.watched.of(0)[0] in {"ok", "finished"}
    lives.live(12, other)
    assert lives.watched.of_run()[0] != "conflict"


# --- what is none -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skew", SKEWS)
@pytest.mark.parametrize("gap", [0, 1, 30])
@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_and_resumed_job_is_no_conflict(lives: Lives, skew: float, gap: int, processes: int) -> None:
    first = [lives.new("first", process=process) for process in range(processes)]
    lives.live(8, *first)
    in_flight = [trainer.report() for trainer in first]
    lives.advance(gap)
    second = [lives.new("second", skew, process=process, state=first[0].state.copy()) for process in range(processes)]
    found = lives.live(1, *second)
    for report in in_flight:
        lives.take(report)
    assert "conflict" not in [*found, *lives.live(20, *second)]


def test_a_job_resumed_with_fewer_processes_is_no_conflict(lives: Lives) -> None:
    lives.live(8, lives.new("first"), lives.new("first", process=1))
    assert "conflict" not in lives.live(20, lives.new("second"))


def test_a_short_overlap_with_the_next_job_is_no_conflict(lives: Lives) -> None:
    old = lives.new("first")
    lives.live(8, old)
    new = lives.new("second")
    found = lives.live(2, old, new)
    lives.take(old.report("failed"))
    assert "conflict" not in [*found, *lives.live(20, new)]


def test_late_reports_from_before_a_rollback_are_no_conflict(lives: Lives) -> None:
    """Reports of the incarnation before the rollback still arrive, but count no more steps."""
    before = lives.new("same")
    lives.live(8, before)
    after = lives.new("same", state=before.state.copy())
    found = []
    for _ in range(20):
        found += lives.live(1, after)
        lives.take(before.report())
    assert "conflict" not in found


def test_a_backlog_is_no_conflict(lives: Lives) -> None:
    old = lives.new("first")
    backlog = []
    for _ in range(20):
        lives.advance(1)
        old.step()
        backlog.append(old.report())
    new = lives.new("second")
    lives.live(8, new)
    for report in backlog:
        lives.take(report)
        lives.watched.clock.advance(0.01)
    assert lives.watched.of_run()[0] == "ok"


def test_processes_that_name_their_own_attempts_are_no_conflict(lives: Lives) -> None:
    """Each process names its attempt after its first incarnation, and keeps that name."""
    trainers = [
        lives.new(own_attempt(f"own-{process}"), process=process, incarnation=f"own-{process}") for process in range(2)
    ]
    found = lives.live(8, *trainers)
    later = lives.new(own_attempt("own-1"), process=1, state=trainers[1].state.copy())
    assert "conflict" not in [*found, *lives.live(8, trainers[0], later)]


@given(gaps=st.lists(st.sampled_from([0.5, 1.0, 3.0, 20.0]), min_size=1, max_size=30), data=st.data())
@settings(max_examples=60)
def test_one_job_after_another_is_never_a_conflict(gaps: list[float], data: st.DataObject) -> None:
    """For any clock offset between hosts, and any delay of the reports."""
    lives = Lives()
    for attempt in range(3):
        trainer = lives.new(f"attempt-{attempt}", data.draw(st.sampled_from(SKEWS)))
        held: list[Report] = []
        for gap in gaps:
            lives.advance(gap)
            trainer.step()
            held.append(trainer.report())
            if data.draw(st.booleans()):
                for report in held:
                    lives.take(report)
                held.clear()
        for report in held:
            lives.take(report)
    assert lives.told == []


def test_a_conflict_is_known_after_a_restart_of_the_exporter(lives: Lives) -> None:
    one, other = lives.new("one"), lives.new("other")
    lives.live(8, one, other)
    plan = lives.watched.ledger.plan(one.report())
    lives.watched.ledger = Ledger(lives.watched.clock)
    lives.watched.ledger.restore([plan.run])
    assert lives.watched.of_run()[0] == "conflict"
