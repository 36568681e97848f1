"""The dashboard *Run*: one run in depth."""

from typing import Final

from grafana_foundation_sdk.builders import dashboard as builders

from deploy.grafana import rows
from deploy.grafana.board import Addresses, board, choice, places
from deploy.grafana.queries import ONE, RUNS, restarts, streaks

UID: Final = "optwrap-run"


def build(addresses: Addresses) -> builders.Dashboard:
    """The dashboard, with links that lead to `addresses`."""
    return board(
        UID,
        "optwrap / Run",
        "One training run: its health, the steps that its optimizer skipped, and the reasons.",
        (rows.now(), rows.health(), rows.progress(), rows.cost(), rows.where(), rows.exporter()),
        variables=[*places("optwrap_run_health"), choice("run", "Run", "Name of the run", RUNS, several=False)],
        page="?run=${run}",
        addresses=addresses,
        annotations=[streaks(ONE), restarts(ONE)],
    )
