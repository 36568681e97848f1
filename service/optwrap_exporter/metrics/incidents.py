"""The metrics of a run's incidents: their families, and their samples.

Alerts fire as long as `optwrap_incidents_open` says so. The others are for their texts: of the newest open incident of
a kind they say where, who and how far to go back. So a run has at most one series of each for each kind.
"""

from collections.abc import Iterable
from typing import Final, Protocol

from optwrap_exporter.ledger.state.incident import IncidentRecord
from optwrap_exporter.metrics.metric import Metric
from optwrap_exporter.wire.vocabulary import INCIDENT_KINDS

INCIDENTS: Final[tuple[Metric, ...]] = (
    Metric(
        "optwrap_incidents_open",
        "gauge",
        "Incidents of the run that are open: not over, and not acknowledged.",
        ("run", "kind"),
        note=", ".join(f"`{kind}`" for kind in INCIDENT_KINDS) + ".",
    ),
    Metric(
        "optwrap_incident_info",
        "info",
        "The newest open incident of each kind: its first process and that one's host and device, and the first "
        "parameter that was non-finite. Empty where it has none. Always 1.",
        ("run", "kind", "process", "host", "device", "parameter"),
    ),
    Metric(
        "optwrap_incident_first_step",
        "gauge",
        "The first step of the newest open incident of each kind.",
        ("run", "kind"),
        note="As for `optwrap_incidents_open`.",
    ),
    Metric(
        "optwrap_incident_last_clean_step",
        "gauge",
        "Roll back to this step or an earlier one, by the newest open incident of each kind.",
        ("run", "kind"),
        note="As for `optwrap_incidents_open`.",
    ),
)


class Add(Protocol):
    """Takes one sample."""

    def __call__(self, name: str, value: float, *labels: str) -> None:
        """Add a sample of the metric `name`. `labels` are those after `run`."""


def of_incidents(incidents: Iterable[IncidentRecord], add: Add) -> None:
    """Add every sample of a run's incidents.

    Args:
      incidents: those that are live, by id.
      add: takes the samples.
    """
    still_open = [one for one in incidents if one.state == "open"]
    for kind in INCIDENT_KINDS:
        found = [one for one in still_open if one.kind == kind]
        add("optwrap_incidents_open", len(found), kind)
        if not found:
            continue
        newest = found[-1]
        # Of a kind that is a condition, those for which it holds still.
        processes = newest.active or newest.processes
        first = str(processes[0][0]) if processes else ""
        add("optwrap_incident_info", 1, kind, first, newest.host or "", newest.device or "", newest.parameter or "")
        if newest.first_step is not None:
            add("optwrap_incident_first_step", newest.first_step, kind)
        if newest.last_clean_step is not None:
            add("optwrap_incident_last_clean_step", newest.last_clean_step, kind)
