"""Problems of the run: their frequency, and the limits."""

from deploy.grafana.board import Row, row
from deploy.grafana.panels import STEPS_PER_SECOND, WIDTH, Query, as_link, lines, rows_of, timeline
from deploy.grafana.queries import (
    AT,
    LABELLED,
    MAPPING,
    ONE,
    PAGE,
    PLACE,
    RUN,
    UNWELL,
    WHERE,
    largest,
    named,
    process_health,
    rate,
    run_health,
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
            named(run_health(), "run"),
            named(f"topk(20, {process_health(f'{ONE}, {UNWELL}')})", "process {{process}}"),
        ),
        rows_of(
            "Incidents that are open",
            "The newest open incident of each kind: what is wrong, where it began, and the step of the newest "
            "checkpoint that is sound. The exporter's page has all of them, and can acknowledge them.",
            Query(largest("optwrap_incident_info", by=f"{PLACE}, kind, process, host, device, parameter, {AT}")),
            Query(f"min by ({PLACE}, kind, {AT}) (optwrap_incident_first_step{{{ONE}}})"),
            Query(f"min by ({PLACE}, kind, {AT}) (optwrap_incident_last_clean_step{{{ONE}}})"),
            columns=[
                ("kind", "Kind", ""),
                ("Value #B", "First step", "locale"),
                ("Value #C", "Last clean step", "locale"),
                ("process", "Process", ""),
                ("host", "Host", ""),
                ("device", "Device", ""),
                ("parameter", "Parameter", ""),
                *LABELLED,
                *WHERE,
            ],
            sort="Kind",
            span=WIDTH,
            empty="No incident is open",
            overrides=[("Exporter", as_link("Page of the run at this exporter", PAGE + "?run=${run}"))],
        ),
        lines(
            "Non-finite streak and limit",
            "Steps in a row whose gradients had a NaN or Inf. The guard counts its own calls; inside MultiSteps that "
            "is one in every k steps. After the limit the guard applies the next non-finite gradients, unless it has "
            'on_limit="reject". The peak also shows streaks between two scrapes.',
            "short",
            named(largest("optwrap_not_finite_streak"), "streak", "yellow"),
            named(largest("optwrap_not_finite_streak_peak"), "peak, last 5 min", "super-light-yellow"),
            named(largest("optwrap_guard_not_finite_count"), "guard's count", "orange"),
            named(largest("optwrap_guard_not_finite_limit"), "guard's limit", "red", dashed=True),
            steps=True,
        ),
        lines(
            "Skipped steps by reason",
            "Steps per second whose gradients were discarded. not_finite: NaN or Inf in the gradients. large: the norm "
            "reached its limit. other: your own skip function.",
            STEPS_PER_SECOND,
            named(rate("optwrap_run_skipped_steps_total", f"{PLACE}, reason"), "{{reason}}"),
            stacked=True,
        ),
        lines(
            "Non-finite steps",
            "Steps per second whose incoming gradients had a NaN or Inf, with any outcome, and those that the inner "
            "optimizer applied.",
            STEPS_PER_SECOND,
            named(rate("optwrap_run_not_finite_steps_total"), "non-finite", "yellow"),
            named(rate("optwrap_run_accepted_not_finite_steps_total"), "applied", "red"),
        ),
        lines(
            "Gradient norm and limit",
            "Global L2 norm of the incoming gradients: the last finite norm at each scrape. The exporter's page shows "
            "every step. Steps whose norm reaches the limit are skipped. With `update_norm=True` also the norm of the "
            "update that was applied.",
            "short",
            named(largest("optwrap_gradient_norm"), "norm", "blue"),
            named(largest("optwrap_gradient_norm_limit"), "limit", "red", dashed=True),
            named(largest("optwrap_update_norm"), "update", "purple"),
            log=True,
        ),
        lines(
            "Scalars",
            "Numbers that the training reports with its steps, such as the loss, and injected hyperparameters: the "
            "last finite value at each scrape.",
            "short",
            named(f"max by ({RUN}, name) (optwrap_scalar{{{ONE}}})", "{{name}}"),
        ),
        lines(
            "Adaptive guard",
            "Counts of skip_spikes: rebases, in which it took the norms that it had skipped for the new level, and "
            "steps that it would have skipped, where it only watches (`shadow=True`).",
            "short",
            named(largest("optwrap_guard_rebases_total"), "rebases", "yellow"),
            named(largest("optwrap_guard_would_skip_steps_total"), "would skip", "text"),
            steps=True,
        ),
    )
