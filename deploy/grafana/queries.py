"""PromQL that the dashboards share: health as a number, and how to aggregate over the processes of a run.

In data-parallel training every process reports the same global counts. So the rate of each process's own series comes
first, and the largest of them then. All of it asks for raw metrics, not for recorded ones, so that a dashboard works
beside a Prometheus that has not loaded the rules.
"""

from typing import Final

from grafana_foundation_sdk.models import dashboard as models

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

# A process is in exactly one state, which is 1; so this leaves one number for each.
_STATES: Final = " or ".join(
    f'(optwrap_process_health{{run="$run", health="{name}"}} == 1) * {code}' for name, code in CODE.items()
)
# No process is degraded: the run is, whose processes are well but for one that never came or is gone from /metrics.
_MISSING: Final = (
    '(max by (run) (optwrap_process_count{run="$run"}) > '
    'count by (run) (count by (run, process) (optwrap_last_report_timestamp_seconds{run="$run"})) '
    'and on (run) optwrap_process_health{run="$run", health="ok"} == 1) '
    f"* 0 + {CODE['degraded']}"
)
RUN_HEALTH: Final = f"max by (run) ({_STATES} or {_MISSING})"
PROCESS_HEALTH: Final = f"max by (process) ({_STATES})"


def largest(metric: str) -> str:
    """The largest of the run's processes; of a counter only to show it, never to take a rate of."""
    return f'max by (run) ({metric}{{run="$run"}})'


def rate(metric: str, by: str = "run") -> str:
    """Per second; over processes the largest."""
    return f'max by ({by}) (rate({metric}{{run="$run"}}[$__rate_interval]))'


def since(metric: str) -> str:
    """Seconds since the newest of the processes' time stamps."""
    return f"time() - {largest(metric)}"


def of_this_run(expr: str) -> str:
    """Only from the exporters that serve this run."""
    return f'{expr} and on (job, instance) optwrap_process_count{{run="$run"}}'


def gained(metric: str, label: str) -> str:
    """What a counter gained in the time range. increase() would miss the first value of a series that begins in it."""
    each = f'max by (process, {label}) ({metric}{{run="$run"}}'
    return f"max by ({label}) ({each}) - ({each} offset $__range) or {each}) * 0))"
