"""The page works with a keyboard, a screen reader and other colours: axe-core finds no violation."""

import functools
import hashlib
import re
from collections.abc import Callable
from typing import Any

import pytest
from axe_playwright_python.base import AXE_FILE_PATH, AxeResults
from playwright.sync_api import Page, expect

from tests.conftest import RunningExporter
from tests.e2e.page.desk import DESK, PHONE, Desk, MakeReporter, OpenDesk

pytestmark = [pytest.mark.programs("chromium"), pytest.mark.thin(3)]

# axe-core 4.12.1, from axe-playwright-python 0.1.8.
AXE_SHA256 = "84494fec757e4710dc751c8d7a636e457f4532f08f85c86dc9070133fbff53bc"

# All rules of WCAG 2.0 to 2.2, levels A and AA, and axe's own best practices.
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


@functools.cache
def axe() -> str:
    """The source of axe-core; fails if it is not the pinned version."""
    script = AXE_FILE_PATH.read_bytes()
    received = hashlib.sha256(script).hexdigest()
    assert received == AXE_SHA256, (
        f"{AXE_FILE_PATH}: sha256 {received}: not the pinned axe-core; review it and pin its checksum here"
    )
    return str(script, "utf-8")


def violations(page: Page) -> list[str]:
    """One line for each element that breaks a rule."""
    # evaluate() uses the debugger, which the page's content security policy does not restrict.
    page.evaluate(axe() + "; undefined")
    # axe itself tries things that the policy forbids; these refusals do not count.
    answer: dict[str, Any] = page.evaluate(
        "async (tags) => { const before = [...refused]; const found = await axe.run({ runOnly: tags }); "
        "await new Promise((done) => setTimeout(done)); refused = before; return found; }",
        RULES,
    )
    results = AxeResults(answer)
    assert len(answer["passes"]) > 15, "axe did not check the page"
    return [
        f"{rule['id']}: {node['target']} {node['failureSummary']}"
        for rule in results.response["violations"]
        for node in rule["nodes"]
    ]


def streak(desk: Desk, reporter: MakeReporter) -> None:
    """Every panel has content: a streak, non-finite parameters, events, two processes of four, a second run."""
    both = [reporter(process=process, process_count=4, incarnation=f"e{process}") for process in (0, 1)]
    reporter(f"{both[0].run}-other").good(5)
    for training in both:
        training.good(40)
        training.large()
        training.bad(**{f"layer_{number}/w": number for number in range(1, 12)})
    desk.open(both[0].run, window="200")
    desk.health("skipping")
    expect(desk.chart()).to_have_attribute("data-marks", "2")


def gave_up(desk: Desk, reporter: MakeReporter) -> None:
    training = reporter()
    training.good(5)
    training.job.step("accepted_not_finite", "NaN", w=1)
    training.send()
    desk.open(training.run, **{"from": "40", "to": "3"})
    desk.health("gave_up")


def healthy(desk: Desk, reporter: MakeReporter) -> None:
    training = reporter()
    training.good(50)
    desk.open(training.run)
    desk.health("ok")


def unknown(desk: Desk, reporter: MakeReporter) -> None:
    del reporter
    desk.expected = re.compile("status of 404")
    desk.open("nobody")
    expect(desk.part("missing")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
@pytest.mark.parametrize("state", [healthy, streak, gave_up, unknown])
def test_page_has_no_accessibility_violations(
    open_desk: OpenDesk,
    reporter: MakeReporter,
    scheme: str,
    viewport: dict[str, int],
    state: Callable[[Desk, MakeReporter], None],
) -> None:
    """In each state, on a desktop and a phone, in light and dark colours."""
    desk = open_desk(viewport, scheme)
    state(desk, reporter)
    assert violations(desk.page) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_empty_and_disconnected_page_have_no_accessibility_violations(
    open_desk: OpenDesk, reporter: MakeReporter, exporter: RunningExporter, scheme: str
) -> None:
    """Before the first report, and after the exporter died during a streak."""
    desk = open_desk(scheme=scheme)
    desk.expected = re.compile("Failed to load resource")
    desk.open()
    expect(desk.part("empty")).to_be_visible()
    assert violations(desk.page) == []
    streak(desk, reporter)
    exporter.kill9()
    expect(desk.part("lost")).to_be_visible()
    assert violations(desk.page) == []


FOCUSABLE = """() => [...document.querySelectorAll("a[href], button, input, select, summary, [tabindex='0']")]
    .filter((node) => node.checkVisibility() && !node.disabled && node.tabIndex >= 0)
    .map((node) => { node.dataset.tour ??= Math.random(); return node.dataset.tour; })"""

FOCUSED = """() => {
    const node = document.activeElement;
    const style = getComputedStyle(node);
    const box = node.getBoundingClientRect();
    const ring = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0;
    const inSight = box.bottom > 0 && box.top < innerHeight;
    return { tour: node.dataset.tour ?? null, ring, inSight, what: node.outerHTML.slice(0, 100) };
}"""


def test_tab_key_reaches_every_control_in_document_order(open_desk: OpenDesk, reporter: MakeReporter) -> None:
    """Each link, button, field and scrolling panel gets the focus once, is in view and has a focus ring."""
    desk = open_desk()
    streak(desk, reporter)
    page = desk.page
    expect(desk.part("parameters").get_by_role("searchbox")).to_be_visible()
    wanted = page.evaluate(FOCUSABLE)
    assert len(wanted) > 30
    reached = []
    for _ in wanted:
        page.keyboard.press("Tab")
        at = page.evaluate(FOCUSED)
        assert at["ring"], at
        assert at["inSight"], at
        reached.append(at["tour"])
    assert reached == wanted
    page.get_by_role("link", name="Skip to the run").focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
