"""PromQL that the dashboards share: health as a number, and aggregation over the exporters of a run.

Counts are those of the run, not of its processes, of which there may be thousands. If several exporters have processes
of a run, each has its own count of the same steps. So a query takes the rate of each first, and then the largest rate.
Queries use raw metrics, not recorded ones, so that a dashboard also works in a Prometheus without the rules.
"""

from typing import Final

from grafana_foundation_sdk.models import dashboard as models

from deploy.grafana.board import Annotation
from deploy.grafana.panels import Query

# Worst last, in the order in which the exporter finds a run's worst process. "finished" comes first, because a run has
# finished only when all of its processes have.
HEALTH: Final = (
    ("finished", "blue"),
    ("ok", "green"),
    ("degraded", "light-yellow"),
    ("starting", "super-light-blue"),
    ("skipping", "yellow"),
    ("starved", "orange"),
    ("stalled", "dark-orange"),
    ("stale", "purple"),
    ("stopped", "super-light-red"),
    ("failed", "light-red"),
    ("gave_up", "red"),
    ("diverged", "semi-dark-red"),
    ("conflict", "dark-red"),
)
CODE: Final = {name: code for code, (name, _) in enumerate(HEALTH)}
MAPPING: Final = models.ValueMap(
    {
        str(code): models.ValueMappingResult(text=name.replace("_", " "), color=color, index=code)
        for code, (name, color) in enumerate(HEALTH)
    }
)

_PLACES: Final = 'cluster=~"$cluster", namespace=~"$namespace"'
ONE: Final = f'{_PLACES}, run="$run"'
"""Selects the run, on the dashboard of one run."""
ANY: Final = f'{_PLACES}, run=~"$run"'
"""Selects the chosen runs, on the dashboard of many runs."""
UNWELL: Final = 'health!~"ok|finished"'
"""Selects processes that are not ok."""
RUNS: Final = f"label_values(optwrap_run_health{{{_PLACES}}}, run)"
"""Lists the runs."""
RUN: Final = "cluster, namespace, run"
"""What tells runs apart: those of one name in two namespaces are two runs. Prometheus may add neither label."""
PLACE: Final = "cluster, namespace"
"""The same, where the run is chosen."""
AT: Final = "instance, pod, node"
"""Where an exporter is. Prometheus may add neither pod nor node."""
NAME: Final = "{{run}} {{namespace}} {{cluster}}"
"""The legend of a run."""
EXPORTER: Final = "{{instance}} {{pod}} {{namespace}} {{cluster}}"
"""The legend of an exporter. Two clusters may have the same address inside."""
PAGE: Final = "${page_url}${__data.fields.instance}/"
"""The page of the exporter that a row of a table is of."""
LABELLED: Final = [("namespace", "Namespace", ""), ("cluster", "Cluster", "")]
"""Columns of what tells runs apart, where Prometheus adds these labels."""
WHERE: Final = [("instance", "Exporter", ""), ("pod", "Pod", ""), ("node", "Node", "")]
"""Columns of where an exporter is."""

_RANK: Final = "on (health) group_left () max by (health) (optwrap_exporter_health_rank)"
"""Turns series by health into numbers, as in `HEALTH`."""


def named(expr: str, legend: str, color: str | None = None, *, dashed: bool = False) -> Query:
    """A query of one run. Its legend also tells runs of this name in two places apart."""
    return Query(expr, f"{legend} {{{{namespace}}}} {{{{cluster}}}}", color, dashed)


def process_health(of: str = ONE, by: str = f"{PLACE}, process") -> str:
    """The health of each process, as its number in `HEALTH`."""
    return f"max by ({by}) (optwrap_process_health{{{of}}} * {_RANK})"


def run_health(of: str = ONE, by: str = RUN) -> str:
    """The health of each run, as its number in `HEALTH`: the worst that one of its exporters reports."""
    return f"max by ({by}) ((optwrap_run_health{{{of}}} == 1) * {_RANK})"


def worst_exporter(of: str) -> str:
    """The same, with the labels of an exporter that reports it."""
    return f"topk by ({RUN}) (1, {run_health(of, f'{RUN}, {AT}')})"


def largest(metric: str, of: str = ONE, by: str = RUN) -> str:
    """The largest value of a run's processes. Show it, but do not take its rate: it jumps between processes."""
    return f"max by ({by}) ({metric}{{{of}}})"


def rate(metric: str, by: str = RUN, of: str = ONE) -> str:
    """Increase per second, the largest of the exporters or processes."""
    return f"max by ({by}) (rate({metric}{{{of}}}[$__rate_interval]))"


def skipped_share(of: str = ONE) -> str:
    """The share of steps that were skipped, for all reasons."""
    each = f"sum without (reason) (rate(optwrap_run_skipped_steps_total{{{of}}}[$__rate_interval]))"
    return f"max by ({RUN}) ({each} / (rate(optwrap_run_steps_total{{{of}}}[$__rate_interval]) > 0))"


def since(metric: str, of: str = ONE) -> str:
    """Seconds since the newest timestamp of the processes."""
    return f"time() - {largest(metric, of)}"


def of_this_run(expr: str) -> str:
    """The expression, restricted to the exporters that have this run."""
    return f"{expr} and on (cluster, namespace, job, instance) optwrap_processes_reporting{{{ONE}}}"


def gained(metric: str, label: str) -> str:
    """The increase of a counter in the time range, with the first value of a series that begins in it.

    If the counter is less than it was, the exporter has another store, and all that it counted is new. What never
    counted anything is left out.
    """
    now = f"max by ({PLACE}, {label}) ({metric}{{{ONE}}})"
    before = f"max by ({PLACE}, {label}) ({metric}{{{ONE}}} offset $__range)"
    return f"{now} - ({before} <= {now} or 0 * {now}) and {now} > 0"


def streaks(of: str) -> Annotation:
    """Marks streaks of non-finite gradients. Counter and peak also show streaks between two scrapes."""
    bad = f"increase(optwrap_run_not_finite_steps_total{{{of}}}[$__rate_interval])"
    return Annotation(
        "Streaks",
        f"max by ({RUN}) ({bad}) > 0 and {largest('optwrap_not_finite_streak_peak', of)} >= 2",
        "orange",
        "{{run}}: non-finite gradients in several steps in a row",
    )


def restarts(of: str) -> Annotation:
    """Marks when a run started, resumed, or went back to an older state."""
    # max_over_time, because a resume with a quick first step is "starting" in one scrape only.
    starting = f'max_over_time(optwrap_process_health{{{of}, health="starting"}}[$__rate_interval])'
    return Annotation(
        "Restarts",
        f"max by ({RUN}) ({starting}) > 0 "
        f"or max by ({RUN}) (resets(optwrap_state_steps{{{of}}}[$__rate_interval])) > 0",
        "blue",
        "{{run}}: started, resumed or rolled back",
    )
