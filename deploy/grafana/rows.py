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
    MAPPING,
    ONE,
    PLACE,
    RUN,
    UNWELL,
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
            Query(largest("optwrap_run_skipped_steps_total", by=f"{PLACE}, reason"), "{{reason}}"),
            span=6,
        ),
        number(
            "Applied although non-finite",
            "Steps in which the inner optimizer applied a NaN or Inf. If there are any, the parameters may be "
            "damaged: see the runbook of OptwrapGaveUp.",
            "locale",
            Query(largest("optwrap_run_accepted_not_finite_steps_total")),
            limits=thresholds((None, "green"), (1, RED)),
        ),
        number(
            "Since last report",
            "Time since the last report of any process. By default a process reports every second, even without steps. "
            "It is stale after three missing reports, but not before 10 s.",
            "s",
            Query(since("optwrap_last_report_timestamp_seconds")),
            limits=thresholds((None, "green"), (10, "orange"), (60, RED)),
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
            Query(largest("optwrap_incidents_open", by=f"{PLACE}, kind") + " > 0", "{{kind}}"),
            span=6,
            limits=thresholds((None, RED)),
        ),
        number(
            "Time lost",
            "Time that went into steps that brought training nothing: skipped, taken again after a rollback (redone), "
            "or accumulated without a gradient step (starved: the skipped steps of such a stretch are under skipped). "
            "A reason without any is left out.",
            "s",
            Query(largest("optwrap_lost_seconds_total", by=f"{PLACE}, reason") + " > 0", "{{reason}}"),
            span=6,
        ),
        number(
            "Processes reporting",
            "Processes that report to the run's exporters, and the number of processes that the job has. An exporter "
            "of one host (--scope host) knows only those of its host.",
            "locale",
            Query(f"sum by ({RUN}) (optwrap_processes_reporting{{{ONE}}})", "reporting"),
            Query(largest("optwrap_processes_expected"), "of the job"),
            Query(largest("optwrap_processes_missing"), "missing"),
            span=6,
        ),
    )


def health() -> Row:
    """Problems, their frequency, and the limits."""
    return row(
        "Problems",
        timeline(
            "Health",
            "The first band is the health of the run's worst process. Below it are the processes that are not ok or "
            "finished, at most 20.",
            MAPPING,
            Query(run_health(), "run"),
            Query(f"topk(20, {process_health(f'{ONE}, {UNWELL}')})", "process {{process}}"),
        ),
        rows_by(
            "kind",
            "Incidents that are open",
            "The newest open incident of each kind: what is wrong, where it began, and the step of the newest "
            "checkpoint that is sound. The exporter's page has all of them, and can acknowledge them.",
            Query(largest("optwrap_incident_info", by="kind, process, host, device, parameter")),
            Query(f"min by (kind) (optwrap_incident_first_step{{{ONE}}})"),
            Query(f"min by (kind) (optwrap_incident_last_clean_step{{{ONE}}})"),
            columns=[
                ("kind", "Kind", ""),
                ("Value #B", "First step", "locale"),
                ("Value #C", "Last clean step", "locale"),
                ("process", "Process", ""),
                ("host", "Host", ""),
                ("device", "Device", ""),
                ("parameter", "Parameter", ""),
            ],
            sort="Kind",
            span=24,
            empty="No incident is open",
            complete=False,
        ),
        lines(
            "Non-finite streak and limit",
            "Steps in a row whose gradients had a NaN or Inf. The guard counts its own calls; inside MultiSteps that "
            "is one in every k steps. After the limit the guard applies the next non-finite gradients, unless it has "
            'on_limit="reject". The peak also shows streaks between two scrapes.',
            "short",
            Query(largest("optwrap_not_finite_streak"), "streak", "yellow"),
            Query(largest("optwrap_not_finite_streak_peak"), "peak, last 5 min", "super-light-yellow"),
            Query(largest("optwrap_guard_not_finite_count"), "guard's count", "orange"),
            Query(largest("optwrap_guard_not_finite_limit"), "guard's limit", RED, dashed=True),
            steps=True,
        ),
        lines(
            "Skipped steps by reason",
            "Steps per second whose gradients were discarded. not_finite: NaN or Inf in the gradients. large: the norm "
            "reached its limit. other: your own skip function.",
            STEPS_PER_SECOND,
            Query(rate("optwrap_run_skipped_steps_total", "reason"), "{{reason}}"),
            stacked=True,
        ),
        lines(
            "Non-finite steps",
            "Steps per second whose incoming gradients had a NaN or Inf, with any outcome, and those that the inner "
            "optimizer applied.",
            STEPS_PER_SECOND,
            Query(rate("optwrap_run_not_finite_steps_total"), "non-finite", "yellow"),
            Query(rate("optwrap_run_accepted_not_finite_steps_total"), "applied", RED),
        ),
        lines(
            "Gradient norm and limit",
            "Global L2 norm of the incoming gradients: the last finite norm at each scrape. The exporter's page shows "
            "every step. Steps whose norm reaches the limit are skipped. With `update_norm=True` also the norm of the "
            "update that was applied.",
            "short",
            Query(largest("optwrap_gradient_norm"), "norm", "blue"),
            Query(largest("optwrap_gradient_norm_limit"), "limit", RED, dashed=True),
            Query(largest("optwrap_update_norm"), "update", "purple"),
            log=True,
        ),
        lines(
            "Scalars",
            "Numbers that the training reports with its steps, such as the loss, and injected hyperparameters: the "
            "last finite value at each scrape.",
            "short",
            Query(f"max by ({RUN}, name) (optwrap_scalar{{{ONE}}})", "{{name}}"),
        ),
        lines(
            "Adaptive guard",
            "Counts of skip_spikes: rebases, in which it took the norms that it had skipped for the new level, and "
            "steps that it would have skipped, where it only watches (`shadow=True`).",
            "short",
            Query(largest("optwrap_guard_rebases_total"), "rebases", "yellow"),
            Query(largest("optwrap_guard_would_skip_steps_total"), "would skip", "text"),
            steps=True,
        ),
    )


def progress() -> Row:
    """The progress of training."""
    return row(
        "Progress",
        lines(
            "Steps and gradient steps",
            "Steps per second, and those that reached the inner optimizer. A run with steps but without gradient "
            "steps is starved; a run without steps is stalled.",
            STEPS_PER_SECOND,
            Query(rate("optwrap_run_steps_total"), "steps", "blue"),
            Query(rate("optwrap_run_gradient_steps_total"), "gradient steps", "green"),
        ),
        lines(
            "Accumulation window",
            "Mini-steps in the current window at each scrape, and the number that makes a gradient step.",
            "short",
            Query(largest("optwrap_accumulation_mini_step"), "mini-step", "blue"),
            Query(largest("optwrap_accumulation_every_k"), "k", "text", dashed=True),
            steps=True,
        ),
        lines(
            "Lookahead",
            "Fast steps since the last synchronisation, and the number between two synchronisations.",
            "short",
            Query(largest("optwrap_lookahead_steps_since_sync"), "since synchronisation", "blue"),
            Query(largest("optwrap_lookahead_sync_period"), "period", "text", dashed=True),
            steps=True,
        ),
        lines(
            "Steps in the optimizer's state",
            "The step count in the optimizer's state. It falls when the run resumes from an older checkpoint or "
            "rolls back; the counters above do not.",
            "locale",
            Query(largest("optwrap_state_steps"), "state"),
            steps=True,
        ),
    )


def cost() -> Row:
    """What trouble has cost: the field calls it badput."""
    reasons = (
        "skipped: gradients were discarded. redone: steps that an earlier attempt had taken already. starved: "
        "accumulated steps of a stretch without a gradient step; its skipped steps are under skipped."
    )
    return row(
        "What trouble cost",
        lines(
            "Steps lost by reason",
            f"Steps so far that brought training nothing. {reasons}",
            "locale",
            Query(largest("optwrap_lost_steps_total", by=f"{PLACE}, reason") + " > 0", "{{reason}}"),
            steps=True,
        ),
        lines(
            "Share of time lost",
            f"Seconds lost in each second, by reason. {reasons}",
            "percentunit",
            Query(rate("optwrap_lost_seconds_total", f"{PLACE}, reason"), "{{reason}}"),
            stacked=True,
        ),
        lines(
            "Open incidents by kind",
            "Incidents that are open and not acknowledged.",
            "short",
            Query(largest("optwrap_incidents_open", by=f"{PLACE}, kind") + " > 0", "{{kind}}"),
            steps=True,
        ),
        lines(
            "Attempts and furthest step",
            "Launches of the job, and the furthest step of the optimizer's state. Attempts that climb while the step "
            "does not are a crash loop.",
            "short",
            Query(largest("optwrap_attempts_total"), "attempts", "purple"),
            Query(largest("optwrap_state_steps"), "step", "blue"),
            steps=True,
            log=True,
        ),
    )


def where() -> Row:
    """The parameters, replicas and processes with problems."""
    return row(
        "Sources",
        rows_by(
            "parameter",
            "Non-finite parameters",
            "Steps in which a parameter's gradient had a NaN or Inf. The first ten of a run have their own name, the "
            "rest are counted as other. The exporter's page shows which was the first.",
            Query(gained("optwrap_run_parameter_not_finite_steps_total", "parameter")),
            # The series "other" always exists. This query drops it while it is zero, and so does the join.
            Query(f"{largest('optwrap_run_parameter_not_finite_steps_total', by='parameter')} > 0"),
            columns=[
                ("parameter", "Parameter", ""),
                ("Value #A", "Steps in this time range", "locale"),
                ("Value #B", "Steps since the run began", "locale"),
            ],
            sort="Steps since the run began",
            empty="All gradients were finite",
        ),
        rows_by(
            "replica",
            "Non-finite replicas",
            "Steps in which a replica of data-parallel training was the first whose own gradients, before the mean, "
            "had a NaN or Inf. A replica that repeats alone has a failing device or bad data. The first ten of a run "
            "have their own name, the rest are counted as other. Empty if the training does not use replica_flags.",
            Query(f"{largest('optwrap_replica_not_finite_steps_total', by='replica, replica_process, device')} > 0"),
            columns=[
                ("replica", "Replica", ""),
                ("replica_process", "In process", ""),
                ("device", "Device", ""),
                ("Value", "Steps since the run began", "locale"),  # the only query's value has no letter
            ],
            sort="Steps since the run began",
            empty="No replica was non-finite, or the training does not use replica_flags",
        ),
        rows_by(
            "process",
            "Processes",
            "Processes that report, with their hosts and their health.",
            Query(process_health()),
            Query(
                largest("optwrap_process_info", by="process, host, platform, device_kind, jax_version, optwrap_version")
            ),
            Query(f"time() - {largest('optwrap_last_report_timestamp_seconds', by='process')}"),
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
    """The reports on their way to the exporter, and the exporter itself."""
    return row(
        "Reports and exporter",
        lines(
            "Dropped step records",
            "Step records per second that a training process dropped, because no exporter took them in time. Totals "
            "stay exact, but the history has gaps.",
            "suffix: records/s",
            Query(
                f"sum by ({PLACE}, kind) (rate(optwrap_run_client_dropped_total{{{ONE}}}[$__rate_interval]))",
                "{{kind}}",
            ),
            span=8,
        ),
        lines(
            "Reports by outcome",
            "Reports per second at the exporters of this run. All outcomes but accepted and duplicate were refused.",
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
            "1 while Prometheus can scrape the exporter, else 0. Training continues either way.",
            "none",
            Query('up{job="optwrap", cluster=~"$cluster", namespace=~"$namespace"}', "{{instance}}"),
            span=8,
            steps=True,
        ),
        lines(
            "Store",
            "Size of the exporters' stores, and its limit. From 90 % of the limit on the exporter drops the oldest "
            "step records.",
            "bytes",
            Query(of_this_run("optwrap_exporter_store_bytes"), "{{instance}}"),
            Query(of_this_run("optwrap_exporter_store_limit_bytes"), "{{instance}} limit", RED, dashed=True),
            span=8,
        ),
        lines(
            "Time to answer a scrape",
            "Time to answer a scrape, of the exporters that have this run.",
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
