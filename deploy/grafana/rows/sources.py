"""The parameters, replicas and processes with problems."""

from typing import Final

from deploy.grafana.board import Row, row
from deploy.grafana.panels import COLORED, WIDTH, Query, as_link, as_override, rows_of
from deploy.grafana.queries import AT, LABELLED, MAPPING, PAGE, PLACE, WHERE, gained, largest, process_health

_REPLICA: Final = "replica, replica_process, device"
_PROCESS: Final = f"{PLACE}, process, {AT}"
_INFO: Final = "host, platform, device_kind, jax_version, optwrap_version"


def where() -> Row:
    """The parameters, replicas and processes with problems."""
    return row(
        "Sources",
        rows_of(
            "Non-finite parameters",
            "Steps in which a parameter's gradient had a NaN or Inf. The first ten of a run have their own name, the "
            "rest are counted as other. The exporter's page shows which was the first.",
            Query(gained("optwrap_run_parameter_not_finite_steps_total", "parameter")),
            # The series "other" always exists. Both queries drop it while it is zero.
            Query(f"{largest('optwrap_run_parameter_not_finite_steps_total', by=f'{PLACE}, parameter')} > 0"),
            columns=[
                ("parameter", "Parameter", ""),
                ("Value #A", "Steps in this time range", "locale"),
                ("Value #B", "Steps since the run began", "locale"),
                *LABELLED,
            ],
            sort="Steps since the run began",
            empty="All gradients were finite",
        ),
        rows_of(
            "Non-finite replicas",
            "Steps in which a replica of data-parallel training was the first whose own gradients, before the mean, "
            "had a NaN or Inf. A replica that repeats alone has a failing device or bad data. The first ten of a run "
            "have their own name, the rest are counted as other. Empty if the training does not use replica_flags.",
            Query(
                f"{largest('optwrap_replica_not_finite_steps_total', by=f'{PLACE}, {_REPLICA}')} > 0",
            ),
            columns=[
                ("replica", "Replica", ""),
                ("replica_process", "In process", ""),
                ("device", "Device", ""),
                ("Value", "Steps since the run began", "locale"),  # the only query's value has no letter
                *LABELLED,
            ],
            sort="Steps since the run began",
            empty="No replica was non-finite, or the training does not use replica_flags",
        ),
        rows_of(
            "Processes",
            "Processes that report, with their hosts, their health and the exporter that they report to.",
            Query(process_health(by=_PROCESS)),
            Query(largest("optwrap_process_info", by=f"{_PROCESS}, {_INFO}")),
            Query(f"time() - {largest('optwrap_last_report_timestamp_seconds', by=_PROCESS)}"),
            columns=[
                ("process", "Process", ""),
                ("Value #A", "Health", ""),
                ("Value #C", "Since last report", "s"),
                ("host", "Host", ""),
                ("device_kind", "Device", ""),
                ("platform", "Platform", ""),
                ("jax_version", "jax", ""),
                ("optwrap_version", "optwrap", ""),
                *LABELLED,
                *WHERE,
            ],
            sort="Health",
            span=WIDTH,
            overrides=[
                ("Health", as_override(MAPPING)),
                ("Health", COLORED),
                ("Exporter", as_link("Page of the run at this exporter", PAGE + "?run=${run}")),
            ],
        ),
    )
