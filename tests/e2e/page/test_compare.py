"""The chart beside others: the limit, attempts and rebases, another run, and what can be saved of it."""

import copy
import csv
import io
import re
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import expect

from tests.e2e.page.desk import MakeReporter, OpenDesk, Reporter

pytestmark = pytest.mark.programs("chromium")


@pytest.mark.parametrize(("limit", "place"), [(2.0, "line"), (1e6, "above"), (1e-6, "below"), (None, "none")])
def test_norm_uses_the_height_whatever_the_limit(
    open_desk: OpenDesk, reporter: MakeReporter, limit: float | None, place: str
) -> None:
    """A limit near the norms is a line; one far away is an arrow, and does not stretch the axis."""
    desk, training = open_desk(), reporter(f"limit-{place}")
    training.job.gauges["gradient_norm_limit"] = limit
    if limit is None:
        del training.job.gauges["gradient_norm_limit"]
    for step in range(200):
        training.job.step("applied", 1.0 + step % 10 / 10)
    training.send()
    desk.open(training.run)
    expect(desk.chart()).to_have_attribute("data-limit", place)
    expect(desk.chart()).to_have_attribute("data-scale", "1 2" if limit == 2.0 else "1 1.9")


def test_a_spike_does_not_flatten_the_others(open_desk: OpenDesk, reporter: MakeReporter) -> None:
    """It is marked at the edge, and the axis keeps to the other steps."""
    desk, training = open_desk(), reporter()
    for step in range(500):
        training.job.step("applied", 1e9 if step == 250 else 1.0 + step % 10 / 10)
    training.send()
    desk.open(training.run)
    expect(desk.chart()).to_have_attribute("data-beyond", "1")
    low, high = map(float, (desk.chart().get_attribute("data-scale") or "").split())
    assert 0.5 < low <= 1.0
    assert 1.9 <= high < 10


def resume(training: Reporter, attempt: str, at: int) -> None:
    """Start another attempt of the job from a step at which all steps were applied."""
    job = training.job
    outcomes = {**dict.fromkeys(job.totals["outcomes"], 0), "applied": at}
    back = {
        **job.totals,
        "steps": at,
        "gradient_steps": at,
        "not_finite_steps": 0,
        "outcomes": outcomes,
        "parameters": {},
    }
    job.incarnation, job.attempt, job.seq, job.totals, job.at_start = attempt, attempt, 0, back, copy.deepcopy(back)


def take(training: Reporter, count: int, norm: float) -> None:
    for _ in range(count):
        training.job.step("applied", norm)
    training.send()


def test_attempts_and_rebases_are_marked(open_desk: OpenDesk, reporter: MakeReporter) -> None:
    """Along both axes, where each began; what happened later comes by the stream."""
    desk, training = open_desk(), reporter()
    take(training, 40, 1.0)
    training.send("failed")
    resume(training, "again", 30)
    take(training, 30, 1.0)
    page = desk.open(training.run)
    expect(desk.chart()).to_have_attribute("data-happened", "attempt 2 from 30")
    training.job.gauges["guard_rebases"] = 0
    take(training, 5, 1.0)
    training.job.gauges["guard_rebases"] = 1
    take(training, 5, 2.0)
    expect(desk.chart()).to_have_attribute("data-happened", "attempt 2 from 30; rebase, limit 50")
    page.get_by_role("button", name="by time").click()
    expect(desk.chart()).to_have_attribute("data-happened", re.compile("attempt 2 from 30"))


def test_another_run_and_an_earlier_attempt_are_drawn_beside(open_desk: OpenDesk, reporter: MakeReporter) -> None:
    """The choice is in the address, and the legend names it. A run that does not exist is said."""
    desk, training, other = open_desk(), reporter(), reporter("the-other-run", incarnation="o1")
    take(other, 25, 3.0)
    training.send("starting")
    take(training, 40, 1.0)
    resume(training, "again", 30)
    training.send("starting")
    take(training, 30, 1.5)
    page = desk.open(training.run)
    chart, choice = desk.chart(), page.get_by_label("Compare with another run or attempt")
    expect(chart).to_have_attribute("data-overlay", "0")
    choice.select_option("run:the-other-run")
    expect(chart).to_have_attribute("data-overlay", "25")
    page.wait_for_url(re.compile(r"compare=run%3Athe-other-run"))
    page.reload()
    expect(chart).to_have_attribute("data-overlay", "25")
    expect(page.locator(".legend [data-key=overlay]")).to_have_text("the-other-run")
    choice.select_option("attempt:a1")
    expect(chart).to_have_attribute("data-overlay", "40")
    page.get_by_role("button", name="by time").click()
    expect(choice).to_be_disabled()
    expect(chart).to_have_attribute("data-overlay", "0")
    desk.expected = re.compile("status of 404")
    desk.open(training.run, compare="run:nobody")
    expect(page.locator(".legend [data-key=overlay]")).to_have_text("nobody: no steps found")
    desk.open(training.run, compare="nonsense")
    expect(desk.part("notices")).to_contain_text("compare=nonsense is not")


def test_chart_and_steps_are_saved(open_desk: OpenDesk, reporter: MakeReporter, tmp_path: Path) -> None:
    """The CSV is that of the API for the steps in view; the picture has the size of the charts."""
    desk, training = open_desk(), reporter()
    training.good(30)
    training.bad(w=1)
    page = desk.open(training.run, **{"from": "5", "to": "31"})
    expect(desk.chart()).to_have_attribute("data-marked", "31")
    with page.expect_download() as saved:
        page.get_by_role("button", name="CSV").click()
    assert saved.value.suggested_filename == f"{training.run}-steps.csv"
    saved.value.save_as(tmp_path / "steps.csv")
    text = (tmp_path / "steps.csv").read_bytes().decode()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [int(row["step"]) for row in rows] == list(range(5, 32))
    path = page.locator("#norm a.json").get_attribute("href")
    assert text == httpx.get(f"{desk.url}{path}", headers={"accept": "text/csv"}, trust_env=False).text
    with page.expect_download() as saved:
        page.get_by_role("button", name="PNG").click()
    assert saved.value.suggested_filename == f"{training.run}.png"
    saved.value.save_as(tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")


def test_keys_walk_over_the_steps(open_desk: OpenDesk, reporter: MakeReporter) -> None:
    """With Shift the arrows go from step to step, Home and End to the ends of the view."""
    desk, training = open_desk(), reporter()
    training.good(20)
    training.bad(w=1)
    training.good(20)
    page = desk.open(training.run)
    expect(desk.chart()).to_have_attribute("data-marked", "21")
    readout = page.locator("#norm .readout")
    page.get_by_label("Gradient norm over steps").focus()
    for key, step in [("ArrowLeft", 21), ("Shift+ArrowRight", 22), ("Shift+ArrowRight", 23), ("Home", 1), ("End", 41)]:
        page.keyboard.press(key)
        expect(readout).to_contain_text(f"Step {step} ")
    expect(readout).to_contain_text("limit now 50")
