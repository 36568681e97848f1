"""Every metric of the exporter, in one table. Collector, documentation, dashboards and alerts are tested against it.

`python -m optwrap_exporter.metrics.table` prints docs/reference/metrics.md.
"""

import sys
from types import MappingProxyType
from typing import Final

from optwrap_exporter.metrics.exporter import EXPORTER
from optwrap_exporter.metrics.incidents import INCIDENTS
from optwrap_exporter.metrics.metric import Kind, Metric
from optwrap_exporter.wire.vocabulary import HEALTHS

PROCESS: Final = ("run", "process")
"""The labels of every metric of a training process."""

DROPPED: Final = ("steps", "bad_steps")
"""Values of the label `kind` of dropped step records."""

REPORT_OUTCOMES: Final = (
    "accepted",
    "duplicate",
    "invalid",
    "unauthorized",
    "conflict",
    "timed_out",
    "too_large",
    "unsupported_media_type",
    "busy",
    "unavailable",
)
"""Values of the label `outcome` of reports."""

UNKNOWN: Final = "unknown"
"""The labels `replica_process` and `device` if only the number of the replica is known."""

_HEALTHS: Final = ", ".join(f"`{health}`" for health in HEALTHS)


def _process(name: str, type_: Kind, text: str, *labels: str, unit: str = "", note: str = "") -> Metric:
    return Metric(name, type_, text, PROCESS + labels, unit, note)


def _run(name: str, text: str, *labels: str, note: str = "") -> Metric:
    return Metric(name, "counter", text, (PROCESS[0], *labels), note=note)


METRICS: Final[tuple[Metric, ...]] = (
    _process("optwrap_steps_total", "counter", "Calls of the optimizer's update (steps), whatever their outcome."),
    _process("optwrap_gradient_steps_total", "counter", "Steps in which the inner optimizer ran."),
    _process(
        "optwrap_skipped_steps_total",
        "counter",
        "Steps whose gradients were discarded, by reason.",
        "reason",
        note="`not_finite` (NaN or Inf in the gradients or their accumulation window), `large` (norm at or above the "
        "limit), `other`.",
    ),
    _process("optwrap_not_finite_steps_total", "counter", "Steps whose incoming gradients had a NaN or Inf."),
    _process(
        "optwrap_accepted_not_finite_steps_total",
        "counter",
        "Steps in which the inner optimizer consumed a NaN or Inf: the guard gave up, or there was no guard.",
    ),
    _process(
        "optwrap_client_dropped_total",
        "counter",
        "Step records that the training process dropped because it could not send them in time.",
        "kind",
        note="`steps` (good steps), `bad_steps` (steps that were skipped or non-finite).",
    ),
    _process(
        "optwrap_parameter_not_finite_steps_total",
        "counter",
        "Steps in which this parameter's gradient had a NaN or Inf.",
        "parameter",
        note="The paths of the first ten parameters of a run to become non-finite; `other` sums up the rest.",
    ),
    _process(
        "optwrap_replica_not_finite_steps_total",
        "counter",
        "Steps in which this replica was the first whose own gradients, before the mean, had a NaN or Inf.",
        "replica",
        "replica_process",
        "device",
        note="The number, process and device (`tpu:5`) of the first ten replicas of a run; `unknown` for a process or "
        "device that is unknown; `other` sums up the rest. Counted if the optimizer is given `replica_flags`.",
    ),
    _process(
        "optwrap_not_finite_streak", "gauge", "Steps in a row, up to the last one, whose gradients had a NaN or Inf."
    ),
    _process(
        "optwrap_not_finite_streak_peak",
        "gauge",
        "The longest streak of steps with a NaN or Inf in the last 5 minutes.",
    ),
    # promtool rejects a gauge whose name ends in _count. The name is optax's.
    _process(
        "optwrap_guard_not_finite_count",
        "unknown",
        "Steps in a row that apply_if_finite has rejected. Of several wrappers, the one nearest its limit. A gauge.",
    ),
    _process(
        "optwrap_guard_not_finite_limit",
        "gauge",
        "Steps in a row that this apply_if_finite rejects before it gives up and accepts.",
    ),
    _process("optwrap_accumulation_mini_step", "gauge", "Mini-steps in the open accumulation window."),
    _process("optwrap_accumulation_every_k", "gauge", "Mini-steps per gradient step."),
    _process("optwrap_gradient_norm", "gauge", "The last finite global L2 norm of the incoming gradients."),
    _process("optwrap_update_norm", "gauge", "The last finite global L2 norm of an update that was applied."),
    _process(
        "optwrap_scalar", "gauge", "The last finite value of a scalar, such as `loss` (at most 16 names).", "name"
    ),
    _process("optwrap_gradient_norm_limit", "gauge", "The global L2 norm at which gradients are skipped as large."),
    _process(
        "optwrap_guard_rebases_total",
        "counter",
        "Times that skip_spikes took the norms that it had skipped as the new level. Counted in the optimizer's state.",
    ),
    _process(
        "optwrap_guard_would_skip_steps_total",
        "counter",
        "Steps that a skip_spikes with shadow=True took but would have skipped. Counted in the optimizer's state.",
    ),
    _process("optwrap_lookahead_steps_since_sync", "gauge", "Fast steps since the last synchronisation of lookahead."),
    _process("optwrap_lookahead_sync_period", "gauge", "Fast steps between two synchronisations of lookahead."),
    _process(
        "optwrap_state_steps",
        "gauge",
        "Steps counted in the optimizer's state, including those before the first report. Falls after a rollback.",
    ),
    _process(
        "optwrap_last_report_timestamp_seconds",
        "gauge",
        "Time of the last report, by the exporter's clock.",
        unit="seconds",
    ),
    _process(
        "optwrap_last_step_timestamp_seconds",
        "gauge",
        "Time of the last report with a step, by the exporter's clock.",
        unit="seconds",
    ),
    _process(
        "optwrap_last_gradient_step_timestamp_seconds",
        "gauge",
        "Time of the last report with a gradient step, by the exporter's clock.",
        unit="seconds",
    ),
    _process(
        "optwrap_process_info",
        "info",
        "Host, devices and versions of the training process. Always 1.",
        "host",
        "platform",
        "device_kind",
        "jax_version",
        "optwrap_version",
    ),
    _process(
        "optwrap_lost_steps_total",
        "counter",
        "Steps that brought nothing, by reason.",
        "reason",
        note="`skipped` (the gradients were discarded), `redone` (taken again after a rollback), `starved` "
        "(accumulated, but never part of a gradient step).",
    ),
    _process(
        "optwrap_lost_seconds_total",
        "counter",
        "Time that these steps took, by the process's own seconds per step.",
        "reason",
        unit="seconds",
        note="As for `optwrap_lost_steps_total`.",
    ),
    _process("optwrap_process_count", "unknown", "Number of processes of the job, from jax.process_count(). A gauge."),
    _process(
        "optwrap_process_health",
        "gauge",
        "1 for the current health of the process. The other healths have no series.",
        "health",
        note=f"{_HEALTHS}. Of several that hold, the first one is shown.",
    ),
    _run("optwrap_run_steps_total", "Steps of the run, whatever their outcome."),
    _run("optwrap_run_gradient_steps_total", "Steps of the run in which the inner optimizer ran."),
    _run(
        "optwrap_run_skipped_steps_total",
        "Steps of the run whose gradients were discarded, by reason.",
        "reason",
        note="As for `optwrap_skipped_steps_total`.",
    ),
    _run("optwrap_run_not_finite_steps_total", "Steps of the run whose incoming gradients had a NaN or Inf."),
    _run(
        "optwrap_run_accepted_not_finite_steps_total",
        "Steps of the run in which the inner optimizer consumed a NaN or Inf.",
    ),
    _run(
        "optwrap_run_parameter_not_finite_steps_total",
        "Steps of the run in which this parameter's gradient had a NaN or Inf.",
        "parameter",
        note="As for `optwrap_parameter_not_finite_steps_total`.",
    ),
    _run(
        "optwrap_run_client_dropped_total",
        "Step records that all processes of the run together dropped because they could not send them in time.",
        "kind",
        note="As for `optwrap_client_dropped_total`.",
    ),
    _run(
        "optwrap_attempts_total",
        "Launches of the run. Processes whose launch is unknown count by the one with the most.",
    ),
    Metric(
        "optwrap_run_health",
        "gauge",
        "1 for the current health of the run, by the processes that this exporter knows; 0 for all other healths.",
        ("run", "health"),
        note="As for `optwrap_process_health`. With `--scope job` an exporter that knows only a part of the processes "
        "reports `degraded`. `failed` also while the next launch of a crash loop runs.",
    ),
    Metric("optwrap_processes_expected", "gauge", "Number of processes of the job, as the job reports it.", ("run",)),
    Metric(
        "optwrap_processes_reporting",
        "gauge",
        "Number of processes that report to this exporter or have finished: not failed, stopped or stale.",
        ("run",),
    ),
    Metric(
        "optwrap_processes_missing",
        "gauge",
        "Number of processes of the job that have not reported. Only with `--scope job`.",
        ("run",),
    ),
    *INCIDENTS,
    *EXPORTER,
)

BY_NAME: Final = MappingProxyType({metric.name: metric for metric in METRICS})


def document() -> str:
    """The text of docs/reference/metrics.md."""
    lines = [
        "# Metrics",
        "",
        "The metrics of `GET /metrics`, in Prometheus' text format or OpenMetrics. `python -m",
        "optwrap_exporter.metrics.table > docs/reference/metrics.md` writes this page.",
        "",
        "A scrape shows only what is committed to the store. Every counter of a process starts at zero with its first",
        "report. It counts across restarts, resumes and rollbacks, and does not fall as long as the store exists.",
        "",
        "The gauges of a finished process disappear after 15 minutes, its counters after one hour. A process that is",
        "failed, stopped or stale keeps its series, so that its alert holds, until it reports again, its incident is",
        "acknowledged, or its run is deleted. Once its incident is acknowledged its gauges go at once, its counters an",
        "hour after its last report. If the run goes on without it in a new launch, its series go as those of a",
        "finished one.",
        "",
        "In data-parallel training every process reports the same global counts. The counters `optwrap_run_*` have",
        "them once for a run: in each attempt, those of the process with the most. If several exporters have processes",
        "of a run, take `increase` (or `rate`) first and then `max` over the exporters; only dropped records are",
        "summed up. To aggregate over the counters of processes, take `increase` first and then `max`, too.",
        "",
        "A pod that is recreated with a new store counts from zero, and then the maximum has only the pod that counted",
        "most: see [Operating](../guides/operating.md#what-totals-mean-when-a-pod-is-recreated) for totals over all",
        "pods.",
        "",
        "What trouble cost a process: `skipped` has every skipped step, whatever the health; `redone` every other step",
        "that it takes again after a rollback, when it takes it again; `starved` the accumulated steps between two",
        "gradient steps if it was `starved` in between. The seconds of a step are the median of the process's last",
        "reports when the step is counted. Every process of a job loses the same steps, so take the maximum over",
        "processes, as for the other counters.",
        "",
    ]
    runs = [metric for metric in METRICS if metric.labels[:1] == PROCESS[:1] and metric.labels[:2] != PROCESS]
    for title, chosen in (
        ("Metrics of a training process", [metric for metric in METRICS if metric.labels[:2] == PROCESS]),
        ("Metrics of a run", runs),
        ("Metrics of the exporter", [metric for metric in METRICS if metric.labels[:1] != PROCESS[:1]]),
    ):
        lines += [f"## {title}", "", "| metric | type | unit | labels | meaning |", "|---|---|---|---|---|"]
        for metric in chosen:
            labels = ", ".join(f"`{label}`" for label in metric.labels)
            what = f"{metric.help} {metric.note}".rstrip()
            lines.append(f"| `{metric.name}` | {metric.type} | {metric.unit} | {labels} | {what} |")
        lines.append("")
    lines += [
        "The two metrics of type `unknown` are gauges. Prometheus' linter reserves the suffix `_count` for histograms.",
        "",
        "No metric has a label that scraping adds: `job`, `instance`, `cluster`, `env`, `namespace`, `pod`,",
        "`container`, `node`, `location`, `project_id`.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(document())
