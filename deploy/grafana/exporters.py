"""The dashboard *Exporters*: the state of the exporters themselves."""

from typing import Final

from grafana_foundation_sdk.builders import dashboard as builders

from deploy.grafana.board import Row, board, choice, places, row
from deploy.grafana.panels import WIDTH, Query, as_link, lines, number, rows_of, thresholds
from deploy.grafana.queries import AT, EXPORTER, LABELLED, PAGE, PLACE, WHERE

UID: Final = "optwrap-exporters"
_JOB: Final = 'job="optwrap"'
_OF: Final = 'cluster=~"$cluster", namespace=~"$namespace", instance=~"$instance"'
_EACH: Final = f"{PLACE}, {AT}"
_TAKEN: Final = 'outcome=~"accepted|duplicate"'
_REFUSED: Final = 'outcome!~"accepted|duplicate"'


def build() -> builders.Dashboard:
    """The dashboard."""
    return board(
        UID,
        "optwrap / Exporters",
        "The exporters themselves: whether they run, which reports they accept and refuse, and how full their stores "
        "are.",
        (_now(), _reports(), _store()),
        variables=[
            *places(f"up{{{_JOB}}}"),
            choice(
                "instance",
                "Exporter",
                "Address at which Prometheus scrapes the exporter",
                f"label_values(up{{{_JOB}}}, instance)",
                several=True,
            ),
        ],
    )


def _rate(metric: str, matchers: str = _OF) -> str:
    return f"rate({metric}{{{matchers}}}[$__rate_interval])"


def _filled() -> str:
    """The filled share of each store that has a limit."""
    limit = f"(optwrap_exporter_store_limit_bytes{{{_OF}}} > 0)"
    return f"max by ({_EACH}) (optwrap_exporter_store_bytes{{{_OF}}} / {limit})"


def _now() -> Row:
    """The state of the exporters now."""
    return row(
        "Now",
        number(
            "Exporters up",
            "Exporters that Prometheus can scrape now.",
            "none",
            Query(f"sum(up{{{_JOB}, {_OF}}})"),
            span=4,
        ),
        number(
            "Exporters down",
            "Exporters that Prometheus cannot scrape. Training continues, but nobody watches it: see the runbook of "
            "OptwrapExporterDown.",
            "none",
            Query(f"count(up{{{_JOB}, {_OF}}} == 0) or vector(0)"),
            span=4,
            limits=thresholds((None, "green"), (1, "red")),
        ),
        number(
            "Stores unhealthy",
            "Exporters whose store keeps no reports. Training goes on, and nothing turns stale: see the runbook of "
            "OptwrapStoreUnhealthy.",
            "none",
            Query(f"count(optwrap_exporter_store_healthy{{{_OF}}} == 0) or vector(0)"),
            span=4,
            limits=thresholds((None, "green"), (1, "red")),
        ),
        number(
            "Fullest store",
            "Share of its limit. From 90 % on the exporter drops the oldest step records. Above 95 % for 15 minutes "
            "there is an alert.",
            "percentunit",
            Query(f"max({_filled()})"),
            span=4,
            limits=thresholds((None, "green"), (0.95, "orange"), (1, "red")),
            decimals=1,
        ),
        number(
            "Reports so far",
            "Reports since each exporter's last start, by outcome. All outcomes but accepted and duplicate were "
            "refused.",
            "locale",
            Query(f"sum by (outcome) (optwrap_exporter_reports_total{{{_OF}}}) > 0", "{{outcome}}"),
            span=8,
        ),
        rows_of(
            "All exporters",
            "Whether each exporter is up, its version, and the size of its store.",
            Query(f"max by ({_EACH}) (up{{{_JOB}, {_OF}}})"),
            Query(f"max by ({_EACH}, version, python) (optwrap_exporter_build_info{{{_OF}}})"),
            Query(f"max by ({_EACH}) (optwrap_exporter_runs{{{_OF}}})"),
            Query(f"count by ({_EACH}) (optwrap_last_report_timestamp_seconds{{{_OF}}})"),
            Query(f"max by ({_EACH}) (optwrap_exporter_store_bytes{{{_OF}}})"),
            Query(_filled()),
            columns=[
                *WHERE,
                *LABELLED,
                ("Value #A", "Up", "bool_yes_no"),
                ("version", "Version", ""),
                ("python", "Python", ""),
                ("Value #C", "Runs", "locale"),
                ("Value #D", "Processes", "locale"),
                ("Value #E", "Store", "bytes"),
                ("Value #F", "Store filled", "percentunit"),
            ],
            sort="Store filled",
            span=WIDTH,
            empty="No exporter",
            overrides=[("Exporter", as_link("Page of this exporter", PAGE))],
        ),
    )


def _reports() -> Row:
    """Reports that come in, and scrapes that go out."""
    return row(
        "Reports and scrapes",
        lines(
            "Up",
            "1 while Prometheus can scrape the exporter, else 0.",
            "none",
            Query(f"up{{{_JOB}, {_OF}}}", EXPORTER),
            steps=True,
        ),
        lines(
            "Reports accepted",
            "Reports per second that each exporter accepted. By default each process sends one report per second, "
            "or fewer if its exporter asks for that.",
            "suffix: reports/s",
            Query(
                f"sum by ({_EACH}) ({_rate('optwrap_exporter_reports_total', f'{_OF}, {_TAKEN}')})",
                EXPORTER,
            ),
        ),
        lines(
            "Reports refused",
            "Reports per second that each exporter refused, by reason. busy: it cannot keep up. unavailable: it cannot "
            "write. For other reasons the report was wrong: see the log of the training process.",
            "suffix: reports/s",
            Query(
                f"sum by ({_EACH}, outcome) ({_rate('optwrap_exporter_reports_total', f'{_OF}, {_REFUSED}')})",
                f"{EXPORTER}: {{{{outcome}}}}",
            ),
            stacked=True,
        ),
        lines(
            "Capacity used",
            "Reports that arrive, as a part of those that one core can take. The exporter asks processes for as many "
            "reports as keep it near 50 %; above 100 % some are refused.",
            "percentunit",
            Query(f"max by ({_EACH}) (optwrap_exporter_capacity_used_ratio{{{_OF}}})", EXPORTER),
        ),
        lines(
            "Time to answer a scrape by exporter",
            "Nine of ten scrapes took at most this time. It grows with the number of processes and parameters.",
            "s",
            Query(
                f"histogram_quantile(0.9, sum by ({_EACH}, le) "
                f"({_rate('optwrap_exporter_scrape_duration_seconds_bucket')}))",
                EXPORTER,
            ),
        ),
        lines(
            "Age of the oldest report",
            "Time since the last report of the process that has been silent the longest, without processes that have "
            "ended. By default each process sends one report per second.",
            "s",
            Query(
                f"time() - min by ({_EACH}) (optwrap_last_report_timestamp_seconds{{{_OF}}} "
                f'unless ignoring (health) optwrap_process_health{{{_OF}, health=~"finished|failed|stopped"}} == 1)',
                EXPORTER,
            ),
        ),
        lines(
            "Records dropped by processes",
            "Step records per second that training processes dropped before they reached the exporter.",
            "suffix: records/s",
            Query(
                f"sum by ({_EACH}, kind) ({_rate('optwrap_run_client_dropped_total')})",
                f"{EXPORTER}: {{{{kind}}}}",
            ),
        ),
    )


def _store() -> Row:
    """The stores of the exporters."""
    return row(
        "Store",
        lines(
            "Size of the store",
            "Size of each exporter's store, and its limit. From 90 % of the limit on the exporter drops the oldest "
            "step records.",
            "bytes",
            Query(f"max by ({_EACH}) (optwrap_exporter_store_bytes{{{_OF}}})", EXPORTER),
            Query(
                f"max by ({_EACH}) (optwrap_exporter_store_limit_bytes{{{_OF}}})",
                f"{EXPORTER} limit",
                "red",
                dashed=True,
            ),
        ),
        lines(
            "Runs and processes",
            "Runs that each exporter knows, and processes that it has series of.",
            "short",
            Query(f"max by ({_EACH}) (optwrap_exporter_runs{{{_OF}}})", f"{EXPORTER}: runs"),
            Query(
                f"count by ({_EACH}) (optwrap_last_report_timestamp_seconds{{{_OF}}})",
                f"{EXPORTER}: processes",
            ),
            Query(f"max by ({_EACH}) (optwrap_exporter_hidden_runs{{{_OF}}})", f"{EXPORTER}: hidden runs"),
            steps=True,
        ),
        lines(
            "Event log and webhook",
            "Failures since each exporter's last start: writes of the event log, which are repeated, and messages to "
            "the webhook that were given up.",
            "short",
            Query(
                f"max by ({_EACH}) (optwrap_exporter_event_log_failures_total{{{_OF}}})",
                f"{EXPORTER}: event log",
            ),
            Query(
                f"max by ({_EACH}) (optwrap_exporter_webhook_failures_total{{{_OF}}})",
                f"{EXPORTER}: webhook",
            ),
            steps=True,
        ),
        lines(
            "Condition of the store",
            "1 for the condition that holds: ok, full, read_only, corrupt, io_error or gone. Reports are stored only "
            "while it is ok.",
            "none",
            Query(
                f"max by ({_EACH}, condition) (optwrap_exporter_store_condition{{{_OF}}}) == 1",
                f"{EXPORTER}: {{{{condition}}}}",
            ),
            steps=True,
        ),
    )
