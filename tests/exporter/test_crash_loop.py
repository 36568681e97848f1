"""The health of a run whose launches end one after the other: the next one is not green before it gets further."""

import pytest
from optwrap_exporter.ledger.ledger import Ledger
from optwrap_exporter.wire.answers import RunSummary

from tests.exporter.trainer import State, Trainer, TurnedClock, take

REASON = "ValueError: bad batch"


class Loop:
    """Launches of a job of one process, 20 seconds apart."""

    def __init__(self) -> None:
        self.clock = TurnedClock()
        self.ledger = Ledger(self.clock)
        self.number = 0

    def launch(self, steps: int, end: str = "running", began: int = 0) -> Trainer:
        """The next launch, from a checkpoint of step `began`, with its last report if it sends one."""
        state = State()
        state.outcomes["applied"] = began
        trainer = Trainer(self.clock, attempt=f"a{self.number}", state=state)
        self.number += 1
        self.clock.advance(20)
        self.run(trainer, steps, end)
        return trainer

    def run(self, trainer: Trainer, steps: int, end: str = "running") -> None:
        for _ in range(steps):
            trainer.step()
        take(self.ledger, trainer.report(end, **({"reason": REASON} if end == "failed" else {})))

    @property
    def told(self) -> RunSummary:
        found = self.ledger.summary("lm")
        assert found is not None
        return found


@pytest.mark.parametrize(
    ("end", "sentence"),
    [
        ("failed", f"at step 4 of attempt 4; the 3 before failed, last at step 9: {REASON}"),
        ("running", "at step 4 of attempt 4; the 3 before ended early, last at step 9"),  # killed: no last report
    ],
)
def test_the_next_launch_is_failed_until_it_gets_further(end: str, sentence: str) -> None:
    loop = Loop()
    for _ in range(2):
        loop.launch(9, end)
    loop.launch(4)
    assert loop.told.health == "ok", "two launches are no loop"
    loop = Loop()
    for _ in range(3):
        loop.launch(9, end)
    failed = loop.clock()
    trainer = loop.launch(0)
    assert loop.told.health == "failed", "before its first step too"
    loop.run(trainer, 4)
    assert (loop.told.health, loop.told.since, loop.told.runbook) == ("failed", failed, "OptwrapCrashLoop")
    assert loop.told.summary == sentence
    assert next(view.health for view in loop.ledger.run_views()) == "failed", "the metric"
    loop.run(trainer, 6)
    assert (loop.told.health, loop.told.runbook, loop.told.summary) == ("ok", None, "at step 10")


def test_a_job_that_is_preempted_but_makes_progress_is_healthy() -> None:
    loop = Loop()
    for number in range(5):
        loop.launch(9, began=5 * number)
    loop.launch(2, began=25)
    assert (loop.told.health, loop.told.summary) == ("ok", "at step 27")


def test_a_job_that_a_person_starts_anew_each_day_is_healthy() -> None:
    loop = Loop()
    for _ in range(4):
        loop.launch(9)
        loop.clock.advance(86_400)
    loop.launch(2)
    assert (loop.told.health, loop.told.summary) == ("ok", "at step 2")


def test_an_acknowledged_failure_does_not_colour_the_next_launch() -> None:
    loop = Loop()
    for _ in range(3):
        loop.launch(9, "failed")
    (run,) = loop.ledger.shown()
    loop.ledger.apply(loop.ledger.acknowledge("lm", run.incidents[0]))
    loop.launch(4)
    assert loop.told.health == "ok"
