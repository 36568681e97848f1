"""Where the page's links lead: the JSON behind each panel, and the run's dashboard in Grafana."""

import json
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from playwright.sync_api import expect

from tests.conftest import RunningExporter
from tests.e2e.page.desk import Desk, MakeReporter, OpenDesk

pytestmark = pytest.mark.programs("chromium")

DASHBOARD = Path(__file__).parents[3] / "deploy" / "grafana" / "dashboards" / "optwrap-run.json"


def test_every_panel_links_the_json_behind_it(open_desk: OpenDesk, reporter: MakeReporter) -> None:
    """Each link answers with JSON that speaks of this run; without a Grafana there is no link to one."""
    desk = open_desk()
    pod = [reporter(process=process, process_count=2, epoch=f"e{process}") for process in (0, 1)]
    for training in pod:
        training.good(5)
        training.bad(w=1)
    page = desk.open(pod[0].run)
    desk.health("skipping")
    for panel in ("norm", "pod", "parameters", "events", "processes"):
        link = desk.part(panel).locator("a.json")
        expect(link).to_be_visible()
        answer = httpx.get(f"{desk.url}{link.get_attribute('href')}", trust_env=False)
        assert answer.status_code == 200, panel
        assert answer.json(), panel
    expect(page.get_by_role("link", name="Grafana")).to_have_count(0)


def test_a_run_links_its_dashboard(
    start_exporter: Callable[..., RunningExporter], reporter: MakeReporter, open_desk: OpenDesk, url: str
) -> None:
    """The address is that of the committed dashboard, with the variables that it has, for this run."""
    del url
    exporter = start_exporter("--grafana-url", 'http://grafana.example:3000/sub"><b>/')
    training = reporter()
    training.url = exporter.url
    training.good(5)
    desk = open_desk()
    page = Desk(desk.page, exporter.url, []).open(training.run)
    desk.problems.clear()  # this exporter is not the one that the desk was made for
    link = page.get_by_role("link", name="Grafana")
    expect(link).to_be_visible()
    assert page.locator("body > b").count() == 0
    target = urlsplit(link.get_attribute("href") or "")
    dashboard = json.loads(DASHBOARD.read_text())
    assert target.netloc == "grafana.example:3000"
    assert target.path.endswith(f"/d/{dashboard['uid']}")
    asked = parse_qs(target.query)
    assert asked == {"var-run": [training.run], "var-page": [exporter.url]}
    assert {name.removeprefix("var-") for name in asked} <= {one["name"] for one in dashboard["templating"]["list"]}
    page.wait_for_timeout(200)
    desk.problems.clear()
