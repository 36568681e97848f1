"""PromQL that the dashboards share: health as a number, and how to aggregate over the processes of a run.

In data-parallel training every process reports the same global counts. So the rate of each process's own series comes
first, and the largest of them then. All of it asks for raw metrics, not for recorded ones, so that a dashboard works
beside a Prometheus that has not loaded the rules.
"""

from typing import Final

from grafana_foundation_sdk.models import dashboard as models

from deploy.grafana.board import Annotation

# Worst last: the order by which the exporter finds a run's worst process. "finished" is below all the others, because a
# run has finished only when all of its processes have.
HEALTH: Final = (
    ("finished", "blue"),
    ("ok", "green"),
    ("degraded", "light-yellow"),
    ("starting", "super-light-blue"),
    ("skipping", "yellow"),
    ("starved", "orange"),
    ("stalled", "dark-orange"),
    ("stale", "purple"),
    ("failed", "light-red"),
    ("gave_up", "red"),
    ("conflict", "dark-red"),
)
CODE: Final = {name: code for code, (name, _) in enumerate(HEALTH)}
MAPPING: Final = models.ValueMap(
    {
        str(code): models.ValueMappingResult(text=name.replace("_", " "), color=color, index=code)
        for code, (name, color) in enumerate(HEALTH)
    }
)

ONE: Final = 'run="$run"'
"""Selects the run of a dashboard on one run."""
ANY: Final = 'run=~"$run"'
"""Selects the chosen runs of a dashboard on many."""
RUNS: Final = "label_values(optwrap_steps_total, run)"
"""Lists the runs."""


def _states(of: str) -> str:
    # A process is in exactly one state, which is 1; so this leaves one number for each.
    return " or ".join(
        f'(optwrap_process_health{{{of}, health="{name}"}} == 1) * {code}' for name, code in CODE.items()
    )


def process_health(of: str = ONE) -> str:
    """The health of each process, as its number in `HEALTH`."""
    return f"max by (process) ({_states(of)})"


def run_health(of: str = ONE) -> str:
    """The health of each run: of its worst process, or degraded.

    No process is degraded: the run is, whose processes are well but for one that never came or is gone from /metrics.
    """
    missing = (
        f"(max by (run) (optwrap_process_count{{{of}}}) > "
        f"count by (run) (count by (run, process) (optwrap_last_report_timestamp_seconds{{{of}}})) "
        f'and on (run) optwrap_process_health{{{of}, health="ok"}} == 1) '
        f"* 0 + {CODE['degraded']}"
    )
    return f"max by (run) ({_states(of)} or {missing})"


def largest(metric: str, of: str = ONE) -> str:
    """The largest of a run's processes; of a counter only to show it, never to take a rate of."""
    return f"max by (run) ({metric}{{{of}}})"


def rate(metric: str, by: str = "run", of: str = ONE) -> str:
    """Per second; over processes the largest."""
    return f"max by ({by}) (rate({metric}{{{of}}}[$__rate_interval]))"


def skipped_share(of: str = ONE) -> str:
    """Which share of the steps was skipped, whatever the reason."""
    each = f"sum without (reason) (rate(optwrap_skipped_steps_total{{{of}}}[$__rate_interval]))"
    return f"max by (run) ({each} / (rate(optwrap_steps_total{{{of}}}[$__rate_interval]) > 0))"


def since(metric: str, of: str = ONE) -> str:
    """Seconds since the newest of the processes' time stamps."""
    return f"time() - {largest(metric, of)}"


def of_this_run(expr: str) -> str:
    """Only from the exporters that serve this run."""
    return f'{expr} and on (job, instance) optwrap_process_count{{run="$run"}}'


def gained(metric: str, label: str) -> str:
    """What a counter gained in the time range. increase() would miss the first value of a series that begins in it."""
    each = f'max by (process, {label}) ({metric}{{run="$run"}}'
    return f"max by ({label}) ({each}) - ({each} offset $__range) or {each}) * 0))"


def streaks(of: str) -> Annotation:
    """When gradients were not finite several times in a row. Counter and peak miss nothing between two scrapes."""
    bad = f"increase(optwrap_not_finite_steps_total{{{of}}}[$__rate_interval])"
    return Annotation(
        "Streaks",
        f"max by (run) ({bad}) > 0 and {largest('optwrap_not_finite_streak_peak', of)} >= 2",
        "orange",
        "{{run}}: gradients that were not finite, several steps in a row",
    )


def restarts(of: str) -> Annotation:
    """When a run started, was resumed, or went back to an older state."""
    # Over the interval: a resume whose first step comes at once is seen as starting by one scrape only.
    starting = f'max_over_time(optwrap_process_health{{{of}, health="starting"}}[$__rate_interval])'
    return Annotation(
        "Restarts",
        f"max by (run) ({starting}) > 0 or max by (run) (resets(optwrap_state_steps{{{of}}}[$__rate_interval])) > 0",
        "blue",
        "{{run}}: started, resumed or rolled back",
    )
