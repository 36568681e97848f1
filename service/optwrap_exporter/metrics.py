"""One table of every metric. Tests check the collector, docs/reference/metrics.md, dashboards and alerts against it.

`python -m optwrap_exporter.metrics` prints docs/reference/metrics.md.
"""

import dataclasses
import sys
from types import MappingProxyType
from typing import Final, Literal

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    UnknownMetricFamily,
)

Kind = Literal["counter", "gauge", "histogram", "info", "unknown"]
Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily | InfoMetricFamily | UnknownMetricFamily

PROCESS: Final = ("run", "process")
"""The labels of everything that a training process reports."""

REASONS: Final = ("not_finite", "large", "other")
"""Why a step was skipped: `reason`."""

DROPPED: Final = ("steps", "bad_steps")
"""What a training process had to drop: `kind`."""

OUTCOMES: Final = (
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
"""What became of a report: `outcome`."""

OTHER: Final = "other"
"""`parameter` of all those that came after the first ten; and `replica`, with its process and device."""

UNKNOWN: Final = "unknown"
"""`replica_process` and `device` of a replica of which only its number is known."""


@dataclasses.dataclass(frozen=True)
class Metric:
    """One metric family."""

    name: str
    """As a query names it: a counter's ends in `_total`, an info's in `_info`."""
    type: Kind
    help: str
    labels: tuple[str, ...] = ()
    unit: str = ""
    note: str = ""
    """What the values of its labels are, for the documentation."""

    def family(self) -> Family:
        """An empty family to add samples to."""
        match self.type:
            case "counter":
                return CounterMetricFamily(self.name, self.help, labels=self.labels)
            case "gauge":
                return GaugeMetricFamily(self.name, self.help, labels=self.labels, unit=self.unit)
            case "histogram":
                return HistogramMetricFamily(self.name, self.help, labels=self.labels, unit=self.unit)
            case "info":
                return InfoMetricFamily(self.name.removesuffix("_info"), self.help, labels=self.labels)
            case "unknown":
                return UnknownMetricFamily(self.name, self.help, labels=self.labels)


def _process(name: str, type_: Kind, text: str, *labels: str, unit: str = "", note: str = "") -> Metric:
    return Metric(name, type_, text, PROCESS + labels, unit, note)


METRICS: Final[tuple[Metric, ...]] = (
    _process("optwrap_steps_total", "counter", "Calls of the optimizer's update, whatever became of them."),
    _process("optwrap_gradient_steps_total", "counter", "Calls that reached the inner optimizer."),
    _process(
        "optwrap_skipped_steps_total",
        "counter",
        "Calls whose gradients were thrown away, by reason.",
        "reason",
        note="`not_finite` (NaN or Inf in the gradients or their window), `large` (norm at the limit), `other`.",
    ),
    _process("optwrap_not_finite_steps_total", "counter", "Calls whose incoming gradients had a NaN or Inf."),
    _process(
        "optwrap_accepted_not_finite_steps_total",
        "counter",
        "Calls in which the inner optimizer consumed a NaN or Inf: the guard gave up, or there was none.",
    ),
    _process(
        "optwrap_client_dropped_total",
        "counter",
        "Step records that the training process had to drop because they could not be sent in time.",
        "kind",
        note="`steps` (all of them), `bad_steps` (those skipped or not finite).",
    ),
    _process(
        "optwrap_parameter_not_finite_steps_total",
        "counter",
        "Calls in which this parameter's gradient had a NaN or Inf.",
        "parameter",
        note="The path of each of a run's first ten that went bad; `other` for all the rest.",
    ),
    _process(
        "optwrap_replica_not_finite_steps_total",
        "counter",
        "Calls in which this replica was the first whose own gradients, before the mean, had a NaN or Inf.",
        "replica",
        "replica_process",
        "device",
        note="Its number, and the process and device (`tpu:5`) where it is or `unknown`, of each of a run's first ten; "
        "`other` for all the rest. Counted where the optimizer is given `replica_flags`.",
    ),
    _process("optwrap_not_finite_streak", "gauge", "Calls in a row, up to the last, whose gradients had a NaN or Inf."),
    _process("optwrap_not_finite_streak_peak", "gauge", "The longest such streak seen in the last 5 minutes."),
    # promtool refuses the suffix _count on anything that calls itself a gauge; the name is the one optax has.
    _process(
        "optwrap_guard_not_finite_count",
        "unknown",
        "Calls in a row that apply_if_finite has rejected, of the one nearest its limit. A gauge.",
    ),
    _process(
        "optwrap_guard_not_finite_limit",
        "gauge",
        "Calls in a row that the same apply_if_finite rejects; then it gives up, unless it was made to reject on.",
    ),
    _process("optwrap_accumulation_mini_step", "gauge", "Mini-steps taken into the open accumulation window."),
    _process("optwrap_accumulation_every_k", "gauge", "Mini-steps that make one gradient step."),
    _process("optwrap_gradient_norm", "gauge", "Global L2 norm of the incoming gradients: the last finite one."),
    _process("optwrap_gradient_norm_limit", "gauge", "Global L2 norm from which gradients are skipped as large."),
    _process("optwrap_lookahead_steps_since_sync", "gauge", "Fast steps since lookahead's last synchronisation."),
    _process("optwrap_lookahead_sync_period", "gauge", "Fast steps from one synchronisation of lookahead to the next."),
    _process(
        "optwrap_state_steps",
        "gauge",
        "Calls of update that the optimizer's state has lived, those before this run's first report included.",
    ),
    _process(
        "optwrap_last_report_timestamp_seconds",
        "gauge",
        "When the last report arrived, by the exporter's clock, since 1970.",
        unit="seconds",
    ),
    _process(
        "optwrap_last_step_timestamp_seconds",
        "gauge",
        "When a report last brought a step, by the exporter's clock, since 1970.",
        unit="seconds",
    ),
    _process(
        "optwrap_last_gradient_step_timestamp_seconds",
        "gauge",
        "When a report last brought a gradient step, by the exporter's clock, since 1970.",
        unit="seconds",
    ),
    _process(
        "optwrap_process_info",
        "info",
        "What the training process says of itself; always 1.",
        "host",
        "platform",
        "device_kind",
        "jax_version",
        "optwrap_version",
    ),
    _process("optwrap_process_count", "unknown", "Processes that the job says it has (jax.process_count()). A gauge."),
    _process(
        "optwrap_process_health",
        "gauge",
        "1 for the state of health the process is in, 0 for every other.",
        "health",
        note="`conflict`, `gave_up`, `failed`, `finished`, `stale`, `stalled`, `starved`, `skipping`, `starting`, "
        "`degraded`, `ok`: the first that holds.",
    ),
    Metric(
        "optwrap_exporter_build_info",
        "info",
        "Versions of the exporter and of its Python; always 1.",
        ("version", "python"),
    ),
    Metric(
        "optwrap_exporter_reports_total",
        "counter",
        "Reports that came in, by what became of them.",
        ("outcome",),
        note="`accepted`, `duplicate` (stored before, changed nothing), `invalid` (422), `unauthorized` (401), "
        "`conflict` (409), `timed_out` (408), `too_large` (413), `unsupported_media_type` (415), `busy` (429), "
        "`unavailable` (503, 500).",
    ),
    Metric(
        "optwrap_exporter_store_bytes", "gauge", "Bytes that the store holds; its limit is about these.", unit="bytes"
    ),
    Metric(
        "optwrap_exporter_store_limit_bytes",
        "gauge",
        "Bytes above which the oldest step records make room (--retention-bytes).",
        unit="bytes",
    ),
    Metric(
        "optwrap_exporter_scrape_duration_seconds",
        "histogram",
        "How long it took to answer /metrics, up to the scrape before this one.",
        unit="seconds",
    ),
    Metric("optwrap_exporter_runs", "gauge", "Runs that the exporter knows."),
)

BY_NAME: Final = MappingProxyType({metric.name: metric for metric in METRICS})


def document() -> str:
    """docs/reference/metrics.md."""
    lines = [
        "# Metrics",
        "",
        "What `GET /metrics` answers, in Prometheus' text format or, if asked for, OpenMetrics. Made from the table in",
        "`service/optwrap_exporter/metrics.py` by `python -m optwrap_exporter.metrics > docs/reference/metrics.md`.",
        "",
        "Only what is committed to the store is shown. A counter is there from a process's first report on, at zero,",
        "for every reason; it counts what the run reported across restarts, resumes and rollbacks, and never falls.",
        "The gauges of a process that is finished, failed or stale go after 15 minutes, its counters after one hour.",
        "",
        "In data-parallel training every process reports the same global counts. Over the processes of a run take",
        "`increase` (or `rate`) first and then `max`; never `sum`, and never a `max` of raw counters.",
        "",
    ]
    for title, chosen in (
        ("Of a training process", [metric for metric in METRICS if metric.labels[:2] == PROCESS]),
        ("Of the exporter", [metric for metric in METRICS if metric.labels[:2] != PROCESS]),
    ):
        lines += [f"## {title}", "", "| metric | type | unit | labels | what |", "|---|---|---|---|---|"]
        for metric in chosen:
            labels = ", ".join(f"`{label}`" for label in metric.labels)
            what = f"{metric.help} {metric.note}".rstrip()
            lines.append(f"| `{metric.name}` | {metric.type} | {metric.unit} | {labels} | {what} |")
        lines.append("")
    lines += [
        "The two of type `unknown` are gauges by meaning: Prometheus' linter keeps the suffix `_count` for histograms.",
        "",
        "No metric carries a label that scraping adds itself: `job`, `instance`, `cluster`, `env`, `namespace`, `pod`,",
        "`container`, `node`, `location`, `project_id`.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(document())
