"""The table of metrics, and the documentation made from it."""

from pathlib import Path

import pytest
from optwrap_exporter.metrics.table import BY_NAME, METRICS, PROCESS, REPORT_OUTCOMES, document
from optwrap_exporter.wire.vocabulary import HEALTHS, INCIDENT_KINDS, SKIP_REASONS

ROOT = Path(__file__).parents[2]


def test_the_documentation_is_what_the_table_says() -> None:
    assert (ROOT / "docs" / "reference" / "metrics.md").read_text() == document(), (
        "run python -m optwrap_exporter.metrics.table > docs/reference/metrics.md"
    )


def test_every_metric_is_defined_once() -> None:
    assert len(BY_NAME) == len(METRICS)


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_a_name_has_the_suffix_of_its_type_and_unit(metric) -> None:  # type: ignore[no-untyped-def] # parametrized
    assert metric.name.endswith("_total") == (metric.type == "counter")
    assert metric.name.endswith("_info") == (metric.type == "info")
    for unit in ("seconds", "bytes"):
        assert metric.name.removesuffix("_total").endswith(f"_{unit}") == (metric.unit == unit)
    assert metric.help.endswith(".")
    family = metric.family()
    assert metric.name in {family.name, f"{family.name}_total", f"{family.name}_info"}


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_no_label_collides_with_one_that_scraping_adds(metric) -> None:  # type: ignore[no-untyped-def] # parametrized
    added = {"job", "instance", "cluster", "env", "namespace", "pod", "container", "node", "location", "project_id"}
    assert not added & set(metric.labels)
    assert len(set(metric.labels)) == len(metric.labels)
    assert metric.labels[:1] == PROCESS[:1] or metric.name.startswith("optwrap_exporter_")


def test_the_notes_name_every_value_of_a_label() -> None:
    for name, values in {
        "optwrap_skipped_steps_total": SKIP_REASONS.values(),
        "optwrap_process_health": HEALTHS,
        "optwrap_incidents_open": INCIDENT_KINDS,
        "optwrap_exporter_reports_total": REPORT_OUTCOMES,
    }.items():
        for value in values:
            assert f"`{value}`" in BY_NAME[name].note, (name, value)
