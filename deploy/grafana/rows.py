"""The rows of the dashboard *Run*."""

from typing import Final

from deploy.grafana.board import Row, row
from deploy.grafana.panels import (
    COLORED,
    STEPS_PER_SECOND,
    Query,
    as_override,
    lines,
    number,
    rows_by,
    thresholds,
    timeline,
)
from deploy.grafana.queries import (
    CODE,
    MAPPING,
    gained,
    largest,
    of_this_run,
    process_health,
    rate,
    run_health,
    since,
)

RED: Final = "red"


def now() -> Row:
    """The figures that answer whether all is well."""
    return row(
        "Now",
        number(
            "Health now",
            "The worst of the run's processes, as the exporter judges them; degraded where one of the job's processes "
            "never reported.",
            "none",
            Query(run_health()),
            mappings=[MAPPING],
        ),
        number(
            "Steps",
            "Calls of the optimizer's update that the exporter has counted for the run, over all its restarts.",
            "locale",
            Query(largest("optwrap_steps_total")),
        ),
        number(
            "Gradient steps",
            "Of those, the ones that reached the inner optimizer: with accumulation one in every k at most.",
            "locale",
            Query(largest("optwrap_gradient_steps_total")),
        ),
        number(
            "Skipped steps",
            "Calls whose gradients were thrown away, by reason, since the run began.",
            "locale",
            Query('max by (reason) (optwrap_skipped_steps_total{run="$run"})', "{{reason}}"),
            span=6,
        ),
        number(
            "Let through not finite",
            "Calls in which the inner optimizer consumed a NaN or Inf. Above zero the parameters are suspect: see the "
            "runbook of OptwrapGaveUp.",
            "locale",
            Query(largest("optwrap_accepted_not_finite_steps_total")),
            limits=thresholds((None, "green"), (1, RED)),
        ),
        number(
            "Since last report",
            "How long ago the process heard of last reported. A report comes every second, steps or none; after three "
            "missing ones, ten seconds at least, a process is stale.",
            "s",
            Query(since("optwrap_last_report_timestamp_seconds")),
            limits=thresholds((None, "green"), (10, "orange"), (60, RED)),
            decimals=0,
        ),
        number(
            "Since last gradient step",
            "How long ago a report last brought a gradient step. It grows while the optimizer starves or a step hangs.",
            "s",
            Query(since("optwrap_last_gradient_step_timestamp_seconds")),
            decimals=0,
        ),
    )


def health() -> Row:
    """What went wrong, how often, and how near the limit."""
    return row(
        "What goes wrong",
        timeline(
            "Health",
            "The run's band shows the worst of its processes. Below it, whichever processes are neither ok nor "
            "finished, twenty at most.",
            MAPPING,
            Query(run_health(), "run"),
            Query(f"topk(20, {process_health()} > {CODE['ok']})", "process {{process}}"),
        ),
        lines(
            "Not-finite streak and limit",
            "Calls in a row whose gradients had a NaN or Inf. The guard counts in its own calls (inside MultiSteps "
            "one in every k); at its limit the next bad one goes into the parameters, unless it was made to reject on. "
            "The peak shows streaks that came and went between two scrapes.",
            "short",
            Query(largest("optwrap_not_finite_streak"), "streak", "yellow"),
            Query(largest("optwrap_not_finite_streak_peak"), "peak, last 5 min", "super-light-yellow"),
            Query(largest("optwrap_guard_not_finite_count"), "guard's count", "orange"),
            Query(largest("optwrap_guard_not_finite_limit"), "guard's limit", RED, dashed=True),
            steps=True,
        ),
        lines(
            "Skipped steps by reason",
            "Steps a second whose gradients were thrown away. not_finite: NaN or Inf in them; large: norm at the "
            "limit; other: a skip function of your own.",
            STEPS_PER_SECOND,
            Query(rate("optwrap_skipped_steps_total", "reason"), "{{reason}}"),
            stacked=True,
        ),
        lines(
            "Steps that were not finite",
            "Steps a second whose incoming gradients had a NaN or Inf, whatever became of them, and those that the "
            "inner optimizer consumed.",
            STEPS_PER_SECOND,
            Query(rate("optwrap_not_finite_steps_total"), "not finite", "yellow"),
            Query(rate("optwrap_accepted_not_finite_steps_total"), "let through", RED),
        ),
        lines(
            "Gradient norm and limit",
            "Global L2 norm of the incoming gradients, the last finite one at each scrape; the exporter's page has "
            "every step. From the limit on a step is skipped as large.",
            "short",
            Query(largest("optwrap_gradient_norm"), "norm", "blue"),
            Query(largest("optwrap_gradient_norm_limit"), "limit", RED, dashed=True),
            log=True,
        ),
    )


def progress() -> Row:
    """Whether the training moves."""
    return row(
        "Progress",
        lines(
            "Steps and gradient steps",
            "Steps a second, and those that reached the inner optimizer. Steps without gradient steps are starvation; "
            "neither is a stall.",
            STEPS_PER_SECOND,
            Query(rate("optwrap_steps_total"), "steps", "blue"),
            Query(rate("optwrap_gradient_steps_total"), "gradient steps", "green"),
        ),
        lines(
            "Accumulation window",
            "Mini-steps taken into the open window, at each scrape, and how many make a gradient step.",
            "short",
            Query(largest("optwrap_accumulation_mini_step"), "mini-step", "blue"),
            Query(largest("optwrap_accumulation_every_k"), "k", "text", dashed=True),
            steps=True,
        ),
        lines(
            "Lookahead",
            "Fast steps since the last synchronisation, and how many lie between two.",
            "short",
            Query(largest("optwrap_lookahead_steps_since_sync"), "since synchronisation", "blue"),
            Query(largest("optwrap_lookahead_sync_period"), "period", "text", dashed=True),
            steps=True,
        ),
        lines(
            "Steps the optimizer's state has lived",
            "It falls when the run resumes from an older checkpoint or rolls back; the counters above do not.",
            "locale",
            Query(largest("optwrap_state_steps"), "state"),
            steps=True,
        ),
    )


def where() -> Row:
    """Which parameter, which replica, and which process."""
    return row(
        "Where",
        rows_by(
            "parameter",
            "Parameters that went bad",
            "Steps in which a parameter's gradient had a NaN or Inf. The first ten of a run to go bad keep their "
            "name, the rest count as other. Which went bad first is on the exporter's page.",
            Query(gained("optwrap_parameter_not_finite_steps_total", "parameter")),
            # "other" is there from the start, at zero; the join leaves out what is not here.
            Query('max by (parameter) (optwrap_parameter_not_finite_steps_total{run="$run"}) > 0'),
            columns=[
                ("parameter", "Parameter", ""),
                ("Value #A", "Steps in this time range", "locale"),
                ("Value #B", "Steps since the run began", "locale"),
            ],
            sort="Steps since the run began",
            empty="No parameter went bad",
        ),
        rows_by(
            "replica",
            "Replicas that went bad",
            "Steps in which a replica of data-parallel training was the first whose own gradients, before the mean, "
            "had a NaN or Inf, and where it is. One alone, again and again, is a failing device or a bad part of the "
            "data. The first ten of a run keep their name, the rest count as other. Empty where the training does not "
            "ask.",
            Query('max by (replica, replica_process, device) (optwrap_replica_not_finite_steps_total{run="$run"}) > 0'),
            columns=[
                ("replica", "Replica", ""),
                ("replica_process", "In process", ""),
                ("device", "Device", ""),
                ("Value", "Steps since the run began", "locale"),  # the only query's value has no letter
            ],
            sort="Steps since the run began",
            empty="No replica went bad, or the training does not ask",
        ),
        rows_by(
            "process",
            "Processes",
            "Who reports, from where, and how it is.",
            Query(process_health()),
            Query(
                "max by (process, host, platform, device_kind, jax_version, optwrap_version) "
                '(optwrap_process_info{run="$run"})'
            ),
            Query('time() - max by (process) (optwrap_last_report_timestamp_seconds{run="$run"})'),
            columns=[
                ("process", "Process", ""),
                ("Value #A", "Health", ""),
                ("Value #C", "Since last report", "s"),
                ("host", "Host", ""),
                ("device_kind", "Device", ""),
                ("platform", "Platform", ""),
                ("jax_version", "jax", ""),
                ("optwrap_version", "optwrap", ""),
            ],
            sort="Health",
            overrides=[("Health", as_override(MAPPING)), ("Health", COLORED)],
        ),
    )


def exporter() -> Row:
    """Whether what the other panels show is all there was."""
    return row(
        "The way here",
        lines(
            "Client drops",
            "Step records a second that a training process had to drop because they were not taken in time. Counters "
            "do not suffer, the history does.",
            "suffix: records/s",
            Query(rate("optwrap_client_dropped_total", "kind"), "{{kind}}"),
            span=8,
        ),
        lines(
            "Reports by outcome",
            "Reports a second that came in at the exporters of this run. Anything but accepted and duplicate was "
            "refused.",
            "suffix: reports/s",
            Query(
                f"sum by (outcome) ({of_this_run('rate(optwrap_exporter_reports_total[$__rate_interval])')})",
                "{{outcome}}",
            ),
            span=8,
            stacked=True,
        ),
        lines(
            "Exporters up",
            "1 while Prometheus can scrape an exporter. While it is 0 training goes on, unwatched.",
            "none",
            Query('up{job="optwrap"}', "{{instance}}"),
            span=8,
            steps=True,
        ),
        lines(
            "Store",
            "Size of the exporters' stores, and its limit. From nine tenths of that on the oldest step records go.",
            "bytes",
            Query(of_this_run("optwrap_exporter_store_bytes"), "{{instance}}"),
            Query(of_this_run("optwrap_exporter_store_limit_bytes"), "{{instance}} limit", RED, dashed=True),
            span=8,
        ),
        lines(
            "Time to answer a scrape",
            "Of the exporters that serve this run.",
            "s",
            Query(
                "histogram_quantile(0.9, sum by (le) "
                f"({of_this_run('rate(optwrap_exporter_scrape_duration_seconds_bucket[$__rate_interval])')}))",
                "9 of 10 within",
            ),
            span=8,
        ),
        lines(
            "Runs",
            "Runs that each exporter knows.",
            "short",
            Query(of_this_run("optwrap_exporter_runs"), "{{instance}}"),
            Query(
                f"count by (version) ({of_this_run('optwrap_exporter_build_info')})",
                "exporters of version {{version}}",
            ),
            span=8,
            steps=True,
        ),
    )
