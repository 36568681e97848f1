"""The page's links: the JSON behind each panel, and the run's Grafana dashboard."""

import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from playwright.sync_api import expect

from tests.conftest import RunningExporter
from tests.e2e.page.desk import Desk, MakeReporter, OpenDesk
from tests.exporter.running import START

pytestmark = pytest.mark.programs("chromium")

DASHBOARD = Path(__file__).parents[3] / "deploy" / "grafana" / "dashboards" / "optwrap-run.json"


def seconds() -> Callable[[], float]:
    """A clock that advances by one second at each call."""
    ticks = itertools.count(START)
    return lambda: next(ticks)


@pytest.fixture
def panels(open_desk: OpenDesk, reporter: MakeReporter) -> Desk:
    """The page of a run of two processes with a streak in it, beside another run."""
    desk = open_desk()
    pod = [reporter(process=n, process_count=3, incarnation=f"e{n}", clock=seconds()) for n in (0, 1)]
    reporter(f"{pod[0].run}-too").good(5)
    for training in pod:
        training.good(30)
        training.large()
        training.bad(w=1, v=7)
        training.bad(v=2)
    desk.open(pod[0].run)
    desk.health("skipping")
    expect(desk.chart()).to_have_attribute("data-marked", "31 32 33")
    return desk


def behind(desk: Desk, panel: str) -> Any:
    """The JSON that this panel links to."""
    link = desk.part(panel).locator("a.json")
    expect(link).to_be_visible()
    answer = httpx.get(f"{desk.url}{link.get_attribute('href')}", trust_env=False)
    assert answer.status_code == 200, panel
    return answer.json()


def cells(desk: Desk, panel: str) -> list[list[str]]:
    """The text of the rows of a panel's table."""
    rows = desk.part(panel).locator("tbody tr").all()
    return [[text.strip() for text in row.locator("td").all_text_contents()] for row in rows]


def test_health_and_tables_equal_their_json(panels: Desk) -> None:
    """Health, parameters, processes and runs: the same rows in the same order, with the same figures."""
    run = behind(panels, "health")
    assert panels.part("health").get_attribute("data-health") == run["health"]
    assert panels.page.locator(".tile.steps .value").text_content() == str(run["totals"]["steps"])

    shown = [[name.removeprefix("first"), *figures] for name, *figures in cells(panels, "parameters")]
    columns = ("parameter", "first_step", "last_step", "steps", "values")
    assert shown == [[str(row[column]) for column in columns] for row in behind(panels, "parameters")["items"]]

    shown = [[number, host, steps, streak] for number, _, host, _, _, steps, streak, _ in cells(panels, "processes")]
    rows = behind(panels, "processes")["processes"]
    expected = [
        (row["process"], row["host"], row["totals"]["steps"], row["gauges"]["not_finite_streak"]) for row in rows
    ]
    assert shown == [[str(value) for value in row] for row in expected]

    at = {row["process"]: row["health"] for row in behind(panels, "pod")["processes"]}
    for cell in panels.part("pod").get_by_role("option").all():
        process = int(cell.get_attribute("data-process") or -1)
        assert cell.get_attribute("data-health") == at.get(process, "missing")

    listed = {row["run"]: row["health"] for row in behind(panels, "runs")["items"]}
    words = {"skipping": "Skipping", "ok": "Healthy"}
    runs = panels.part("runs").locator("tbody tr").all()
    assert len(runs) == len(listed)
    for row in runs:
        name = row.locator(".name").text_content() or ""
        # The exporter also has runs of other tests, whose health may change.
        if name.startswith("test_health_and_tables"):
            expect(row.locator(".word")).to_contain_text(words[listed[name]])


def test_events_equal_their_json(panels: Desk) -> None:
    """Every event of the answer is shown, in the same order, with its step and parameters."""
    panels.every_event()
    items = behind(panels, "events")["items"]
    rows = panels.part("events").locator("li").all()
    assert [row.get_attribute("data-event") for row in rows] == [str(item["id"]) for item in items]
    for row, item in zip(rows, items, strict=True):
        assert row.get_attribute("data-kind") == item["kind"]
        if item["step"] is not None:
            expect(row).to_contain_text(f"step {item['step']}")
        for offender in item["detail"].get("parameters", []):
            expect(row).to_contain_text(f"{offender['parameter']} ({offender['not_finite']} value")


@pytest.mark.parametrize("axis", ["step", "time"])
def test_crosshair_shows_the_record_of_its_step(panels: Desk, axis: str) -> None:
    """The crosshair crosses plot and strips, and in each of them the text shows the step under the pointer."""
    page = panels.page
    page.get_by_role("button", name=f"by {axis}").click()
    # Zoom on the last steps, by the address.
    whole = behind(panels, "norm")["columns"]
    wanted = [whole[axis][20], whole[axis][-1]]
    panels.open(
        parse_qs(urlsplit(page.url).query)["run"][0],
        axis=axis,
        **dict(zip(("from", "to"), map(str, wanted), strict=True)),
    )
    expect(panels.chart()).to_have_attribute("data-marked", "31 32 33")
    columns = behind(panels, "norm")["columns"]
    assert columns["step"] == list(range(21, 34))
    panels.part("norm").scroll_into_view_if_needed()
    box = page.locator(".u-over").bounding_box()
    assert box is not None
    low, high = map(float, (panels.chart().get_attribute("data-range") or "").split())
    strips = (0.5 * box["height"], box["height"] + 14, box["height"] + 36)
    for i, (x, step, norm) in enumerate(zip(columns[axis], columns["step"], columns["norm"], strict=True)):
        left = box["x"] + box["width"] * (x - low) / (high - low)
        page.mouse.move(left, box["y"] + strips[i % 3])
        readout = page.locator("#norm .readout")
        shown = norm if isinstance(norm, str) else f"{norm:g}"
        expect(readout).to_contain_text(re.compile(rf"^Step {step} · .* norm {shown} "))
        line = page.locator(".u-cursor-x").bounding_box()
        assert line is not None
        assert line["x"] == pytest.approx(left, abs=2)
        assert line["y"] <= box["y"] + 1
        assert line["y"] + line["height"] >= box["y"] + box["height"] + 2 * (6 + 16)
    page.mouse.move(0, 0)
    expect(page.locator("#norm .readout")).to_contain_text("Last step 33")


def test_run_links_its_grafana_dashboard(
    start_exporter: Callable[..., RunningExporter], reporter: MakeReporter, open_desk: OpenDesk, url: str
) -> None:
    """The link leads to the committed dashboard, and sets its variables to this run."""
    del url
    exporter = start_exporter("--grafana-url", 'http://grafana.example:3000/sub"><b>/')
    training = reporter()
    training.url = exporter.url
    training.good(5)
    desk = open_desk()
    page = Desk(desk.page, exporter.url, []).open(training.run)
    desk.problems.clear()  # this exporter is not the one of the fixture
    link = page.get_by_role("link", name="Grafana")
    expect(link).to_be_visible()
    assert page.locator("body > b").count() == 0
    target = urlsplit(link.get_attribute("href") or "")
    dashboard = json.loads(DASHBOARD.read_text())
    assert target.netloc == "grafana.example:3000"
    assert target.path.endswith(f"/d/{dashboard['uid']}")
    asked = parse_qs(target.query)
    assert asked == {"var-run": [training.run]}
    assert {name.removeprefix("var-") for name in asked} <= {one["name"] for one in dashboard["templating"]["list"]}
    page.wait_for_timeout(200)
    desk.problems.clear()
