"""The table of runs: its figures, search, chips, order, folding, and what a person can do with a run."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import expect

from tests.conftest import RunningExporter
from tests.e2e.page.desk import DESK, PHONE, Desk, MakeReporter, OpenDesk
from tests.exporter.running import Job

pytestmark = pytest.mark.programs("chromium")


def listed(desk: Desk, **query: Any) -> dict[str, Any]:
    """The runs of the API by name."""
    answer = httpx.get(f"{desk.url}/v1/runs", params={"limit": 1000, **query}, trust_env=False)
    assert answer.status_code == 200, answer.text
    return {row["run"]: row for row in answer.json()["items"]}


def names(desk: Desk) -> list[str]:
    """The names of the runs in the table, from the top."""
    return desk.part("runs").locator("tbody tr .name").all_text_contents()


@pytest.fixture
def three(exporter: RunningExporter, open_desk: OpenDesk, reporter: MakeReporter) -> Desk:
    """A healthy, a skipping and a finished run."""
    del exporter
    skipping, healthy, finished = (reporter(name) for name in ("lm-7b", "vit", "old"))
    healthy.good(40)
    finished.good(20)
    finished.send("finished")
    skipping.good(95)
    for _ in range(7):
        skipping.bad(w=1)
    desk = open_desk()
    desk.open()
    expect(desk.row("lm-7b")).to_be_visible()
    return desk


def test_each_row_has_the_figures_of_its_run(three: Desk) -> None:
    """Health, step, streak beyond its limit, skipped share, lost steps and last report, as the API has them."""
    run = listed(three)["lm-7b"]
    cells = three.row("lm-7b").locator("td")
    expect(cells.nth(0)).to_contain_text("Skipping")
    expect(cells.nth(2)).to_have_text(str(run["last_step"]))
    assert run["last_step"] == 102
    expect(cells.nth(4)).to_have_text("7 (limit 5)")
    expect(cells.nth(4)).to_have_attribute("title", "2 past the limit of 5")
    assert run["skipped_recently"] == {"steps": 102, "skipped": 7}
    expect(cells.nth(5)).to_have_text("6.9 %")
    expect(cells.nth(7)).to_have_text(str(sum(run["lost_steps"].values())))
    expect(cells.nth(8)).to_contain_text(" s ago")
    # The picture of the last norms has one tick for each of the seven bad steps.
    ticks = three.row("lm-7b").locator(".spark .kind-skipped_not_finite")
    three.wait_until(
        "(row) => document.querySelector(row).getAttribute('d')?.split('M').length",
        lambda parts: parts == 1 + 7,
        'tr[data-run="lm-7b"] .spark .kind-skipped_not_finite',
    )
    expect(ticks).to_have_count(1)


def test_ill_runs_come_first_and_finished_ones_are_folded(three: Desk) -> None:
    """A click unfolds them; so does a search or a chip that means them."""
    assert names(three) == ["lm-7b", "vit"]
    fold = three.part("runs").locator(".fold")
    expect(fold).to_have_text("Show 1 run that is over")
    fold.click()
    expect(three.row("old")).to_be_visible()
    assert names(three) == ["lm-7b", "vit", "old"]
    fold.click()
    expect(three.row("old")).to_be_hidden()
    three.part("runs").get_by_role("button", name="1 finished").click()
    assert names(three) == ["old"]
    three.part("runs").get_by_role("button", name="1 finished").click()
    search = three.part("runs").get_by_role("searchbox")
    search.fill("OL")
    assert names(three) == ["old"]
    expect(three.part("runs").locator(".count")).to_have_text("1 of 3")
    expect(three.part("runs").locator(".chips")).to_have_text("1finished")
    search.fill("nothing of the kind")
    expect(three.part("runs")).to_contain_text("No run matches.")
    search.fill("")
    assert names(three) == ["lm-7b", "vit"]


def test_a_header_sorts_by_its_column(three: Desk) -> None:
    runs = three.part("runs")
    header = runs.get_by_role("columnheader", name="Skipped")
    header.get_by_role("button").click()
    expect(header).to_have_attribute("aria-sort", "descending")
    assert names(three) == ["lm-7b", "vit"]
    header.get_by_role("button").click()
    expect(header).to_have_attribute("aria-sort", "ascending")
    assert names(three) == ["vit", "lm-7b"]
    runs.get_by_role("columnheader", name="Run", exact=True).get_by_role("button").click()
    assert names(three) == ["lm-7b", "vit"]


def test_a_row_is_selected_by_its_link_and_by_a_click(three: Desk) -> None:
    expect(three.row("lm-7b")).to_have_class("warning selected")
    three.row("vit").locator("td").nth(5).click()
    expect(three.page.get_by_role("heading", name="vit")).to_be_visible()
    expect(three.row("vit").get_by_role("link")).to_have_attribute("aria-current", "page")
    three.row("lm-7b").get_by_role("link").press("Enter")
    expect(three.page.get_by_role("heading", name="lm-7b")).to_be_visible()


def test_a_run_is_archived_and_restored_by_keyboard(three: Desk) -> None:
    """An archived run is hidden and kept; it is listed on request, and restored from there."""
    page = three.page
    three.row("lm-7b").get_by_role("link").focus()
    page.keyboard.press("Tab")
    expect(three.row("vit").get_by_role("link")).to_be_focused()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Archive", exact=True)).to_be_focused()
    page.keyboard.press("ArrowDown")
    expect(page.get_by_role("button", name="Delete…")).to_be_focused()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(three.row("vit")).to_be_hidden()
    expect(three.row("lm-7b").get_by_role("button")).to_be_focused()
    expect(page.locator("#said")).to_have_text("Archived: vit. Its data is kept.")
    assert set(listed(three)) == {"lm-7b", "old"}
    three.part("runs").get_by_role("button", name="Archived").click()
    expect(three.row("vit")).to_be_visible()
    expect(three.part("runs").locator(".count")).to_have_text("3")  # as many as the chips add up to
    three.row("vit").get_by_role("button", name="Actions for vit").click()
    page.get_by_role("button", name="Restore").click()
    expect(page.locator("#said")).to_have_text("Restored: vit.")
    three.part("runs").get_by_role("button", name="Archived").click()
    expect(three.row("vit")).to_be_visible()
    assert "vit" in listed(three)


def test_a_run_is_deleted_only_after_a_question(three: Desk) -> None:
    """Escape and Cancel keep it."""
    page = three.page
    dialog = page.get_by_role("dialog", name="Delete this run?")

    def ask() -> None:
        three.row("vit").get_by_role("button", name="Actions for vit").click()
        page.get_by_role("button", name="Delete…").click()
        expect(dialog).to_contain_text("All steps, events and incidents of vit are deleted")

    ask()
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    ask()
    dialog.get_by_role("button", name="Cancel").click()
    expect(dialog).to_be_hidden()
    assert "vit" in listed(three)
    ask()
    dialog.get_by_role("button", name="Delete").click()
    expect(three.row("vit")).to_be_hidden()
    expect(page.locator("#said")).to_have_text("Deleted: vit.")
    assert "vit" not in listed(three)


def test_another_run_is_shown_after_the_opened_one_is_deleted(three: Desk) -> None:
    """Nothing of the deleted run is asked for: the fixture refuses errors in the console."""
    page = three.page
    three.row("vit").get_by_role("link").click()
    expect(three.part("health").locator("h1 bdi")).to_have_text("vit")
    expect(three.chart()).to_be_visible()
    three.part("health").get_by_role("button", name="Actions for this run").click()
    page.get_by_role("button", name="Delete…").click()
    page.get_by_role("dialog", name="Delete this run?").get_by_role("button", name="Delete").click()
    expect(three.part("health").locator("h1 bdi")).to_have_text("lm-7b")
    expect(three.row("vit")).to_be_hidden()
    page.wait_for_timeout(4_000)  # longer than the time between two polls


@pytest.mark.usefixtures("exporter")
def test_the_page_says_that_the_only_run_was_deleted(open_desk: OpenDesk, reporter: MakeReporter) -> None:
    """Nothing of it is asked for again: the fixture refuses errors in the console."""
    desk, training = open_desk(), reporter("vit")
    training.good(5)
    page = desk.open()
    desk.health("ok")
    page.get_by_role("button", name="Actions for this run").click()
    page.get_by_role("button", name="Delete…").click()
    page.get_by_role("dialog", name="Delete this run?").get_by_role("button", name="Delete").click()
    expect(desk.part("missing")).to_contain_text("vit was deleted")
    expect(desk.part("health")).to_be_hidden()
    for _ in range(3):  # a page that is shown again polls at once
        with page.expect_response("**/-/healthy"):
            page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    reporter("vit").good(3)
    desk.health("ok")


def test_the_token_is_asked_for_once_per_tab(
    start_exporter: Callable[..., RunningExporter],
    reporter: MakeReporter,
    open_desk: OpenDesk,
    url: str,
    tmp_path: Path,
) -> None:
    """A wrong token is refused and asked for again. The right one is kept for the tab and nowhere else."""
    del url
    secret = tmp_path / "token"
    secret.write_text("s3cret")
    exporter = start_exporter("--token-file", str(secret))
    for name in ("one", "two", "three"):
        training = reporter(name)
        training.url, training.token = exporter.url, "s3cret"
        training.good(3)
    desk = open_desk()
    page = Desk(desk.page, exporter.url, []).open()
    dialog = page.get_by_role("dialog", name="This exporter wants its token")

    def archive(name: str) -> None:
        page.get_by_role("button", name=f"Actions for {name}").click()
        page.get_by_role("button", name="Archive", exact=True).click()

    archive("one")
    expect(dialog).to_be_visible()
    dialog.get_by_label("Token").fill("wrong")
    page.keyboard.press("Enter")
    expect(dialog).to_contain_text("The exporter refused the token.")
    dialog.get_by_label("Token").fill("s3cret")
    dialog.get_by_role("button", name="Send").click()
    expect(page.locator("#said")).to_have_text("Archived: one. Its data is kept.")
    archive("two")
    expect(page.locator("#said")).to_have_text("Archived: two. Its data is kept.")
    assert page.evaluate("localStorage.length + document.cookie.length") == 0
    assert page.context.new_page().evaluate("() => { try { return sessionStorage.length } catch { return 0 } }") == 0
    desk.problems.clear()  # this exporter is not the one of the fixture, and refused a token


@pytest.mark.usefixtures("exporter")
def test_an_acknowledged_failure_colours_neither_icon_nor_title(open_desk: OpenDesk, reporter: MakeReporter) -> None:
    """It is folded with the runs that are over, and a new failure is shown again."""
    desk, failed, healthy = open_desk(), reporter("failed"), reporter("healthy")
    failed.good(5)
    failed.send("failed", reason="ValueError: loss is NaN")
    healthy.good(5)
    page = desk.open()
    expect(page).to_have_title("✖ Failed · failed · optwrap")
    expect(desk.part("health")).to_contain_text("ValueError: loss is NaN")
    expect(page.get_by_role("button", name="Acknowledge")).to_have_count(1)
    page.get_by_role("button", name="Acknowledge").click()
    expect(page).to_have_title("✓ Healthy · healthy · optwrap")
    expect(page.locator("#favicon")).to_have_attribute("data-tier", "good")
    expect(desk.part("health")).to_have_class("health idle")
    expect(desk.part("health")).to_contain_text("Acknowledged")
    expect(desk.part("runs").locator(".fold")).to_be_hidden()  # the only run that is over is the opened one
    desk.row("healthy").get_by_role("link").click()
    expect(desk.row("failed")).to_be_hidden()
    expect(desk.part("runs").locator(".fold")).to_have_text("Show 1 run that is over")


@pytest.fixture(scope="module")
def thousand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningExporter]:
    """An exporter of a thousand runs: one skips, half of them are over."""
    exporter = RunningExporter(tmp_path_factory.mktemp("runs") / "data", "--new-runs-per-minute", "100000")
    with httpx.Client(trust_env=False) as client:
        for number in range(1000):
            job = Job(run=f"run-{number:04}", clock=time.time, interval=60.0)
            if number == 777:
                job.step("skipped_not_finite", "NaN", w=1)
            else:
                job.step("applied", 1.0)
            report = job.report("finished" if number % 2 and number != 777 else "running")
            assert client.post(f"{exporter.url}/v1/reports", json=report).status_code == 200
    yield exporter
    exporter.stop()


@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
def test_a_thousand_runs_are_usable(
    thousand: RunningExporter,
    open_desk: OpenDesk,
    viewport: dict[str, int],
    record_property: Callable[[str, object], None],
) -> None:
    """The worst run is on top, any run is found by its name, and every run can be listed. Records how long it took."""
    desk = open_desk(viewport)
    page, here = desk.page, Desk(desk.page, thousand.url, [])
    began = time.monotonic()
    here.open()
    expect(here.chart()).to_have_attribute("data-marks", "1")
    record_property("seconds_until_the_chart_is_drawn", round(time.monotonic() - began, 2))
    runs = here.part("runs")
    expect(runs.locator("tbody tr").first).to_contain_text("run-0777")
    expect(runs.locator("tbody tr")).to_have_count(100)
    expect(runs.locator(".fold")).to_have_text("Show 499 runs that are over")
    expect(runs.locator(".more")).to_contain_text("401 more.")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    runs.get_by_role("searchbox").fill("run-0123")
    expect(runs.locator("tbody tr")).to_have_count(1)
    runs.get_by_role("searchbox").fill("")
    runs.get_by_role("button", name="Show more").click()
    expect(runs.locator("tbody tr")).to_have_count(501)
    desk.problems.clear()  # this exporter is not the one of the fixture
