"""What nobody observed is shown with its non-finite steps, and such a run is not plainly green."""

from typing import Any

import httpx
import pytest
from optwrap_exporter.cli.exporter import Exporter
from optwrap_exporter.cli.render import Row, draw
from optwrap_exporter.ledger.ledger import Ledger
from rich.console import Console

from tests.exporter.trainer import State, Trainer, TurnedClock, take


def unseen(ledger: Ledger) -> tuple[int, int]:
    """Of the run's own answer, which is the same in the list of runs."""
    detail, summary = ledger.detail("lm"), ledger.summary("lm")
    assert detail is not None
    assert summary is not None
    assert (detail.unseen, detail.unseen_not_finite) == (summary.unseen, summary.unseen_not_finite)
    return detail.unseen, detail.unseen_not_finite


def steps(state: State, good: int, bad: int) -> State:
    for _ in range(good):
        state.step("applied", {})
    for _ in range(bad):
        state.step("skipped_not_finite", {"head": 1})
    return state


def test_a_hidden_loop_shows_its_non_finite_steps() -> None:
    """Forty steps of which the last reading alone was observed."""
    clock = TurnedClock()
    ledger = Ledger(clock)
    take(ledger, Trainer(clock).hello())
    trainer = Trainer(clock, state=steps(State(), 26, 13))
    trainer.step()
    take(ledger, trainer.report("finished"))
    assert unseen(ledger) == (39, 13)


def test_steps_between_two_attempts_are_unseen_until_a_report_covers_them() -> None:
    """As are those before the first, and those of a loop after the last report."""
    clock = TurnedClock()
    ledger = Ledger(clock)
    first = Trainer(clock, state=steps(State(), 4, 1))
    first.step()
    take(ledger, first.report())
    clock.advance(1)
    second = Trainer(clock, attempt="second", state=steps(first.state.copy(), 2, 3))
    second.bad()
    take(ledger, second.report())
    assert unseen(ledger) == (10, 4)
    first.step()
    take(ledger, first.report())
    assert unseen(ledger) == (9, 4)


def test_a_rollback_leaves_nothing_unseen() -> None:
    clock = TurnedClock()
    ledger = Ledger(clock)
    first = Trainer(clock)
    for _ in range(5):
        first.bad()
    saved = first.state.copy()
    for _ in range(5):
        first.step()
    take(ledger, first.report())
    clock.advance(1)
    second = Trainer(clock, attempt="second", state=saved)
    second.step()
    take(ledger, second.report())
    assert unseen(ledger) == (0, 0)


@pytest.mark.parametrize(
    ("missing", "bad", "shown", "colour"),
    [(0, 0, "1", "32"), (39, 0, "+39 unseen", "36"), (39, 13, "+39 unseen, 13 non-finite", "33")],
    ids=["all seen", "finite", "non-finite"],
)
def test_the_terminal_shows_them_and_is_not_green(missing: int, bad: int, shown: str, colour: str) -> None:
    clock = TurnedClock()
    ledger = Ledger(clock)
    trainer = Trainer(clock, state=steps(State(), missing - bad, bad))
    trainer.step()
    take(ledger, trainer.report())
    detail = ledger.detail("lm")
    assert detail is not None
    run: dict[str, Any] = detail.model_dump(mode="json")
    exporter = Exporter(httpx.Client(trust_env=False), "http://127.0.0.1:1")
    console = Console(width=200, force_terminal=True, color_system="standard", record=True)
    console.print(draw([Row(exporter, run)], left_out={}, now=clock(), width=200))
    text = console.export_text(styles=True)
    assert shown in text
    assert f"\x1b[{colour}mHealthy" in text
