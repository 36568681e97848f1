"""The dashboard *Run*: one run in depth."""

from typing import Final

from grafana_foundation_sdk.builders import dashboard as builders

from deploy.grafana.board import board, choice, places
from deploy.grafana.queries import ONE, RUNS, restarts, streaks
from deploy.grafana.rows import exporter, now, problems, progress, sources

UID: Final = "optwrap-run"


def build() -> builders.Dashboard:
    """The dashboard."""
    return board(
        UID,
        "optwrap / Run",
        "One training run: its health, the steps that its optimizer skipped, and the reasons.",
        (now.now(), problems.health(), progress.progress(), progress.cost(), sources.where(), exporter.exporter()),
        variables=[
            *places("optwrap_run_health"),
            choice("run", "Run", "Name of the run", RUNS, several=False),
            choice(
                "exporter",
                "Page of",
                "The exporter whose page the link at the top opens",
                f"label_values(optwrap_processes_reporting{{{ONE}}}, instance)",
                several=False,
            ),
        ],
        page="${exporter}/?run=${run}",
        annotations=[streaks(ONE), restarts(ONE)],
    )
