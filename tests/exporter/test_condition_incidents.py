"""Incidents of processes: silent, failed, again and again, starved."""

from optwrap_exporter.ledger.ledger import Ledger

from tests.exporter.incident_lists import acknowledge, elapse, incidents, only, say
from tests.exporter.trainer import Trainer, TurnedClock, take


def test_processes_that_go_silent_are_one_incident(ledger: Ledger, clock: TurnedClock) -> None:
    trainers = [Trainer(clock, process=process, process_count=4) for process in range(4)]
    for one in trainers:
        say(ledger, one, *["applied"] * 3)
    for _ in range(20):
        clock.advance(1)
        say(ledger, trainers[0])
        elapse(ledger)
    found = only(ledger)
    assert (found.kind, found.state, found.processes, found.host) == ("stale", "open", [1, 2, 3], "node-1")
    assert found.summary == "3 processes (process 1 on node-1, ...) sent their last report at step 3"
    say(ledger, trainers[1])
    say(ledger, trainers[3])
    assert only(ledger).state == "open"
    say(ledger, trainers[2])
    assert (only(ledger).state, only(ledger).closed) == ("closed", clock())


def test_one_silent_process_is_named_with_its_host(ledger: Ledger, clock: TurnedClock) -> None:
    trainer = Trainer(clock, process=12)
    say(ledger, trainer, *["applied"] * 803)
    clock.advance(60)
    elapse(ledger)
    assert only(ledger).summary == "process 12 on node-12 sent its last report at step 803"


def test_a_failure_is_one_incident_until_a_new_attempt_starts(ledger: Ledger, clock: TurnedClock) -> None:
    for process in range(2):
        trainer = Trainer(clock, process=process, process_count=2)
        trainer.step()
        take(ledger, trainer.report("failed", reason="ValueError: bad batch"))
    found = only(ledger)
    assert (found.kind, found.state, found.process_count) == ("failed", "open", 2)
    assert found.summary == "failed at step 1 of attempt 1: ValueError: bad batch"
    clock.advance(1000)
    elapse(ledger)
    assert only(ledger).state == "open"
    say(ledger, Trainer(clock, attempt="second"))
    clock.advance(1)
    elapse(ledger)
    assert only(ledger).state == "closed", "process 1 never comes back, but the run goes on without it"


def test_the_same_failure_again_and_again_is_one_incident(ledger: Ledger, clock: TurnedClock) -> None:
    for launch in range(8):
        pod = [Trainer(clock, process=process, attempt=f"launch-{launch}", process_count=2) for process in range(2)]
        for trainer in pod:
            say(ledger, trainer, *["applied"] * 460)
            clock.advance(1)
        for trainer in pod:
            say(
                ledger,
                trainer,
                *["applied"] * (5 + launch % 2),
                state="failed",
                reason="XlaRuntimeError: out of memory",
            )
            clock.advance(1)
        found = only(ledger)
        assert (found.state, found.times, found.attempt, found.processes) == (
            "open",
            launch + 1,
            f"launch-{launch}",
            [0, 1],
        )
    assert found.summary == "failed 8 times in a row, last at step 466 of attempt 8: XlaRuntimeError: out of memory"
    state = ledger.summary("lm")
    assert state is not None
    assert state.summary.endswith(
        "out of memory; see its log, and mend the cause before it starts again; 8 attempts in a row failed like this"
    )
    trainer = Trainer(clock, attempt="launch-8", process_count=2)
    say(ledger, trainer, *["applied"] * 120)
    say(ledger, Trainer(clock, attempt="launch-8", process_count=2, process=1), *["applied"] * 120)
    state = ledger.summary("lm")
    assert state is not None
    told = "at step 120 of attempt 9; the 8 before failed, last at step 466: XlaRuntimeError: out of memory"
    assert state.summary == told
    say(ledger, trainer, *["applied"] * 347)
    state = ledger.summary("lm")
    assert state is not None
    assert state.summary == "at step 467", "it has passed the step at which they failed"
    say(ledger, trainer, *["applied"] * 1000, state="failed", reason="XlaRuntimeError: out of memory")
    assert [one.times for one in incidents(ledger)] == [8, 1], "it got much further"


def test_another_failure_or_one_that_was_acknowledged_is_a_new_incident(ledger: Ledger, clock: TurnedClock) -> None:
    for launch, reason in enumerate(["OSError: a", "OSError: b", "OSError: b", "OSError: b"]):
        if launch == 3:
            acknowledge(ledger, 2)
        say(ledger, Trainer(clock, attempt=f"launch-{launch}"), "applied", state="failed", reason=reason)
        clock.advance(10)
    assert [(one.times, one.state) for one in incidents(ledger)] == [(1, "closed"), (2, "acknowledged"), (1, "open")]


def test_a_finished_run_has_no_incident(ledger: Ledger, clock: TurnedClock, trainer: Trainer) -> None:
    say(ledger, trainer, "applied", state="finished")
    clock.advance(1000)
    elapse(ledger)
    assert incidents(ledger) == []


def test_a_starved_process(ledger: Ledger, trainer: Trainer) -> None:
    trainer.gauges["gradient_norm_limit"] = 50.0
    say(ledger, trainer, *["applied"] * 800)
    for _ in range(987):
        trainer.step("skipped_large", norm=80.0)
    take(ledger, trainer.report())
    (starved,) = [one for one in incidents(ledger) if one.kind == "starved"]
    assert starved.summary == "987 steps since step 801 without a gradient step, norm 80 at step 1,787, limit 50"
    for norm in (60.0, 90.0):
        trainer.step("skipped_large", norm=norm)
        take(ledger, trainer.report())
    opened = [one for one in incidents(ledger) if one.state == "open"]
    assert [one.kind for one in opened] == ["starved"], "one cause is one incident"
    assert opened[0].outcomes == ["skipped_large"]
    assert opened[0].summary == "989 steps since step 801 without a gradient step, norm 90 at step 1,789, limit 50"
    state = ledger.summary("lm")
    assert state is not None
    assert "989 steps since step 801 were skipped, norm 90 at step 1,789, limit 50" in state.summary
    say(ledger, trainer, "accepted_not_finite")
    assert {one.state for one in incidents(ledger) if one.kind == "starved"} == {"closed"}
    assert ledger.health("lm") == "gave_up"
