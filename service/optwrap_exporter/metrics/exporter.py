"""The metric families that describe the exporter itself."""

from typing import Final

from optwrap_exporter.metrics.metric import Metric

EXPORTER: Final[tuple[Metric, ...]] = (
    Metric(
        "optwrap_exporter_build_info",
        "info",
        "Versions of the exporter and of Python. Always 1.",
        ("version", "python"),
    ),
    Metric(
        "optwrap_exporter_reports_total",
        "counter",
        "Reports received, by outcome.",
        ("outcome",),
        note="`accepted`, `duplicate` (stored before), `invalid` (422), `unauthorized` (401), "
        "`conflict` (409), `timed_out` (408), `too_large` (413), `unsupported_media_type` (415), `busy` (429), "
        "`unavailable` (503, 500).",
    ),
    Metric("optwrap_exporter_store_bytes", "gauge", "Bytes in use in the store.", unit="bytes"),
    Metric(
        "optwrap_exporter_store_limit_bytes",
        "gauge",
        "Bytes above which the oldest step records are deleted (--retention-bytes).",
        unit="bytes",
    ),
    Metric(
        "optwrap_exporter_store_healthy",
        "gauge",
        "1 while reports are stored, 0 while the store is full, damaged, gone, or fails.",
    ),
    Metric(
        "optwrap_exporter_store_condition",
        "gauge",
        "1 for the current condition of the store, 0 for all others.",
        ("condition",),
        note="`ok`, `full`, `read_only`, `corrupt`, `io_error`, `gone` (deleted, renamed or replaced).",
    ),
    Metric(
        "optwrap_exporter_scrape_duration_seconds",
        "histogram",
        "Duration of the scrapes before this one.",
        unit="seconds",
    ),
    Metric(
        "optwrap_exporter_event_log_failures_total",
        "counter",
        "Writes of the event log that failed. The same events are written later.",
    ),
    Metric(
        "optwrap_exporter_webhook_failures_total",
        "counter",
        "Messages to the webhook that were given up.",
    ),
    Metric("optwrap_exporter_runs", "gauge", "Number of runs in the exporter."),
    Metric(
        "optwrap_exporter_hidden_runs",
        "gauge",
        "Runs without series of their own, because there are more than 1,000. Those that report are shown first.",
    ),
    Metric(
        "optwrap_exporter_capacity_used_ratio",
        "gauge",
        "Reports that arrive, as a part of those that one core could take; above 1 some are refused.",
        unit="ratio",
        note="The exporter asks processes for so many reports that this stays near 0.5.",
    ),
    Metric(
        "optwrap_exporter_health_rank",
        "gauge",
        "How bad each health is, from 0. Panels multiply with it, so that a health becomes a number.",
        ("health",),
        note="`finished` is 0, `ok` is 1, and `conflict` is the largest.",
    ),
)
