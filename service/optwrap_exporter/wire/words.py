"""What a person reads for each name of the API: the one vocabulary of the page, the terminal and the docs.

`python -m optwrap_exporter.wire.words page` prints the page's vocabulary.js, with `docs` docs/reference/words.md.
"""

import json
import sys
from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

Tier = Literal["critical", "warning", "idle", "good"]


class Word(NamedTuple):
    """A name in words."""

    word: str
    meaning: str
    """One sentence without its period."""


class HealthWord(NamedTuple):
    """A health in words."""

    word: str
    meaning: str
    """One sentence without its period."""
    tier: Tier
    """How bad it is."""
    past: bool = False
    """Whether it is one event in the past ("Failed 8 min ago"); the others last ("Skipping for 8 min")."""


HEALTHS: Final[Mapping[str, HealthWord]] = {
    "conflict": HealthWord("Conflict", "Two live attempts report under this run name", "critical"),
    "diverged": HealthWord(
        "Processes disagree", "Processes of one attempt report different outcomes or norms of the same step", "critical"
    ),
    "gave_up": HealthWord(
        "Guard gave up", "The optimizer applied non-finite values, and the run was not rolled back", "critical", True
    ),
    "failed": HealthWord(
        "Failed",
        "The training ended with an exception, or its last three launches or more ended early",
        "critical",
        True,
    ),
    "stopped": HealthWord("Stopped", "The training stopped itself", "critical", True),
    "stale": HealthWord("No reports", "The process was killed, it hangs, or it cannot reach the exporter", "critical"),
    "stalled": HealthWord("Stalled", "The process reports, but it takes no steps", "critical"),
    "starved": HealthWord("Starved", "No step becomes a gradient step, so the parameters do not change", "critical"),
    "skipping": HealthWord("Skipping", "The gradients of the last steps were non-finite", "warning"),
    "starting": HealthWord(
        "Starting", "The process reports, but it has not taken a step yet; it may be compiling", "idle"
    ),
    "degraded": HealthWord("Process missing", "At least one process of the job has never reported", "warning"),
    "finished": HealthWord("Finished", "The training ended normally", "idle", True),
    "ok": HealthWord("Healthy", "Steps arrive, and their gradients are finite", "good"),
}
"""Health of a process or run, worst first."""

OUTCOMES: Final[Mapping[str, Word]] = {
    "accepted_not_finite": Word("applied although non-finite", "The optimizer applied non-finite values"),
    "skipped_not_finite": Word("skipped, non-finite", "Skipped because the gradients were non-finite"),
    "accumulated_not_finite": Word(
        "accumulated although non-finite",
        "Non-finite gradients were added to the accumulation window; the API says accumulated, and finite is false",
    ),
    "skipped_other": Word("skipped, other reason", "Skipped by the training's own skip function"),
    "skipped_large": Word("skipped, large norm", "Skipped because the gradient norm reached its limit"),
    "applied": Word("gradient step", "The optimizer changed the parameters"),
    "accumulated": Word("accumulated", "The gradients were added to the accumulation window"),
}
"""Outcome of a step, worst first."""

EVENTS: Final[Mapping[str, Word]] = {
    "skipped": Word("Skipped", "The gradients of one step were discarded"),
    "accepted_not_finite": Word("Applied although non-finite", "The optimizer applied non-finite values"),
    "streak_started": Word("Non-finite streak started", "The first of several steps in a row is non-finite"),
    "streak_ended": Word("Non-finite streak ended", "The gradients are finite again"),
    "rebased": Word("Guard rebased", "skip_spikes took the norms that it had skipped as the new level"),
    "starved": Word("Starved", "No step became a gradient step for long"),
    "stalled": Word("Stalled", "The process reports, but it takes no steps"),
    "stale": Word("Reports stopped", "The process no longer reports"),
    "started": Word("Started", "A process reported for the first time"),
    "resumed": Word("Resumed", "Training goes on from a saved or an earlier state"),
    "finished": Word("Finished", "The training ended normally"),
    "failed": Word("Failed", "The training ended with an exception"),
    "stopped": Word("Stopped", "The training stopped itself"),
    "conflict": Word("Conflict", "Two live attempts report under this run name"),
    "diverged": Word(
        "Processes disagree", "Processes of one attempt report different outcomes or norms of the same step"
    ),
    "diagnosed": Word("Diagnosed", "The training's autopsy named what made the first non-finite value of a step"),
}
"""Kind of an event."""

INCIDENTS: Final[Mapping[str, Word]] = {
    "conflict": Word("Conflict", "Two live attempts report under this run name"),
    "diverged": Word("Processes disagree", "Processes of one attempt report different outcomes or norms of a step"),
    "gave_up": Word("Guard gave up", "The optimizer applied non-finite values, and the run was not rolled back"),
    "failed": Word("Failed", "The training ended with an exception"),
    "stopped": Word("Stopped", "The training stopped itself"),
    "stale": Word("No reports", "A process no longer reports"),
    "stalled": Word("Stalled", "The processes report, but take no steps"),
    "starved": Word("Starved", "No step becomes a gradient step"),
    "skipped": Word("Bad steps", "Steps were skipped, or their gradients were non-finite"),
}
"""Kind of an incident, worst first."""

INCIDENT_STATES: Final[Mapping[str, Word]] = {
    "open": Word("Open", "The trouble lasts, or nobody has acknowledged it"),
    "closed": Word("Closed", "The trouble ended by itself"),
    "acknowledged": Word("Acknowledged", "A person has seen it; it no longer counts as trouble"),
}
"""State of an incident."""

STATES: Final[Mapping[str, Word]] = {
    "starting": Word("Starting", "No step was taken yet"),
    "running": Word("Running", "Steps are taken"),
    "finished": Word("Finished", "The training ended normally"),
    "failed": Word("Failed", "The training ended with an exception"),
    "stopped": Word("Stopped", "The training stopped itself"),
    "lost": Word("Lost", "Its processes went silent or were replaced without reporting an end"),
}
"""State of a process or an attempt."""

REASONS: Final[Mapping[str, Word]] = {
    "not_finite": Word("non-finite", "NaN or Inf in the gradients"),
    "large": Word("large norm", "The gradient norm reached its limit"),
    "other": Word("other reason", "Skipped by the training's own skip function"),
}
"""Reason of a skip."""

LOST_REASONS: Final[Mapping[str, Word]] = {
    "skipped": Word("skipped", "Steps whose gradients were discarded"),
    "redone": Word("taken again", "Steps that were taken again after a rollback or a restart"),
    # Not "starved": all steps of a starved run may be lost as skipped, and "0 starved" would deny its health.
    "starved": Word(
        "accumulated but not applied",
        "Steps of a starved run that were accumulated and never became part of a gradient step; "
        "its skipped steps count as skipped",
    ),
}
"""Reason why steps or time were lost."""

GAUGES: Final[Mapping[str, Word]] = {
    "not_finite_streak": Word("Non-finite streak", "Steps in a row with non-finite gradients, up to the last step"),
    "not_finite_streak_peak": Word("Longest streak", "The longest non-finite streak so far"),
    "guard_not_finite_count": Word("Guard count", "Non-finite calls in a row that apply_if_finite counted"),
    "guard_not_finite_limit": Word("Streak limit", "Non-finite calls in a row that apply_if_finite rejects"),
    "mini_step": Word("Mini-step", "Mini-steps in the open accumulation window"),
    "every_k": Word("Window", "Mini-steps that make one gradient step"),
    "gradient_norm": Word("Gradient norm", "Global L2 norm of the incoming gradients"),
    "gradient_norm_limit": Word("Skip limit", "Gradient norm at which a step is skipped"),
    "steps_since_sync": Word("Steps since sync", "Fast steps of lookahead since the last synchronisation"),
    "sync_period": Word("Sync period", "Fast steps of lookahead between two synchronisations"),
    "guard_rebases": Word(
        "Guard rebases", "Times that skip_spikes took the norms that it had skipped as the new level"
    ),
    "guard_would_skip_steps": Word("Would have skipped", "Steps that skip_spikes(shadow=True) took but would skip"),
    "update_norm": Word("Update norm", "Global L2 norm of the update that was applied"),
}
"""Gauge of a process or run."""

FIGURES: Final[Mapping[str, Word]] = {
    "steps": Word("Steps", "Calls of the optimizer's update, over all attempts"),
    "gradient_steps": Word("Gradient steps", "Steps in which the inner optimizer ran"),
    "not_finite_steps": Word("Non-finite steps", "Steps whose incoming gradients had a NaN or Inf"),
    "skipped": Word("Skipped", "Steps whose gradients were discarded"),
    "accepted_not_finite": Word("Applied although non-finite", "Steps in which the optimizer applied a NaN or Inf"),
    "skipped_recently": Word("Skipped lately", "Skipped steps of the last 1,000"),
    "unseen": Word("Unseen", "Steps of the optimizer's state that no stored report covers"),
    "steps_per_second": Word("Steps per second", "Rate of the last steps; a run that takes no steps has none"),
    "last_step": Word("Step", "Number of the last step, by the optimizer's own count"),
    "last_step_time": Word("Last step", "When the last step was reported"),
    "first_report": Word("First report", "When the run reported for the first time"),
    "last_report": Word("Last report", "When the run reported last"),
    "last_clean_step": Word("Last clean step", "Roll back to this step or an earlier one"),
    "norm": Word("Gradient norm", "Global L2 norm of the gradients of one step"),
    "scalars": Word("Scalars", "The loss and other numbers that the training reports"),
    "lost_steps": Word("Steps lost", "Steps lost to skips, to steps taken again after a rollback, and to starvation"),
    "lost_seconds": Word("Time lost", "Time lost to skips, to steps taken again after a rollback, and to starvation"),
    "attempts_total": Word("Attempts", "Launches of the job"),
    "process_count": Word("Processes", "Processes of the job, as the job reports it"),
    "processes": Word("Processes reporting", "Processes that report to this exporter"),
    "missing": Word("Processes missing", "Processes of the job that have not reported"),
}
"""Figure of a run."""

STORE_CONDITIONS: Final[Mapping[str, Word]] = {
    "ok": Word("healthy", "Reports are stored"),
    "full": Word("full", "No room on the disk, or within --retention-bytes"),
    "read_only": Word("read-only", "The database or its file system cannot be written"),
    "corrupt": Word("damaged", "The database is damaged, or was cut off"),
    "io_error": Word("failing", "Reading or writing failed"),
    "gone": Word("gone", "The database was deleted, renamed or replaced"),
}
"""Condition of the exporter's store."""

VOCABULARY: Final[Mapping[str, tuple[str, Mapping[str, Word] | Mapping[str, HealthWord]]]] = {
    "HEALTHS": ("Health of a process or run, worst first", HEALTHS),
    "OUTCOMES": ("Outcome of a step, worst first", OUTCOMES),
    "EVENTS": ("Kind of an event", EVENTS),
    "INCIDENTS": ("Kind of an incident, worst first", INCIDENTS),
    "INCIDENT_STATES": ("State of an incident", INCIDENT_STATES),
    "STATES": ("State of a process or an attempt", STATES),
    "REASONS": ("Reason of a skip", REASONS),
    "LOST_REASONS": ("Reason why steps or time were lost", LOST_REASONS),
    "GAUGES": ("Gauge", GAUGES),
    "FIGURES": ("Figure of a run", FIGURES),
    "STORE_CONDITIONS": ("Condition of the exporter's store", STORE_CONDITIONS),
}
"""Every group of names, with its title."""


def page() -> str:
    """The vocabulary as the page's JavaScript module."""
    parts = ["/** The words of the exporter's names: made from wire/words.py by `make generated`. */\n"]
    for name, (title, words) in VOCABULARY.items():
        rows = [f"  {key}: {{ {_fields(word)} }},\n" for key, word in words.items()]
        parts.append(f"\n/** {title}. */\nexport const {name} = {{\n{''.join(rows)}}};\n")
    return "".join(parts)


def _fields(word: Word | HealthWord) -> str:
    return ", ".join(f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in word._asdict().items())


def document() -> str:
    """The vocabulary as docs/reference/words.md."""
    lines = [
        "# Words",
        "",
        "What the page and the terminal call each name of the API. `make generated` writes this page from",
        "`service/optwrap_exporter/wire/words.py`.",
        "",
    ]
    for title, words in VOCABULARY.values():
        lines += [f"## {title}", "", "| name in the API | in words | meaning |", "|---|---|---|"]
        lines += [f"| `{key}` | {word.word} | {word.meaning} |" for key, word in words.items()]
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write({"page": page, "docs": document}[sys.argv[1]]())
