"""The progress of the run, and what trouble has cost it."""

from deploy.grafana.board import Row, row
from deploy.grafana.panels import STEPS_PER_SECOND, lines
from deploy.grafana.queries import PLACE, largest, named, rate


def progress() -> Row:
    """The progress of training."""
    return row(
        "Progress",
        lines(
            "Steps and gradient steps",
            "Steps per second, and those that reached the inner optimizer. A run with steps but without gradient "
            "steps is starved; a run without steps is stalled.",
            STEPS_PER_SECOND,
            named(rate("optwrap_run_steps_total"), "steps", "blue"),
            named(rate("optwrap_run_gradient_steps_total"), "gradient steps", "green"),
        ),
        lines(
            "Accumulation window",
            "Mini-steps in the current window at each scrape, and the number that makes a gradient step.",
            "short",
            named(largest("optwrap_accumulation_mini_step"), "mini-step", "blue"),
            named(largest("optwrap_accumulation_every_k"), "k", "text", dashed=True),
            steps=True,
        ),
        lines(
            "Lookahead",
            "Fast steps since the last synchronisation, and the number between two synchronisations.",
            "short",
            named(largest("optwrap_lookahead_steps_since_sync"), "since synchronisation", "blue"),
            named(largest("optwrap_lookahead_sync_period"), "period", "text", dashed=True),
            steps=True,
        ),
        lines(
            "Steps in the optimizer's state",
            "The step count in the optimizer's state. It falls when the run resumes from an older checkpoint or "
            "rolls back; the counters above do not.",
            "locale",
            named(largest("optwrap_state_steps"), "state"),
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
            named(largest("optwrap_lost_steps_total", by=f"{PLACE}, reason") + " > 0", "{{reason}}"),
            steps=True,
        ),
        lines(
            "Share of time lost",
            f"Seconds lost in each second, by reason. {reasons}",
            "percentunit",
            named(rate("optwrap_lost_seconds_total", f"{PLACE}, reason"), "{{reason}}"),
            stacked=True,
        ),
        lines(
            "Open incidents by kind",
            "Incidents that are open and not acknowledged.",
            "short",
            named(largest("optwrap_incidents_open", by=f"{PLACE}, kind") + " > 0", "{{kind}}"),
            steps=True,
        ),
        lines(
            "Attempts and furthest step",
            "Launches of the job, and the furthest step of the optimizer's state. Attempts that climb while the step "
            "does not are a crash loop.",
            "short",
            named(largest("optwrap_attempts_total"), "attempts", "purple"),
            named(largest("optwrap_state_steps"), "step", "blue"),
            steps=True,
            log=True,
        ),
    )
