"""The pod panel: one cell per process. The page follows the run whichever process dies."""

import re
import time

import httpx
import pytest
from playwright.sync_api import expect

from tests.conftest import RunningExporter
from tests.e2e.page.desk import PHONE, MakeReporter, OpenDesk

pytestmark = pytest.mark.programs("chromium")


def test_each_process_has_a_cell_with_its_health(open_desk: OpenDesk, reporter: MakeReporter) -> None:
    """Five of a job's six processes report. Each cell names its health; the sixth is shown as never reported."""
    desk = open_desk()
    pod = [reporter(process=process, process_count=6, incarnation=f"e{process}") for process in range(5)]
    for training in pod:
        training.good(8)
    pod[3].bad(w=1)
    pod[4].send("failed")
    page = desk.open(pod[0].run)
    cells = desk.part("pod").get_by_role("option")
    expect(cells).to_have_count(6)
    healths = ["degraded", "degraded", "degraded", "skipping", "failed", "missing"]
    shown = [cells.nth(i).get_attribute("data-health") for i in range(6)]
    rows = httpx.get(f"{desk.url}/v1/runs/{pod[0].run}", trust_env=False).json()["processes"]
    assert shown == [row["health"] for row in rows] + ["missing"]
    assert shown[3:] == healths[3:]
    expect(cells.nth(3)).to_have_accessible_name("Process 3 on node-3: Skipping")
    expect(cells.nth(5)).to_have_accessible_name("Process 5: Never reported")
    expect(desk.part("pod").locator(".legend")).to_contain_text("1skipping")
    readout = desk.part("pod").locator("output")
    expect(readout).to_contain_text(
        re.compile(r"Process 4 on node-4 · Failed .* ago · ")
    )  # the worst process, unless another is selected
    cells.nth(3).hover()
    expect(readout).to_contain_text(
        re.compile(r"Process 3 on node-3 · Skipping for .* · step 9 was non-finite .* · last report .* ago")
    )
    page.mouse.move(0, 0)
    expect(readout).to_contain_text("Process 4")


def test_cell_opens_its_process_by_pointer_and_keyboard(open_desk: OpenDesk, reporter: MakeReporter) -> None:
    """The chart shows the steps of the chosen process, the address holds it, and Back returns to the previous one."""
    desk = open_desk()
    first, second = (reporter(process=process, process_count=2, incarnation=f"e{process}") for process in (0, 1))
    first.good(10)
    second.good(9)
    second.bad(w=1)
    page = desk.open(first.run)
    expect(desk.chart()).to_have_attribute("data-marks", "0")
    pod = desk.part("pod")
    pod.get_by_role("listbox").focus()
    page.keyboard.press("End")
    expect(pod.locator("output")).to_contain_text("Process 1 on node-1")
    expect(pod.get_by_role("option").nth(1)).to_have_attribute("aria-selected", "true")
    page.keyboard.press("Enter")
    expect(desk.chart()).to_have_attribute("data-marked", "10")
    page.wait_for_url(re.compile(r"process=1\b"))
    page.reload()
    expect(desk.chart()).to_have_attribute("data-marked", "10")
    pod.get_by_role("option").first.click()
    pod.get_by_role("button", name="Show its steps").click()
    expect(desk.chart()).to_have_attribute("data-marks", "0")
    page.go_back()
    expect(desk.chart()).to_have_attribute("data-marked", "10")


# Creates a pod panel and gives it a run with `count` processes.
LARGE = """async ([count, changed]) => {
    const { createPod } = await import("/page/panels/pod.js");
    const root = document.createElement("section");
    document.getElementById("main").append(root);
    const update = createPod(root, { onProcess: () => {} });
    const state = (health) => ({
      detail: { run: "pod", process_count: count, missing: 0, left_out: { processes: 0 },
        processes: Array.from({ length: count }, (_, process) => ({
          process, host: `node-${process >> 3}`, since: 0, last_report: 0, gauges: {}, totals: { steps: 1 },
          summary: null, norm: null, health: process === changed ? health : "ok" })) },
      connection: { phase: "live" }, storeTrouble: null });
    update({ state: state("ok"), now: 5 });
    const before = root.querySelectorAll("[role=option]").length;
    const touched = new Set();
    const grid = root.querySelector("[role=listbox]");
    const watch = new MutationObserver((all) => all.forEach(({ target }) => touched.add(target.dataset.process)));
    watch.observe(grid, { subtree: true, attributes: true, childList: true });
    update({ state: state("skipping"), now: 6 });
    await new Promise((done) => setTimeout(done));
    const text = root.querySelector("output").textContent;
    grid.focus();
    const fits = root.scrollWidth <= root.clientWidth;
    return { before, touched: [...touched], text, fits, widths: document.documentElement.scrollWidth <= innerWidth };
}"""


@pytest.mark.parametrize("count", [2, 4096])
@pytest.mark.parametrize("viewport", [None, PHONE])
def test_pod_of_any_size_fits_and_updates_only_changed_cells(
    open_desk: OpenDesk, viewport: dict[str, int] | None, count: int
) -> None:
    """With 2 and 4,096 processes the panel fits the page, and a change of one process updates one cell."""
    desk = open_desk(viewport) if viewport else open_desk()
    found = desk.open().evaluate(LARGE, [count, count - 1])
    assert found["before"] == count
    assert found["touched"] == [str(count - 1)]
    assert found["text"].startswith(f"Process {count - 1} on node-{(count - 1) >> 3} · Skipping")
    assert found["fits"]
    assert found["widths"]


def test_page_follows_another_process_when_the_shown_one_dies(open_desk: OpenDesk, reporter: MakeReporter) -> None:
    """The list of events misses nothing and repeats nothing; the chart continues with the other process."""
    desk = open_desk()
    both = [reporter(process=process, process_count=2, incarnation=f"e{process}", interval=1.0) for process in (0, 1)]
    for training in both:
        training.good(4)
        training.bad(w=1)
    page = desk.open(both[0].run)
    page.evaluate("window.loadedOnce = 'still the same page'")
    expect(desk.chart()).to_have_attribute("data-marked", "5")
    skips = desk.every_event().locator("li").filter(has_text="Skipped, non-finite")
    expect(skips).to_have_count(1)
    both[1].bad(w=1)  # process 0 is dead
    expect(skips).to_have_count(2)
    expect(skips.first).to_contain_text("step 6process 1 · norm NaN")
    deadline = time.monotonic() + 60
    while desk.chart().get_attribute("data-marked") != "5 6" and time.monotonic() < deadline:
        both[1].good(1)
        page.wait_for_timeout(500)
    expect(desk.chart()).to_have_attribute("data-marked", "5 6")
    # The silence of process 0 counts from its last report.
    desk.part("pod").get_by_role("option").first.hover()
    sentence = desk.part("pod").locator("output")
    expect(sentence).to_contain_text(re.compile(r"No reports for ([^·]+) · .*, after step 5; .* · last report \1 ago"))
    both[1].bad(w=1)
    expect(desk.chart()).to_have_attribute("data-marked", re.compile(r"^5 6 \d+$"))
    expect(skips).to_have_count(3)
    assert page.evaluate("window.loadedOnce") == "still the same page"


def test_cells_follow_messages_and_a_restart_of_the_exporter(
    open_desk: OpenDesk, reporter: MakeReporter, exporter: RunningExporter
) -> None:
    """A message changes only its processes; after a reconnection the page shows what it missed."""
    desk = open_desk()
    desk.expected = re.compile("Failed to load resource")
    pod = [reporter(process=n, process_count=4, incarnation=f"e{n}") for n in range(4)]
    for training in pod:
        training.good(4)
    page = desk.open(pod[0].run)
    cells = desk.part("pod").get_by_role("option")

    def shows(*healths: str) -> None:
        for cell, health in zip(range(4), healths, strict=True):
            expect(cells.nth(cell)).to_have_attribute("data-health", health)

    shows("ok", "ok", "ok", "ok")
    pod[1].bad(w=1)
    shows("ok", "skipping", "ok", "ok")
    pod[2].bad(w=1)
    shows("ok", "skipping", "skipping", "ok")
    pod[1].good(1)
    shows("ok", "ok", "skipping", "ok")
    exporter.kill9()
    expect(page.locator("#lost")).to_be_visible()
    exporter.restart()
    pod[3].send("failed")
    pod[2].good(1)
    shows("ok", "ok", "ok", "failed")
    pod[0].bad(w=1)
    shows("skipping", "ok", "ok", "failed")
    steps = desk.part("processes").locator("tbody tr td:nth-child(6)")
    assert sorted(steps.all_text_contents()) == ["4", "5", "6", "6"]
