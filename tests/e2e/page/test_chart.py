"""The chart: marks of bad steps, zoom, keyboard, and the records held of a long run."""

import json
import random
import re
from typing import Any

import pytest
from playwright.sync_api import Route, expect

from tests.e2e.page.desk import BAD, MakeReporter, OpenDesk, Reporter

pytestmark = pytest.mark.programs("chromium")


def random_steps(training: Reporter, seed: int, count: int) -> dict[int, str]:
    """Report steps of every outcome in random order and in pieces of random length; return the bad ones by step."""
    rng = random.Random(seed)
    truth: dict[int, str] = {}
    for step in range(1, count + 1):
        outcome = rng.choice(BAD) if rng.random() < 0.08 else "applied"
        if outcome in {"skipped_not_finite", "accepted_not_finite"}:
            training.job.step(outcome, rng.choice(["NaN", "Infinity"]), w=1)
        else:
            training.job.step(outcome, rng.lognormvariate(0, 2))
        if outcome != "applied":
            truth[step] = outcome
        if rng.random() < 0.02:
            training.send()
    training.send()
    return truth


@pytest.mark.parametrize("seed", [1, 2])
def test_chart_marks_exactly_the_bad_steps(open_desk: OpenDesk, reporter: MakeReporter, seed: int) -> None:
    """The painted marks are the bad steps, whether they came by the stream or when the page was loaded."""
    desk, training = open_desk(), reporter()
    training.send("starting")
    page = desk.open(training.run, window="all")
    expect(page.locator(".connection.live")).to_be_visible()
    truth = random_steps(training, seed, 700)
    expect(desk.chart()).to_have_attribute("data-marked", " ".join(map(str, sorted(truth))))
    page.get_by_role("button", name="last 200").click()
    recent = sorted(step for step in truth if step > 500)
    expect(desk.chart()).to_have_attribute("data-marked", " ".join(map(str, recent)))
    expect(desk.part("norm").locator("p")).to_contain_text(f"{len(recent)} bad steps")
    page.reload()
    expect(desk.chart()).to_have_attribute("data-marked", " ".join(map(str, recent)))


MARKS_IN_PIXELS = """(colours) => {
    const canvas = document.querySelector(".chart canvas");
    const over = document.querySelector(".chart .u-over").getBoundingClientRect();
    const box = canvas.getBoundingClientRect();
    const y = Math.round((over.bottom - box.top - 7.5) * devicePixelRatio);
    const { data } = canvas.getContext("2d").getImageData(0, y, canvas.width, 1);
    return colours.map((colour) => {
      const wanted = getComputedStyle(document.documentElement).getPropertyValue(colour).trim();
      const [r, g, b] = [1, 3, 5].map((i) => parseInt(wanted.slice(i, i + 2), 16));
      let found = 0, inside = false;
      for (let i = 0; i < data.length; i += 4) {
        const hit = data[i + 3] > 200 && Math.hypot(data[i] - r, data[i + 1] - g, data[i + 2] - b) < 40;
        if (hit && !inside) found += 1;
        inside = hit;
      }
      return found;
    });
}"""


def test_marks_are_painted_on_the_canvas(open_desk: OpenDesk, reporter: MakeReporter) -> None:
    """The row of marks has one spot of the right colour for each bad step."""
    desk, training = open_desk(), reporter()
    for step in range(1, 201):
        if step % 40 == 10:
            training.job.step("skipped_not_finite", "NaN", w=1)
        elif step % 40 == 30:
            training.job.step("skipped_large", 77.0)
        else:
            training.job.step("applied", 1.0)
    training.send()
    page = desk.open(training.run)
    expect(desk.chart()).to_have_attribute("data-marks", "10")
    assert page.evaluate(MARKS_IN_PIXELS, ["--kind-skipped-not-finite", "--kind-skipped-large"]) == [5, 5]


def test_address_holds_the_view_and_keys_move_it(open_desk: OpenDesk, reporter: MakeReporter) -> None:
    """A link opens its run and range. Arrow keys go from bad step to bad step. Escape follows the run again."""
    desk, training = open_desk(), reporter()
    reporter("another").good(5)
    training.good(20)
    training.bad(w=1)
    training.good(300)
    training.bad(v=1)
    training.good(20)
    page = desk.open(training.run, **{"from": "10", "to": "40"})
    expect(page.get_by_role("heading", name=training.run)).to_be_visible()
    expect(desk.chart()).to_have_attribute("data-marked", "21")
    expect(page.get_by_role("button", name="Follow", exact=True)).to_be_visible()

    page.get_by_label("Gradient norm over steps").focus()
    page.keyboard.press("Escape")
    expect(desk.chart()).to_have_attribute("data-marked", "21 322")
    expect(page.get_by_role("button", name="Follow", exact=True)).to_be_hidden()
    page.keyboard.press("ArrowLeft")
    expect(page.locator(".readout")).to_contain_text("Step 322")
    expect(page.locator(".readout")).to_contain_text("v (1 value)")
    page.keyboard.press("ArrowLeft")
    expect(page.locator(".readout")).to_contain_text("Step 21")
    page.wait_for_url(re.compile(r"step=21\b"))

    desk.every_event().get_by_role("button", name="step 322").first.click()
    expect(desk.chart()).to_have_attribute("data-marked", "322")
    desk.row("another").get_by_role("link").click()
    expect(page.get_by_role("heading", name="another")).to_be_visible()
    page.wait_for_url(re.compile(r"\?run=another$"))
    page.go_back()
    expect(page.get_by_role("heading", name=training.run)).to_be_visible()


def test_dragging_zooms_and_stops_following(open_desk: OpenDesk, reporter: MakeReporter) -> None:
    """The chart shows the dragged range while new steps arrive; Follow returns to the newest steps."""
    desk, training = open_desk(), reporter()
    training.good(99)
    training.bad(w=1)
    training.good(100)
    page = desk.open(training.run)
    expect(desk.chart()).to_have_attribute("data-marked", "100")
    desk.zoom(0.6, 0.9)
    page.wait_for_url(re.compile(r"from=\d+&to=\d+"))
    expect(desk.chart()).to_have_attribute("data-marks", "0")
    training.bad(w=1)
    expect(page.locator(".tile.steps .value")).to_have_text("201")
    expect(desk.chart()).to_have_attribute("data-marks", "0")
    page.get_by_role("button", name="Follow", exact=True).click()
    expect(desk.chart()).to_have_attribute("data-marked", "100 201")


def test_page_works_without_the_chart_library(open_desk: OpenDesk, reporter: MakeReporter) -> None:
    """Without uPlot the page shows a message in place of the chart, and everything else."""
    desk, training = open_desk(), reporter()
    desk.expected = re.compile("status of 404")
    desk.page.route("**/page/vendor/*", not_found)
    training.good(5)
    training.bad(w=2)
    page = desk.open(training.run)
    desk.health("skipping")
    expect(desk.chart()).to_contain_text("There is no chart")
    expect(page.locator(".tile.streak .value")).to_have_text("1")
    page.get_by_role("button", name="◂ bad step").click()
    expect(page.locator(".readout")).to_contain_text("Step 6")


def not_found(route: Route) -> None:
    route.fulfill(status=404)


def test_records_do_not_depend_on_the_order_of_arrival(open_desk: OpenDesk) -> None:
    """Pieces in any order give the same records; if there are too many, good records are dropped first.

    On the time axis a repeated step is there twice.
    """
    page = open_desk().open()
    rng = random.Random(3)
    steps = list(range(1, 400))
    records: list[dict[str, Any]] = [
        {
            "step": step,
            "time": 1e9 + step,
            "outcome": rng.choice(("applied", "accumulated", *BAD)),
            "finite": rng.random() < 0.9,
            "norm": rng.choice([rng.random(), "NaN", "Infinity", 0.0]),
            "mini_step": rng.choice([None, 0, 1]),
        }
        for step in steps
    ]

    def columns(chosen: list[dict[str, Any]]) -> dict[str, list[Any]]:
        return {name: [record[name] for record in chosen] for name in records[0]}

    def held(pieces: list[dict[str, list[Any]]], limit: int = 20_000, axis: str = "step") -> Any:
        script = """async ([pieces, limit, axis]) => {
            const { AXES, Steps } = await import("/page/steps.js");
            const steps = new Steps(limit, AXES[axis]);
            for (const piece of pieces) steps.add(piece);
            return JSON.stringify([steps.step, steps.time, steps.kind, steps.norm,
                                   steps.raw.map(String), steps.mini, steps.bad.map((i) => steps.step[i])]);
        }"""
        return json.loads(page.evaluate(script, [pieces, limit, axis]))

    whole = held([columns(records)])
    assert whole[0] == steps
    bad = [r["step"] for r in records if r["outcome"] in BAD or not r["finite"]]
    assert whole[-1] == bad
    for _ in range(5):
        shuffled = records + rng.sample(records, 50)
        rng.shuffle(shuffled)
        cuts = sorted(rng.sample(range(1, len(shuffled)), 6))
        pieces = [columns(shuffled[a:b]) for a, b in zip([0, *cuts], [*cuts, len(shuffled)], strict=True)]
        assert held(pieces) == whole
        assert held(pieces, axis="time") == whole

    again = [
        record | {"time": record["time"] + 1000, "outcome": "applied", "finite": True} for record in records[200:250]
    ]
    for pieces in ([columns(records), columns(again)], [columns(again), columns(records)]):
        repeated = held(pieces)
        assert repeated[0] == steps
        assert repeated[2][200:250] == ["applied"] * 50, (
            "the later record of a step counts, whichever report came first"
        )
        along_time = held(pieces, axis="time")
        assert along_time[0] == [*steps, *steps[200:250]]
        assert along_time[1] == sorted(record["time"] for record in [*records, *again])

    pieces = [columns(records[i : i + 10]) for i in range(0, len(records), 10)]
    for axis in ("step", "time"):
        bounded = held(pieces, limit=len(bad) + 60, axis=axis)
        assert len(bounded[0]) <= len(bad) + 60
        assert bounded[-1] == bad[-len(bounded[-1]) :]
        assert len(bounded[-1]) >= 0.75 * len(bad)
        assert bounded[0][-1] == steps[-1]


WINDOW_HEIGHTS = """() => {
    const canvas = document.querySelector(".chart canvas");
    const over = document.querySelector(".chart .u-over").getBoundingClientRect();
    const box = canvas.getBoundingClientRect();
    const part = [over.left - box.left, over.bottom - box.top + 28, over.width, 16];
    const pixels = part.map((v) => Math.round(v * devicePixelRatio));
    const { data, width, height } = canvas.getContext("2d").getImageData(...pixels);
    const ground = getComputedStyle(document.documentElement).getPropertyValue("--sunken").trim();
    const [r, g, b] = [1, 3, 5].map((i) => parseInt(ground.slice(i, i + 2), 16));
    const seen = new Set();
    for (let x = 0; x < width; x += 1) {
      let full = 0;
      for (let y = 0; y < height; y += 1) {
        const i = 4 * (y * width + x);
        full += Math.hypot(data[i] - r, data[i + 1] - g, data[i + 2] - b) > 20;
      }
      seen.add(Math.round((4 * full) / height));
    }
    return [...seen].sort();
}"""


def test_window_strip_shows_how_full_the_window_is(open_desk: OpenDesk, reporter: MakeReporter) -> None:
    """Mini-steps 1, 2 and 3 of 4 and the gradient step fill 1/4, 1/2, 3/4 and all of the strip's height."""
    desk, training = open_desk(), reporter()
    training.good(40)
    page = desk.open(training.run)
    expect(page.locator("#norm .readout")).to_contain_text("Last step 40")
    desk.wait_until(WINDOW_HEIGHTS, lambda heights: [height for height in heights if height] == [1, 2, 3, 4])
