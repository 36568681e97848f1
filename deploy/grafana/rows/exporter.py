"""The reports of the run on their way to the exporter, and the exporter itself."""

from deploy.grafana.board import Row, row
from deploy.grafana.panels import Query, lines
from deploy.grafana.queries import EXPORTER, ONE, PLACE, named, of_this_run


def exporter() -> Row:
    """The reports on their way to the exporter, and the exporter itself."""
    return row(
        "Reports and exporter",
        lines(
            "Dropped step records",
            "Step records per second that a training process dropped, because no exporter took them in time. Totals "
            "stay exact, but the history has gaps.",
            "suffix: records/s",
            named(
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
            Query('up{job="optwrap", cluster=~"$cluster", namespace=~"$namespace"}', EXPORTER),
            span=8,
            steps=True,
        ),
        lines(
            "Store",
            "Size of the exporters' stores, and its limit. From 90 % of the limit on the exporter drops the oldest "
            "step records.",
            "bytes",
            Query(of_this_run("optwrap_exporter_store_bytes"), EXPORTER),
            Query(of_this_run("optwrap_exporter_store_limit_bytes"), f"{EXPORTER} limit", "red", dashed=True),
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
            Query(of_this_run("optwrap_exporter_runs"), EXPORTER),
            Query(
                f"count by (version) ({of_this_run('optwrap_exporter_build_info')})",
                "exporters of version {{version}}",
            ),
            span=8,
            steps=True,
        ),
    )
