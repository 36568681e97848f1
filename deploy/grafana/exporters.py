"""The dashboard *Exporters*: their own health."""

from typing import Final

from grafana_foundation_sdk.builders import dashboard as builders

from deploy.grafana.board import Addresses, Row, board, choice, row
from deploy.grafana.panels import WIDTH, Query, lines, number, rows_by, thresholds

UID: Final = "optwrap-exporters"
_JOB: Final = 'job="optwrap"'
_OF: Final = 'instance=~"$instance"'
_TAKEN: Final = 'outcome=~"accepted|duplicate"'
_REFUSED: Final = 'outcome!~"accepted|duplicate"'


def build(addresses: Addresses) -> builders.Dashboard:
    """The dashboard, with links that lead to `addresses`."""
    return board(
        UID,
        "optwrap / Exporters",
        "The exporters themselves: whether they are there, what they take and refuse, and how full their stores are.",
        (_now(), _reports(), _store()),
        variables=[
            choice(
                "instance",
                "Exporter",
                "Address at which Prometheus scrapes it",
                f"label_values(up{{{_JOB}}}, instance)",
                several=True,
            )
        ],
        page="",
        addresses=addresses,
    )


def _rate(metric: str, matchers: str = _OF) -> str:
    return f"rate({metric}{{{matchers}}}[$__rate_interval])"


def _filled() -> str:
    """How full the stores that have a limit are."""
    limit = f"(optwrap_exporter_store_limit_bytes{{{_OF}}} > 0)"
    return f"max by (instance) (optwrap_exporter_store_bytes{{{_OF}}} / {limit})"


def _now() -> Row:
    """Which exporters there are."""
    return row(
        "Now",
        number(
            "Exporters that answer",
            "Those that Prometheus can scrape now.",
            "none",
            Query(f"sum(up{{{_JOB}, {_OF}}})"),
            span=4,
        ),
        number(
            "Exporters that do not",
            "Training goes on without them, unwatched: see the runbook of OptwrapExporterDown.",
            "none",
            Query(f"count(up{{{_JOB}, {_OF}}} == 0) or vector(0)"),
            span=4,
            limits=thresholds((None, "green"), (1, "red")),
        ),
        number(
            "Fullest store",
            "Of its limit. From nine tenths on the oldest step records make room; above 95 % for long is an alert.",
            "percentunit",
            Query(f"max({_filled()})"),
            span=4,
            limits=thresholds((None, "green"), (0.95, "orange"), (1, "red")),
            decimals=1,
        ),
        number(
            "Reports so far",
            "What has come in since each exporter's last start, by what became of it. Only accepted and duplicate "
            "were taken.",
            "locale",
            Query(f"sum by (outcome) (optwrap_exporter_reports_total{{{_OF}}}) > 0", "{{outcome}}"),
            span=12,
        ),
        rows_by(
            "instance",
            "Every exporter",
            "Whether it answers, what it is, and what it holds.",
            Query(f"max by (instance) (up{{{_JOB}, {_OF}}})"),
            Query(f"max by (instance, version, python) (optwrap_exporter_build_info{{{_OF}}})"),
            Query(f"max by (instance) (optwrap_exporter_runs{{{_OF}}})"),
            Query(f"count by (instance) (optwrap_last_report_timestamp_seconds{{{_OF}}})"),
            Query(f"max by (instance) (optwrap_exporter_store_bytes{{{_OF}}})"),
            Query(_filled()),
            columns=[
                ("instance", "Exporter", ""),
                ("Value #A", "Answers", "bool_yes_no"),
                ("version", "Version", ""),
                ("python", "Python", ""),
                ("Value #C", "Runs", "locale"),
                ("Value #D", "Processes that report", "locale"),
                ("Value #E", "Store", "bytes"),
                ("Value #F", "Of its limit", "percentunit"),
            ],
            sort="Of its limit",
            span=WIDTH,
            empty="No exporter",
            complete=False,
        ),
    )


def _reports() -> Row:
    """What comes in and goes out."""
    return row(
        "Reports and scrapes",
        lines(
            "Exporters up",
            "1 while Prometheus can scrape an exporter.",
            "none",
            Query(f"up{{{_JOB}, {_OF}}}", "{{instance}}"),
            steps=True,
        ),
        lines(
            "Reports taken",
            "Reports a second that each exporter took: one for each process and second, as the trainers are set up.",
            "suffix: reports/s",
            Query(
                f"sum by (instance) ({_rate('optwrap_exporter_reports_total', f'{_OF}, {_TAKEN}')})",
                "{{instance}}",
            ),
        ),
        lines(
            "Reports refused",
            "Reports a second that were refused, and why. busy and unavailable: the exporter cannot keep up or cannot "
            "write; the others: what a client sent was wrong, its log says what.",
            "suffix: reports/s",
            Query(
                f"sum by (instance, outcome) ({_rate('optwrap_exporter_reports_total', f'{_OF}, {_REFUSED}')})",
                "{{instance}}: {{outcome}}",
            ),
            stacked=True,
        ),
        lines(
            "Time to answer a scrape by exporter",
            "Nine of ten scrapes were answered within this time. It grows with the number of processes and parameters.",
            "s",
            Query(
                "histogram_quantile(0.9, sum by (instance, le) "
                f"({_rate('optwrap_exporter_scrape_duration_seconds_bucket')}))",
                "{{instance}}",
            ),
        ),
        lines(
            "Age of the oldest report",
            "How long ago the quietest process that has not ended last reported, at each exporter. "
            "Processes report every second.",
            "s",
            Query(
                f"time() - min by (instance) (optwrap_last_report_timestamp_seconds{{{_OF}}} "
                f'unless ignoring (health) optwrap_process_health{{{_OF}, health=~"finished|failed"}} == 1)',
                "{{instance}}",
            ),
        ),
        lines(
            "Records dropped on the way",
            "Step records a second that training processes had to drop before they reached the exporter: the worst "
            "process.",
            "suffix: records/s",
            Query(
                f"max by (instance, kind) ({_rate('optwrap_client_dropped_total')})",
                "{{instance}}: {{kind}}",
            ),
        ),
    )


def _store() -> Row:
    """What they keep."""
    return row(
        "Store",
        lines(
            "Size of the store",
            "Bytes that each exporter keeps, and its limit. From nine tenths of that on the oldest step records go.",
            "bytes",
            Query(f"max by (instance) (optwrap_exporter_store_bytes{{{_OF}}})", "{{instance}}"),
            Query(
                f"max by (instance) (optwrap_exporter_store_limit_bytes{{{_OF}}})",
                "{{instance}} limit",
                "red",
                dashed=True,
            ),
        ),
        lines(
            "Runs and processes",
            "Runs that each exporter knows, and processes of which it shows something.",
            "short",
            Query(f"max by (instance) (optwrap_exporter_runs{{{_OF}}})", "{{instance}}: runs"),
            Query(
                f"count by (instance) (optwrap_last_report_timestamp_seconds{{{_OF}}})",
                "{{instance}}: processes",
            ),
            steps=True,
        ),
    )
