"""The first row of the dashboard *Run*: its key figures."""

from deploy.grafana.board import Row, row
from deploy.grafana.panels import Query, number, thresholds
from deploy.grafana.queries import MAPPING, ONE, PLACE, RUN, largest, named, run_health, since


def now() -> Row:
    """The key figures."""
    return row(
        "Now",
        number(
            "Health now",
            "Health of the run's worst process, as the exporter reports it, or degraded if one of the job's processes "
            "never reported.",
            "none",
            Query(run_health()),
            mappings=[MAPPING],
        ),
        number(
            "Steps",
            "Calls of the optimizer's update in this run, over all attempts.",
            "locale",
            Query(largest("optwrap_run_steps_total")),
        ),
        number(
            "Gradient steps",
            "Steps that reached the inner optimizer. With accumulation this is at most one step in every k.",
            "locale",
            Query(largest("optwrap_run_gradient_steps_total")),
        ),
        number(
            "Skipped steps",
            "Steps whose gradients were discarded, by reason, since the run began.",
            "locale",
            named(largest("optwrap_run_skipped_steps_total", by=f"{PLACE}, reason"), "{{reason}}"),
            span=6,
        ),
        number(
            "Applied although non-finite",
            "Steps in which the inner optimizer applied a NaN or Inf. If there are any, the parameters may be "
            "damaged: see the runbook of OptwrapGaveUp.",
            "locale",
            Query(largest("optwrap_run_accepted_not_finite_steps_total")),
            limits=thresholds((None, "green"), (1, "red")),
        ),
        number(
            "Since last report",
            "Time since the last report of any process. By default a process reports every second, even without steps. "
            "It is stale after three missing reports, but not before 10 s.",
            "s",
            Query(since("optwrap_last_report_timestamp_seconds")),
            limits=thresholds((None, "green"), (10, "orange"), (60, "red")),
            decimals=0,
        ),
        number(
            "Since last gradient step",
            "Time since a report last had a new gradient step. It grows while the run is starved or stalled.",
            "s",
            Query(since("optwrap_last_gradient_step_timestamp_seconds")),
            decimals=0,
        ),
        number(
            "Attempts",
            "Launches of the job that the exporter has heard of.",
            "locale",
            Query(largest("optwrap_attempts_total")),
        ),
        number(
            "Open incidents",
            "Trouble that is not over and that nobody has acknowledged, by kind. gave_up and diverged stay open until "
            "the run is rolled back.",
            "none",
            named(largest("optwrap_incidents_open", by=f"{PLACE}, kind") + " > 0", "{{kind}}"),
            span=6,
            limits=thresholds((None, "red")),
        ),
        number(
            "Time lost",
            "Time that went into steps that brought training nothing: skipped, taken again after a rollback (redone), "
            "or accumulated without a gradient step (starved: the skipped steps of such a stretch are under skipped). "
            "A reason without any is left out.",
            "s",
            named(largest("optwrap_lost_seconds_total", by=f"{PLACE}, reason") + " > 0", "{{reason}}"),
            span=6,
        ),
        number(
            "Processes reporting",
            "Processes that report to the run's exporters, and the number of processes that the job has. An exporter "
            "of one host (--scope host) knows only those of its host.",
            "locale",
            named(f"sum by ({RUN}) (optwrap_processes_reporting{{{ONE}}})", "reporting"),
            named(largest("optwrap_processes_expected"), "of the job"),
            named(largest("optwrap_processes_missing"), "missing"),
            span=6,
        ),
    )
