"""The analysis of PromQL finds wrong expressions, and accepts right ones."""

import pytest

from tests.deploy.promql import substituted, unknown, wrong_over_processes


@pytest.mark.parametrize(
    "expr",
    [
        "max by (run) (rate(optwrap_steps_total[5m]))",
        "max by (run) (sum without (reason) (increase(optwrap_skipped_steps_total[5m])))",
        "max by (run) (sum by (run, process) (increase(optwrap_skipped_steps_total[5m])))",
        "sum by (outcome) (rate(optwrap_exporter_reports_total[5m]))",
        "max by (run) (optwrap_gradient_norm)",
        'sum by (run) (increase(optwrap_steps_total{process="0"}[5m]))',
        "sum by (reason) (max by (run, reason) (rate(optwrap_lost_steps_total[5m])))",
        "sum by (job) (rate(optwrap_exporter_reports_total[5m]) and on (instance) optwrap_process_count)",
    ],
)
def test_right_aggregation_passes(expr: str) -> None:
    assert wrong_over_processes(expr) == []


@pytest.mark.parametrize(
    ("expr", "what"),
    [
        ("sum by (run) (rate(optwrap_steps_total[5m]))", "sum over the processes"),
        ("sum by (run) (rate(optwrap_run_steps_total[5m]))", "sum over the processes"),
        ("sum without (process) (rate(optwrap_steps_total[5m]))", "sum over the processes"),
        ("sum(rate(optwrap_steps_total[5m]))", "sum over the processes"),
        ('sum(rate(optwrap_steps_total{process!="0"}[5m]))', "sum over the processes"),
        ("sum by (run) (optwrap_steps_total and on (run) up)", "sum over the processes"),
        ("avg by (run) (optwrap_gradient_norm)", "avg over the processes"),
        ("max by (run) (optwrap_steps_total)", "a raw counter"),
        ("rate(max by (run) (optwrap_steps_total)[5m:])", "under a subquery"),
    ],
)
def test_wrong_aggregation_is_found(expr: str, what: str) -> None:
    assert what in " ".join(wrong_over_processes(expr))


@pytest.mark.parametrize(
    ("expr", "what"),
    [
        ("optwrap_step_total", ["metric optwrap_step_total"]),
        ('optwrap_steps_total{reason="large"}', ["label reason of optwrap_steps_total"]),
        ('optwrap_skipped_steps_total{reason="larg"}', ["reason='larg' of optwrap_skipped_steps_total"]),
        ("max by (runs) (optwrap_steps_total)", ["label runs"]),
        ("up and on (nod) optwrap_steps_total", ["label nod"]),
        ("run:optwrap_steps:rate9m", ["metric run:optwrap_steps:rate9m"]),
        ("optwrap_exporter_scrape_duration_seconds", ["metric optwrap_exporter_scrape_duration_seconds"]),
    ],
)
def test_unknown_name_is_found(expr: str, what: list[str]) -> None:
    assert unknown(expr, {"run:optwrap_steps:rate5m"}) == what


def test_unknown_grafana_variable_is_an_error() -> None:
    with pytest.raises(AssertionError, match="not in GRAFANA"):
        substituted('optwrap_steps_total{host="$host"}')
