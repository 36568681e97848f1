"""What trouble cost: steps and seconds lost to skips, to steps taken again, and to starvation."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optwrap_exporter.ledger.ledger import Ledger
from optwrap_exporter.ledger.state.lost import Lost
from optwrap_exporter.ledger.state.process import ProcessState
from optwrap_exporter.wire.requests import Report

from tests.exporter.histories import History, delivered, histories
from tests.exporter.ledgers import Watched
from tests.exporter.running import Job, served
from tests.exporter.stores import Kept
from tests.exporter.trainer import State, Trainer, TurnedClock, take


def lost(ledger: Ledger, process: int = 0) -> Lost:
    (view,) = [view for view in ledger.views() if view.process == process]
    return view.lost


def kept_steps(state: State) -> int:
    """Steps that were not skipped."""
    return sum(n for outcome, n in state.outcomes.items() if not outcome.startswith("skipped"))


def truth(history: History, process: int) -> tuple[int, int]:
    """Steps that were skipped, and steps that were taken again, counted one by one."""
    skipped, taken_again = 0, 0
    taken: set[int] = set()
    for trainer in history.trainers:
        if trainer.process != process:
            continue
        outcomes = trainer.state.outcomes - trainer.start.outcomes
        skipped += sum(n for outcome, n in outcomes.items() if outcome.startswith("skipped"))
        mine = set(range(kept_steps(trainer.start), kept_steps(trainer.state)))
        taken_again += len(mine & taken)
        taken |= mine
    return skipped, taken_again


@given(history=histories(), data=st.data())
@settings(max_examples=60)
def test_skipped_and_redone_steps_are_exact_whatever_the_order_of_reports(
    history: History, data: st.DataObject
) -> None:
    clock = TurnedClock()
    ledger = Ledger(clock)
    before: dict[int, Lost] = {}
    for report in delivered(data, history):
        clock.advance(1)
        if ledger.find(report) is not None:
            continue
        take(ledger, report)
        now = lost(ledger, report.process)
        then = before.get(report.process, Lost())
        assert all(new >= old for new, old in zip(now[:6], then[:6], strict=True)), "a counter fell"
        before[report.process] = now
    for process in history.processes:
        assert lost(ledger, process)[:2] == truth(history, process)


@given(history=histories(most_processes=1), data=st.data())
@settings(max_examples=15)
def test_they_are_the_same_after_restarts(
    tmp_path_factory: pytest.TempPathFactory, history: History, data: st.DataObject
) -> None:
    reports = [report for made in history.reports.values() for report in made]

    def lived(restarts: set[int], directory: Path) -> Lost:
        kept = Kept(directory)
        for place, report in enumerate(reports):
            kept.clock.advance(1)
            kept.take(report)
            if place in restarts:
                kept = kept.reopened()
        found = lost(kept.ledger)
        kept.store.close()
        return found

    restarts = data.draw(st.sets(st.integers(0, len(reports) - 1)))
    again, once = (lived(when, tmp_path_factory.mktemp("store")) for when in (restarts, set()))
    assert again == once


def test_steps_that_are_taken_again_after_a_rollback_are_redone() -> None:
    """987 steps, back to 800, and on to 1,000: 187 steps brought nothing."""
    watched = Watched()
    trainer = Trainer(watched.clock)
    checkpoint = State()
    for step in range(1, 988):
        trainer.step()
        if step == 800:
            checkpoint = trainer.state.copy()
    watched.say(trainer, None)
    assert lost(watched.ledger).steps == {"skipped": 0, "redone": 0, "starved": 0}
    again = Trainer(watched.clock, state=checkpoint)
    for _ in range(100):
        again.step()
    watched.say(again, None)
    assert lost(watched.ledger).steps["redone"] == 100, "as far as it has got"
    for _ in range(100):
        again.step()
    watched.say(again, None)
    assert lost(watched.ledger).steps["redone"] == 187


def test_skipped_steps_are_not_lost_a_second_time_when_others_take_their_place() -> None:
    """187 steps from 800 on are skipped. Back at 800 the next 187 are the first to bring anything."""
    watched = Watched()
    trainer = Trainer(watched.clock)
    for _ in range(800):
        trainer.step()
    checkpoint = trainer.state.copy()
    for _ in range(187):
        trainer.bad()
    watched.say(trainer, None)
    again = Trainer(watched.clock, state=checkpoint)
    for _ in range(187):
        again.step()
    watched.say(again, None)
    assert lost(watched.ledger).steps == {"skipped": 187, "redone": 0, "starved": 0}


def test_a_launch_that_begins_from_nothing_under_the_same_name_takes_all_steps_again() -> None:
    watched = Watched()
    for attempt in ("first", "second"):
        trainer = Trainer(watched.clock, attempt=attempt)
        watched.keep_saying(trainer, 30, "applied")
    assert lost(watched.ledger).steps == {"skipped": 0, "redone": 30, "starved": 0}


def test_accumulated_steps_are_starved_once_the_process_is() -> None:
    """Starved are 100 steps without a gradient step, and those that follow, but not the skipped ones among them."""
    watched = Watched()
    trainer = Trainer(watched.clock)
    watched.say(trainer)
    watched.keep_saying(trainer, 3, "skipped_large")
    watched.keep_saying(trainer, 96, "accumulated")
    assert watched.of()[0] == "ok"
    assert lost(watched.ledger).steps == {"skipped": 3, "redone": 0, "starved": 0}
    watched.keep_saying(trainer, 1, "accumulated")
    assert watched.of()[0] == "starved"
    assert lost(watched.ledger).steps == {"skipped": 3, "redone": 0, "starved": 97}
    watched.keep_saying(trainer, 10, "accumulated")
    watched.keep_saying(trainer, 1, "applied")
    watched.keep_saying(trainer, 50, "accumulated")
    watched.keep_saying(trainer, 1, "applied")
    watched.keep_saying(trainer, 60, "accumulated")
    assert lost(watched.ledger).steps == {"skipped": 3, "redone": 0, "starved": 107}
    assert lost(watched.ledger).seconds == {"skipped": 3.0, "redone": 0.0, "starved": 107.0}


def test_the_seconds_of_a_step_are_those_of_the_process() -> None:
    """A step takes 2 s, and each report has five of them."""
    watched = Watched()
    trainer = Trainer(watched.clock)

    def five(outcome: str) -> None:
        for _ in range(5):
            watched.clock.advance(2)
            trainer.step(outcome, finite=True)
        watched.say(trainer, None)

    five("applied")
    five("skipped_large")
    watched.clock.advance(60)  # a pause is nobody's loss
    five("skipped_other")
    assert lost(watched.ledger).seconds == {"skipped": 20.0, "redone": 0.0, "starved": 0.0}


def test_without_step_records_the_seconds_are_those_between_two_reports() -> None:
    watched = Watched()
    trainer = Trainer(watched.clock)

    def told() -> Report:
        none: dict[str, list[float]] = {name: [] for name in trainer.columns}
        return trainer.report(steps=none, offenders=[])

    take(watched.ledger, told())
    for _ in range(40):
        trainer.bad()
    watched.clock.advance(20)
    take(watched.ledger, told())
    assert lost(watched.ledger).seconds["skipped"] == 20.0


def test_gaps_between_incarnations_never_take_more_room() -> None:
    """A run that is resumed from ever later checkpoints of another one."""
    watched = Watched()
    for number in range(600):
        state = State()
        state.outcomes["applied"] = 3 * number
        trainer = Trainer(watched.clock, attempt=f"a{number}", state=state)
        trainer.step()
        watched.say(trainer, None)
    assert len(lost(watched.ledger).taken) == 512
    assert lost(watched.ledger).steps["redone"] == 0


def test_metrics_and_api_show_what_was_lost_and_a_restart_keeps_it(tmp_path: Path) -> None:
    clock = TurnedClock()
    with served(tmp_path, clock) as exporter:
        job = Job(clock=clock)
        for _ in range(10):
            job.step()
            clock.advance(1)
        checkpoint = job.state.copy()
        for _ in range(4):
            job.step()
            clock.advance(1)
        job.step("skipped_large")
        exporter.send(job.report())
    with served(tmp_path, clock) as exporter:
        again = Job(incarnation="e2", attempt="a2", clock=clock, state=checkpoint)
        for _ in range(5):
            again.step()
            clock.advance(1)
        exporter.send(again.report())
        for path in ("/v1/runs/lm", "/v1/runs"):
            answer = exporter.get(path)
            run = answer["items"][0] if "items" in answer else answer
            assert run["lost_steps"] == {"skipped": 1, "redone": 4, "starved": 0}
            assert run["lost_seconds"] == {"skipped": 1.0, "redone": 4.0, "starved": 0.0}
        text = exporter.scrape()
        assert 'optwrap_lost_steps_total{process="0",reason="redone",run="lm"} 4.0' in text
        assert 'optwrap_lost_seconds_total{process="0",reason="skipped",run="lm"} 1.0' in text


def test_a_report_of_good_steps_changes_only_the_steps_taken() -> None:
    """What most reports cost: no median is computed for them."""
    asked: list[ProcessState] = []
    watched = Watched()
    trainer = Trainer(watched.clock)
    watched.say(trainer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ProcessState, "seconds_per_step", property(asked.append))
        take(watched.ledger, trainer.report())
        trainer.step()
        take(watched.ledger, trainer.report())
    assert asked == []
    assert lost(watched.ledger) == Lost(taken=((1, 2),))
