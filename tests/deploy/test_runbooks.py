"""Runbooks: one for each alert, in the same form, with links that lead somewhere."""

import re

import pytest
from optwrap_exporter.ledger.incidents import summary as incident_summary
from optwrap_exporter.ledger.shown import summary

from deploy.runbooks import console, of_the_exporter, slug
from tests.deploy.places import ALERTS, OPTIONAL, RUNBOOKS
from tests.deploy.promql import SERIES, words

HEADINGS = re.findall(r"^## (.+)$", RUNBOOKS.read_text("utf-8"), re.MULTILINE)


def test_alerts_and_runbooks_correspond() -> None:
    """In this order, the optional ones at the end. The name of an alert is its anchor."""
    assert list(dict.fromkeys(alert["alert"] for alert in ALERTS + OPTIONAL)) == HEADINGS


def test_every_runbook_that_the_api_names_has_a_heading() -> None:
    named = {*summary.RUNBOOKS.values(), *incident_summary.RUNBOOKS.values()}
    assert named <= set(HEADINGS)


@pytest.mark.parametrize("heading", HEADINGS)
def test_runbook_has_three_parts(heading: str) -> None:
    section = RUNBOOKS.read_text("utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    assert re.findall(r"^\*\*(.+?)\.\*\*", section, re.MULTILINE) == ["Meaning", "See why", "Do"]


def test_runbooks_name_only_known_metrics() -> None:
    assert words(RUNBOOKS.read_text("utf-8")) - set(SERIES) == set()


def test_links_within_the_runbooks_have_a_target() -> None:
    text = RUNBOOKS.read_text("utf-8")
    targets = set(re.findall(r"\]\(#([^)]+)\)", text))
    assert targets
    assert targets <= {slug(heading) for heading in HEADINGS}
    for made in (console(text), of_the_exporter(text)):
        assert all(f'<h2 id="{heading}">' in made for heading in HEADINGS)
        assert set(re.findall('href="#([^"]+)"', made)) <= set(HEADINGS)


def test_runbook_with_a_template_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\{\{"):
        console("# Runbooks\n\n{{ $value }}\n")
