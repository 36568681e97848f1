"""The terminal's column of scalars."""

from typing import Any

import httpx
import pytest
from optwrap_exporter.cli.exporter import Exporter
from optwrap_exporter.cli.render import Row, draw
from optwrap_exporter.ledger.ledger import Ledger
from rich.console import Console

from tests.exporter.trainer import Trainer, TurnedClock, take


@pytest.mark.parametrize(
    ("scalars", "width", "column"),
    [({"loss": 2.5, "lr": 0.1}, 200, True), ({"loss": 2.5, "lr": 0.1}, 60, False), ({}, 200, False)],
    ids=["wide", "narrow", "none"],
)
def test_the_terminal_shows_the_last_scalars_if_there_is_room(
    scalars: dict[str, float], width: int, column: bool
) -> None:
    """It is the first column to go in a narrow terminal, and a run without scalars has none."""
    clock = TurnedClock()
    ledger = Ledger(clock)
    trainer = Trainer(clock)
    trainer.step()
    take(ledger, trainer.report())
    detail = ledger.detail("lm")
    assert detail is not None
    run: dict[str, Any] = detail.model_dump(mode="json") | {
        "scalars": {name: {"value": value, "step": 1, "time": clock()} for name, value in scalars.items()}
    }
    exporter = Exporter(httpx.Client(trust_env=False), "http://127.0.0.1:1")
    console = Console(width=width, record=True)
    console.print(draw([Row(exporter, run)], left_out={}, now=clock(), width=width))
    text = console.export_text()
    assert ("scalars" in text) == column
    assert ("loss 2.5, lr 0.1" in text) == column
