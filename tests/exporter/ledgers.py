"""For tests: a ledger that is watched, with a clock that the test turns."""

from optwrap_exporter.ledger.ledger import Ledger
from optwrap_exporter.wire.vocabulary import Health, Scope

from tests.exporter.trainer import START, Trainer, TurnedClock, take


class Watched:
    """One exporter's ledger, and what it says of the only run."""

    def __init__(self, scope: Scope = "host") -> None:
        self.clock = TurnedClock()
        self.ledger = Ledger(self.clock, scope=scope)

    def of(self, process: int = 0) -> tuple[Health, float]:
        """Health of a process and, in seconds after START, since when."""
        (view,) = [view for view in self.ledger.views() if view.process == process]
        return view.health, view.since - START

    def of_run(self) -> tuple[Health, float]:
        summary = self.ledger.summary("lm")
        assert summary is not None
        return summary.health, summary.since - START

    def say(self, trainer: Trainer, outcome: str | None = "applied", *, state: str = "running") -> None:
        """A report, of one step where an outcome is given."""
        if outcome == "bad":
            trainer.bad()
        elif outcome is not None:
            trainer.step(outcome)
        take(self.ledger, trainer.report(state))

    def keep_saying(self, trainer: Trainer, seconds: float, outcome: str | None = None) -> None:
        """A report each second."""
        for _ in range(int(seconds)):
            self.clock.advance(1)
            self.say(trainer, outcome)

    def look(self) -> list[str]:
        """What the clock alone brings: the kinds of the events."""
        plans = self.ledger.pass_time()
        for plan in plans:
            self.ledger.apply(plan)
        return [event.kind for plan in plans for event in plan.events]
