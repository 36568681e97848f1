"""The dashboard *Runs*: an overview of all runs."""

from typing import Final

from grafana_foundation_sdk.builders import dashboard as builders

from deploy.grafana import run
from deploy.grafana.board import Row, board, choice, places, row
from deploy.grafana.panels import (
    COLORED,
    STEPS_PER_SECOND,
    Query,
    as_link,
    as_override,
    lines,
    number,
    rows_of,
    thresholds,
    timeline,
)
from deploy.grafana.queries import (
    ANY,
    CODE,
    LABELLED,
    MAPPING,
    NAME,
    PAGE,
    RUN,
    RUNS,
    WHERE,
    largest,
    rate,
    restarts,
    run_health,
    since,
    skipped_share,
    streaks,
    worst_exporter,
)

UID: Final = "optwrap-runs"
_WELL: Final = ("finished", "ok", "starting")
"""Healths that need no attention."""
_RUN: Final = (
    f"/d/{run.UID}?var-run=${{__data.fields.run}}&var-cluster=${{__data.fields.cluster}}"
    "&var-namespace=${__data.fields.namespace}&${datasource:queryparam}&${__url_time_range}"
)
"""The dashboard of a row's run. A label that Prometheus does not add is empty there, and selects series without it."""
_PROCESSES: Final = f"count by ({RUN}, process) (optwrap_last_report_timestamp_seconds{{{ANY}}})"


def build() -> builders.Dashboard:
    """The dashboard."""
    return board(
        UID,
        "optwrap / Runs",
        "All training runs: which of them need attention, and how they progress.",
        (_now(), _over_time()),
        variables=[*places("optwrap_run_health"), choice("run", "Run", "Names of the runs", RUNS, several=True)],
        annotations=[streaks(ANY), restarts(ANY)],
    )


def _now() -> Row:
    """The state of the runs now."""
    unhealthy = run_health(ANY) + "".join(f" != {CODE[name]}" for name in _WELL)
    return row(
        "Now",
        number(
            "Runs",
            "Runs that report, or whose trouble nobody has acknowledged. Finished runs go after 15 minutes.",
            "none",
            Query(f"count(count by ({RUN}) ({_PROCESSES}))"),
            span=4,
        ),
        number(
            "Runs with problems",
            "Runs whose health is not ok, starting or finished. The table below shows which they are.",
            "none",
            Query(f"count({unhealthy}) or vector(0)"),
            span=4,
            limits=thresholds((None, "green"), (1, "red")),
        ),
        number(
            "Processes",
            "Training processes of these runs.",
            "none",
            Query(f"count({_PROCESSES})"),
            span=4,
        ),
        number(
            "Processes by health",
            "Number of processes in each health.",
            "none",
            Query(
                f"count by (health) (max by ({RUN}, process, health) (optwrap_process_health{{{ANY}}}) == 1)",
                "{{health}}",
            ),
            span=12,
        ),
        number(
            "Open incidents by kind",
            "Incidents that are open and that nobody has acknowledged. gave_up and diverged stay open until the run is "
            "rolled back.",
            "none",
            Query(f"sum by (kind) (max by ({RUN}, kind) (optwrap_incidents_open{{{ANY}}})) > 0", "{{kind}}"),
            span=12,
        ),
        number(
            "Steps lost by reason",
            "Steps that brought training nothing: skipped, taken again after a rollback (redone), or accumulated "
            "without a gradient step (starved). Of all these runs together. A reason without any is left out.",
            "locale",
            Query(f"sum by (reason) (max by ({RUN}, reason) (optwrap_lost_steps_total{{{ANY}}})) > 0", "{{reason}}"),
            span=12,
        ),
        rows_of(
            "All runs",
            "The name of a run links its dashboard. Health is that of its worst process, or degraded if one is "
            "missing. The exporter is one that reports this health; it links the run on that exporter's page.",
            Query(worst_exporter(ANY)),
            Query(largest("optwrap_run_steps_total", ANY)),
            Query(largest("optwrap_run_gradient_steps_total", ANY)),
            Query(rate("optwrap_run_steps_total", of=ANY)),
            Query(skipped_share(ANY)),
            Query(largest("optwrap_run_accepted_not_finite_steps_total", ANY)),
            Query(since("optwrap_last_report_timestamp_seconds", ANY)),
            Query(f"count by ({RUN}) ({_PROCESSES})"),
            Query(f"sum by ({RUN}) (max by ({RUN}, kind) (optwrap_incidents_open{{{ANY}}}))"),
            Query(largest("optwrap_attempts_total", ANY)),
            Query(f"max by ({RUN}) (sum without (reason) (optwrap_lost_seconds_total{{{ANY}}}))"),
            columns=[
                ("run", "Run", ""),
                *LABELLED,
                ("Value #A", "Health", ""),
                ("Value #I", "Open incidents", "none"),
                ("Value #B", "Steps", "locale"),
                ("Value #C", "Gradient steps", "locale"),
                ("Value #D", "Steps/s", STEPS_PER_SECOND),
                ("Value #E", "Skipped", "percentunit"),
                ("Value #F", "Applied non-finite", "locale"),
                ("Value #G", "Since last report", "s"),
                ("Value #H", "Processes", "none"),
                ("Value #J", "Attempts", "none"),
                ("Value #K", "Time lost", "s"),
                *WHERE,
            ],
            sort="Health",
            span=16,
            empty="No run",
            overrides=[
                ("Health", as_override(MAPPING)),
                ("Health", COLORED),
                ("Run", as_link("Dashboard of the run", _RUN)),
                ("Exporter", as_link("Page of the run at this exporter", PAGE + "?run=${__data.fields.run}")),
            ],
        ),
        rows_of(
            "Firing alerts",
            "Alerts of these runs. The link at the top leads to the runbooks. Prometheus needs the rules for this.",
            Query(f'ALERTS{{{ANY}, alertstate="firing"}}'),
            columns=[("alertname", "Alert", ""), ("run", "Run", ""), ("severity", "Severity", ""), *LABELLED],
            sort="Alert",
            span=8,
            empty="No alert fires",
            overrides=[("Run", as_link("Dashboard of the run", _RUN))],
        ),
    )


def _over_time() -> Row:
    """The state of the runs over time."""
    return row(
        "Over time",
        timeline(
            "Health of each run",
            "Health of each run's worst process, as the exporter reports it.",
            MAPPING,
            Query(run_health(ANY), NAME),
        ),
        lines(
            "Steps by run",
            "Steps per second of each run. Shows the largest rate of its processes.",
            STEPS_PER_SECOND,
            Query(rate("optwrap_run_steps_total", of=ANY), NAME),
        ),
        lines(
            "Share of steps skipped",
            "Share of each run's steps whose gradients were discarded, for all reasons.",
            "percentunit",
            Query(skipped_share(ANY), NAME),
        ),
        lines(
            "Time lost by run",
            "Seconds per second that went into steps that were skipped, taken again after a rollback, or starved: 1 "
            "means that nothing else happens.",
            "percentunit",
            Query(
                f"max by ({RUN}) (sum without (reason) (rate(optwrap_lost_seconds_total{{{ANY}}}[$__rate_interval])))",
                NAME,
            ),
        ),
        lines(
            "Attempts by run",
            "Launches of each job so far. A line that climbs without new steps is a crash loop.",
            "short",
            Query(largest("optwrap_attempts_total", ANY), NAME),
            steps=True,
        ),
        lines(
            "Longest non-finite streak",
            "Longest streak of steps with non-finite gradients in the last 5 minutes.",
            "short",
            Query(largest("optwrap_not_finite_streak_peak", ANY), NAME),
            steps=True,
        ),
        lines(
            "Gradient norm by run",
            "Global L2 norm of the incoming gradients: the last finite norm at each scrape.",
            "short",
            Query(largest("optwrap_gradient_norm", ANY), NAME),
            log=True,
        ),
    )
