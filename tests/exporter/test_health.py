"""Health: each row of its table, and the cases in which that row must not hold. The test sets the clock."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optwrap_exporter.ledger.change import health
from optwrap_exporter.ledger.change.health import HealthSince
from optwrap_exporter.ledger.ledger import Ledger
from optwrap_exporter.wire.vocabulary import HEALTHS, Health, own_attempt

from tests.exporter.ledgers import Watched
from tests.exporter.trainer import START, Trainer, TurnedClock, sent, take, with_records


@pytest.fixture
def watched() -> Watched:
    return Watched()


@pytest.fixture
def trainer(watched: Watched) -> Trainer:
    return Trainer(watched.clock)


def test_a_process_is_starting_until_its_first_step_and_ok_from_then_on(watched: Watched, trainer: Trainer) -> None:
    take(watched.ledger, trainer.hello())
    assert watched.of() == ("starting", 0)
    watched.keep_saying(trainer, 8)
    assert watched.of() == ("starting", 0)
    watched.clock.advance(1)
    watched.say(trainer)
    assert watched.of() == watched.of_run() == ("ok", 9)


def test_a_resumed_process_is_starting_until_it_takes_a_step_of_its_own(watched: Watched, trainer: Trainer) -> None:
    watched.say(trainer)
    watched.clock.advance(5)
    again = Trainer(watched.clock, attempt="second", state=trainer.state.copy())
    take(watched.ledger, again.report())
    assert watched.of() == ("starting", 5)
    watched.keep_saying(again, 1, "applied")
    assert watched.of() == ("ok", 6)


def test_skipping_holds_from_the_first_to_the_last_step_of_a_streak(watched: Watched, trainer: Trainer) -> None:
    watched.say(trainer)
    watched.clock.advance(1)
    watched.say(trainer, "bad")
    watched.keep_saying(trainer, 3, "bad")
    assert watched.of() == ("skipping", 1)
    watched.clock.advance(1)
    for _ in range(2):  # an end and a new beginning within one report
        trainer.step()
        trainer.bad()
    watched.say(trainer, None)
    assert watched.of() == ("skipping", 5)
    watched.keep_saying(trainer, 1, "applied")
    assert watched.of() == ("ok", 6)


@pytest.mark.parametrize(("interval", "limit"), [(1.0, 10.0), (3.0, 10.0), (60.0, 180.0), (0.1, 10.0)])
def test_a_process_is_stale_after_three_intervals_and_at_least_ten_seconds(
    watched: Watched, interval: float, limit: float
) -> None:
    trainer = Trainer(watched.clock, interval=interval)
    watched.say(trainer)
    watched.clock.advance(limit - 0.01)
    assert watched.of() == ("ok", 0)
    assert watched.look() == []
    watched.clock.advance(0.01)
    assert watched.of() == ("stale", 0), "since its last report"
    assert watched.look() == ["stale"]
    assert watched.look() == []
    watched.clock.advance(1000)
    assert watched.of() == ("stale", 0), "since its last report"
    watched.say(trainer)
    assert watched.of() == ("ok", limit + 1000)


def test_silence_does_not_count_while_the_exporter_is_down(watched: Watched, trainer: Trainer) -> None:
    watched.say(trainer)
    run = watched.ledger.plan(trainer.report()).run
    watched.clock.advance(3590)
    watched.ledger = Ledger(watched.clock)
    watched.clock.advance(10)  # it takes a while to read a large store
    watched.ledger.restore([run])
    assert watched.of() == ("ok", 0)
    watched.clock.advance(10)
    assert watched.of() == ("stale", 0)


def test_a_stale_process_is_still_stale_after_a_restart_of_the_exporter(watched: Watched, trainer: Trainer) -> None:
    watched.say(trainer)
    watched.clock.advance(10)
    (plan,) = watched.ledger.pass_time()
    watched.ledger = Ledger(watched.clock)
    watched.ledger.restore([plan.run])
    assert watched.of() == ("stale", 0)
    assert watched.look() == []


def test_a_process_that_reports_no_step_for_five_minutes_is_stalled(watched: Watched, trainer: Trainer) -> None:
    watched.say(trainer)
    watched.keep_saying(trainer, 299)
    assert watched.of() == ("ok", 0)
    watched.keep_saying(trainer, 1)
    assert watched.of() == ("stalled", 0), "since its last step"
    assert watched.look() == ["stalled"]
    assert watched.look() == []
    watched.keep_saying(trainer, 100)
    assert watched.of() == ("stalled", 0), "since its last step"
    watched.keep_saying(trainer, 1, "applied")
    assert watched.of() == ("ok", 401)


def test_slow_steps_are_stalled_only_after_ten_times_their_median(watched: Watched) -> None:
    trainer = Trainer(watched.clock, interval=50.0)
    for _ in range(5):
        watched.say(trainer)
        watched.clock.advance(100)
    at = watched.clock.now - START - 100
    for _ in range(17):
        watched.say(trainer, None)
        watched.clock.advance(50)
    assert watched.of() == ("ok", 0)
    watched.clock.advance(50)
    watched.say(trainer, None)
    assert watched.of() == ("stalled", at)


def test_one_pause_does_not_change_the_median_step_time(watched: Watched, trainer: Trainer) -> None:
    for seconds in (1, 1, 1, 3000, 1, 1):
        watched.say(trainer)
        watched.clock.advance(seconds)
    watched.say(trainer)
    assert watched.ledger.plan(trainer.report()).process.stalled_after == 300


def test_a_silent_process_is_stale_and_not_stalled(watched: Watched, trainer: Trainer) -> None:
    watched.say(trainer)
    watched.clock.advance(10_000)
    assert watched.of()[0] == "stale"
    assert watched.look() == ["stale"]


@pytest.mark.parametrize(("every_k", "limit"), [(None, 100), (4, 100), (32, 320)])
def test_a_process_without_gradient_steps_is_starved(watched: Watched, every_k: int | None, limit: int) -> None:
    trainer = Trainer(watched.clock, gauges={} if every_k is None else {"every_k": every_k})
    watched.say(trainer)
    watched.keep_saying(trainer, limit - 1, "skipped_large")
    assert watched.of() == ("ok", 0)
    watched.keep_saying(trainer, 1, "skipped_large")
    assert watched.of() == ("starved", limit)
    watched.keep_saying(trainer, 5, "skipped_large")
    assert watched.of() == ("starved", limit)
    watched.keep_saying(trainer, 1, "applied")
    assert watched.of() == ("ok", limit + 6)


def test_a_long_accumulation_window_is_not_starved(watched: Watched) -> None:
    trainer = Trainer(watched.clock, gauges={"every_k": 64})
    for _ in range(20):
        for outcome in ["accumulated"] * 63 + ["applied"]:
            trainer.step(outcome)
            watched.clock.advance(0.1)
        watched.say(trainer, None)
        assert watched.of()[0] == "ok"


def test_starved_counts_from_the_step_of_the_resumed_state(watched: Watched, trainer: Trainer) -> None:
    for _ in range(500):
        trainer.step("accumulated")
    again = Trainer(watched.clock, state=trainer.state.copy())
    again.gauges = {"every_k": 8}
    for _ in range(99):
        watched.say(again, "accumulated")
    assert watched.of()[0] == "ok"
    watched.say(again, "accumulated")
    assert watched.of()[0] == "starved"


def test_gradient_steps_before_an_incarnation_became_current_prevent_starved(watched: Watched) -> None:
    """A resumed job whose clock is behind takes gradient steps before it is current, and none after."""
    ahead, behind = TurnedClock(START + 3600), TurnedClock(START)
    first, second = Trainer(ahead), Trainer(behind, attempt="second")
    watched.say(first)
    for second_of_training in range(15):
        if second_of_training < 5:
            for _ in range(200):
                second.step()
        watched.say(second, None)
        watched.clock.advance(1)
        behind.advance(1)
    assert watched.ledger.views()[0].incarnation == second.incarnation
    assert watched.of()[0] == "ok"


@pytest.mark.parametrize("kept", [(0, 249), (*range(0, 100), 249), (249,)])
def test_dropped_records_of_gradient_steps_prevent_starved(
    watched: Watched, trainer: Trainer, kept: tuple[int, ...]
) -> None:
    """200 gradient steps, then 50 skipped ones: the records between them are dropped."""
    for index in range(250):
        trainer.step() if index < 200 else trainer.step("skipped_large")
    take(watched.ledger, sent(with_records(trainer.json(), *kept)))
    assert watched.of()[0] == "ok"


def test_starved_counts_from_the_last_recorded_gradient_step(watched: Watched, trainer: Trainer) -> None:
    """The only gradient step has a record, so every step without a record is another one."""
    trainer.step()
    for _ in range(120):
        trainer.step("skipped_large")
    take(watched.ledger, sent(with_records(trainer.json(), 0, 1)))
    assert watched.of()[0] == "starved"


def test_starved_is_worse_than_skipping_and_is_one_event(watched: Watched, trainer: Trainer) -> None:
    watched.say(trainer)
    kinds = []
    for _ in range(120):
        watched.clock.advance(1)
        trainer.bad()
        plan = take(watched.ledger, trainer.report())
        kinds += [event.kind for event in plan.events]
    assert watched.of() == ("starved", 100)
    assert kinds.count("starved") == 1


def test_gave_up_holds_until_a_rollback(watched: Watched, trainer: Trainer) -> None:
    """However many good steps follow: the optimizer's state still has the non-finite value in it."""
    watched.say(trainer)
    clean = trainer.state.copy()
    watched.clock.advance(1)
    watched.say(trainer, "accepted_not_finite")
    assert watched.of() == watched.of_run() == ("gave_up", 1)
    watched.keep_saying(trainer, 1000, "applied")
    assert watched.of() == watched.of_run() == ("gave_up", 1)
    watched.clock.advance(9)
    later = Trainer(watched.clock, state=trainer.state.copy())
    watched.say(later, "applied")
    assert watched.of() == ("gave_up", 1), "it went on after the last clean step"
    watched.clock.advance(10)
    watched.say(Trainer(watched.clock, state=clean), "applied")
    assert watched.of() == watched.of_run() == ("ok", 1020)


def test_gave_up_is_worse_than_failed_and_stale(watched: Watched, trainer: Trainer) -> None:
    watched.say(trainer, "accepted_not_finite", state="failed")
    watched.clock.advance(100_000)
    assert watched.of() == ("gave_up", 0)


@pytest.mark.parametrize("state", ["finished", "failed", "stopped"])
def test_an_ended_process_is_neither_stale_nor_stalled(watched: Watched, trainer: Trainer, state: Health) -> None:
    watched.say(trainer)
    watched.clock.advance(3)
    watched.say(trainer, None, state=state)
    watched.clock.advance(100_000)
    assert watched.of() == watched.of_run() == (state, 3)
    assert watched.look() == []


def test_a_finished_process_with_an_open_streak_is_finished(watched: Watched, trainer: Trainer) -> None:
    watched.say(trainer, "bad", state="finished")
    assert watched.of()[0] == "finished"


def test_the_older_of_two_attempts_is_current_again_once_the_newer_one_is_stale(
    watched: Watched, trainer: Trainer
) -> None:
    watched.say(trainer)
    watched.clock.advance(1)
    newer = Trainer(watched.clock, attempt="second")
    watched.say(newer)
    watched.keep_saying(trainer, 9, "applied")
    assert watched.ledger.views()[0].incarnation == newer.incarnation
    watched.keep_saying(trainer, 1, "applied")
    assert watched.of()[0] == "ok"
    assert watched.ledger.views()[0].incarnation == trainer.incarnation


def test_a_job_restarted_with_a_clock_behind_becomes_current_soon(watched: Watched) -> None:
    ahead = TurnedClock(START + 3600)
    first = Trainer(ahead)
    for _ in range(5):
        watched.say(first)
        watched.clock.advance(1)
        ahead.advance(1)
    behind = TurnedClock(START)
    second = Trainer(behind, attempt="second")
    for _ in range(15):
        watched.say(second)
        watched.clock.advance(1)
        behind.advance(1)
    assert watched.of()[0] == "ok"
    assert watched.ledger.views()[0].incarnation == second.incarnation


def test_a_backlog_does_not_make_an_older_incarnation_current(watched: Watched, trainer: Trainer) -> None:
    """Reports made a second apart that arrive all at once do not show that it is alive."""
    late = []
    for _ in range(10):
        trainer.step()
        late.append(trainer.report())
        watched.clock.advance(1)
    newer = Trainer(watched.clock, attempt="second")
    watched.say(newer)
    watched.clock.advance(60)
    before = watched.of()
    assert before[0] == "stale"
    for report in late:
        take(watched.ledger, report)
    assert watched.of() == before
    assert watched.ledger.views()[0].incarnation == newer.incarnation


def test_a_run_is_degraded_while_a_process_of_the_job_is_missing() -> None:
    watched = Watched("job")
    for process in (0, 1):
        watched.say(Trainer(watched.clock, process=process, process_count=3))
        watched.clock.advance(1)
    assert watched.of_run() == ("degraded", 0)
    assert watched.of(0)[0] == watched.of(1)[0] == "ok"
    watched.say(Trainer(watched.clock, process=2, process_count=3))
    assert watched.of_run() == ("ok", 2)


def test_a_run_has_the_health_of_its_worst_process(watched: Watched) -> None:
    trainers = [Trainer(watched.clock, process=process, process_count=4) for process in range(4)]
    for trainer in trainers:
        watched.say(trainer)
    for _ in range(12):
        watched.clock.advance(1)
        for trainer in trainers[:3]:
            watched.say(trainer)
    assert watched.of(3) == watched.of_run() == ("stale", 0)
    assert {watched.of(process)[0] for process in range(3)} == {"ok"}


def test_a_run_is_finished_only_when_all_its_processes_are(watched: Watched) -> None:
    trainers = [Trainer(watched.clock, process=process, process_count=2) for process in range(2)]
    for trainer in trainers:
        watched.say(trainer)
    watched.say(trainers[0], state="finished")
    assert watched.of_run()[0] == "ok"
    watched.clock.advance(2)
    watched.say(trainers[1], state="finished")
    assert watched.of_run() == ("finished", 2)


def test_processes_of_a_killed_attempt_do_not_count(watched: Watched) -> None:
    """Four processes are killed and two take over: the run has those two."""
    for process in range(4):
        watched.say(Trainer(watched.clock, process=process, process_count=4))
    watched.clock.advance(30)
    assert watched.of_run()[0] == "stale"
    for process in range(2):
        watched.say(Trainer(watched.clock, process=process, process_count=2, attempt="second"))
    assert watched.of_run()[0] == "ok"
    summary = watched.ledger.summary("lm")
    assert summary is not None
    assert (summary.process_count, summary.processes) == (2, 2)
    assert watched.of(3)[0] == "stale"


def test_a_process_restarted_alone_does_not_hide_the_others(watched: Watched) -> None:
    """Without a common attempt, every start of a process is its own attempt."""
    trainers = [
        Trainer(watched.clock, process=i, incarnation=f"of-{i}", attempt=own_attempt(f"of-{i}"), process_count=3)
        for i in range(3)
    ]
    for trainer in trainers:
        watched.say(trainer)
    watched.clock.advance(1)
    again = Trainer(watched.clock, process=2, incarnation="again", attempt=own_attempt("again"), process_count=3)
    for _ in range(15):
        watched.clock.advance(1)
        for trainer in (trainers[0], trainers[1], again):
            watched.say(trainer)
        assert watched.of_run()[0] == "ok"
    assert watched.ledger.lead("lm") == 0
    for _ in range(15):
        watched.clock.advance(1)
        for trainer in (trainers[1], again):
            watched.say(trainer)
    assert watched.of_run()[0] == "stale"


times = st.floats(0, 1e9)
outcomes = st.lists(st.tuples(st.sampled_from(sorted(set(HEALTHS) - {"degraded"})), times), min_size=1, max_size=5)


@given(outcomes=outcomes, missing=st.booleans(), began=times)
def test_a_run_has_the_first_health_of_the_order_that_any_process_has(
    outcomes: list[tuple[Health, float]], missing: bool, began: float
) -> None:
    """Except that one finished process does not finish a run."""
    found, since = health.overall([HealthSince(*one) for one in outcomes], missing=missing, began=began)
    held: list[Health] = [name for name, _ in outcomes if name != "finished"] or ["finished"]
    rows: list[Health] = [*held, "degraded"] if missing else held
    assert found == min(rows, key=HEALTHS.index)
    assert since in [*(when for name, when in outcomes if name == found), *([began] if found == "degraded" else [])]


def test_the_order_of_healths_is_the_documented_one() -> None:
    assert list(HEALTHS) == [
        "conflict", "diverged", "gave_up", "failed", "stopped", "stale", "stalled", "starved", "skipping", "starting",
        "degraded", "finished", "ok",
    ]  # fmt: skip
