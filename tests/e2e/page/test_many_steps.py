"""Many steps in view: the band, the strip and the readout say exactly what the steps say."""

import json
import re
import statistics
from collections import Counter
from typing import Any

import httpx
import pytest
from playwright.sync_api import expect

from tests.e2e.page.desk import Desk, MakeReporter, OpenDesk, Reporter
from tests.exporter.running import START, TurnedClock

pytestmark = pytest.mark.programs("chromium")

STEPS = 6_000


def norm_of(step: int) -> float:
    return 1.0 + (step * 7919 % 997) / 1000


def kind_of(step: int) -> str:
    return "skipped_large" if step % 500 == 7 else "skipped_not_finite" if 3000 <= step < 3040 else "applied"


def take(training: Reporter, first: int, last: int) -> None:
    """Take these steps, one in a tenth of a second, and send reports."""
    for step in range(first, last + 1):
        training.job.clock.advance(0.1)  # type: ignore[attr-defined]  # it is a TurnedClock
        kind = kind_of(step)
        if kind == "skipped_not_finite":
            training.job.step(kind, "NaN", w=1)
        else:
            training.job.step(kind, 90.0 if kind == "skipped_large" else norm_of(step))
        if step % 4_000 == 0:
            training.send()
    training.send()


@pytest.fixture
def training(reporter: MakeReporter) -> Reporter:
    """A run of many steps."""
    made = reporter(clock=TurnedClock())
    take(made, 1, STEPS)
    return made


COUNTED = """async ([first, last]) => {
    const { bucketsOf } = await import("/page/buckets.js");
    const { Steps, AXES } = await import("/page/steps.js");
    const [run] = [new URLSearchParams(location.search).get("run")];
    const get = async (path) => (await fetch(path)).json();
    const answer = await get(`/v1/runs/${run}/steps?buckets=600&points=4&until=${first}`);
    const records = new Steps();
    records.add((await get(`/v1/runs/${run}/steps?points=20000`)).columns);
    const buckets = bucketsOf({ answer: answer.buckets, open: true, steps: 0 }, records);
    return JSON.stringify(buckets);
}"""


def parts_of(buckets: dict[str, Any], last: int) -> None:
    """Each bucket has what its steps have, and all steps are in a bucket."""
    assert sum(buckets["count"]) == last
    for i, (begin, end) in enumerate(zip(buckets["from"], buckets["to"], strict=True)):
        steps = [step for step in range(1, last + 1) if begin < step < end]
        assert buckets["count"][i] == len(steps)
        kinds = {kind: column[i] for kind, column in buckets["kinds"].items() if column[i]}
        assert kinds == Counter(kind_of(step) for step in steps)
        norms = [
            90.0 if kind_of(s) == "skipped_large" else norm_of(s) for s in steps if kind_of(s) != "skipped_not_finite"
        ]
        found = [buckets[name][i] for name in ("low", "middle", "high")]
        assert found == ([min(norms), statistics.median_low(norms), max(norms)] if norms else [None] * 3)


def test_buckets_and_the_records_after_them_are_exact(open_desk: OpenDesk, training: Reporter) -> None:
    """An answer up to step 4,500, continued with records as they come by the stream."""
    page = open_desk().open(training.run, window="all")
    parts_of(json.loads(page.evaluate(COUNTED, [4_500, STEPS])), STEPS)


def readout_at(desk: Desk, position: float) -> str:
    """The readout with the pointer at a position on the axis."""
    desk.part("norm").scroll_into_view_if_needed()
    box = desk.page.locator("#norm .u-over").bounding_box()
    assert box is not None
    low, high = map(float, (desk.chart().get_attribute("data-range") or "").split())
    desk.page.mouse.move(box["x"] + box["width"] * (position - low) / (high - low), box["y"] + 60)
    readout = desk.page.locator("#norm .readout")
    expect(readout).to_contain_text(re.compile(r"(median|no finite norm).* · limit now 50$"))
    return readout.text_content() or ""


def test_readout_of_a_bucket_is_that_of_the_json(open_desk: OpenDesk, training: Reporter) -> None:
    """Its steps, their norms and their kinds; a zoom shows each step again."""
    desk = open_desk()
    page = desk.open(training.run, window="all")
    chart = desk.chart()
    expect(chart).to_have_attribute("data-buckets", re.compile(r"^[1-9]\d+$"))
    expect(chart).to_have_attribute("data-marks", "51")
    expect(page.locator("#norm-summary")).to_contain_text(
        "Steps 1 to 6,000: 51 bad steps (39 skipped, non-finite; 12 skipped, large norm)"
    )
    answer = httpx.get(f"{desk.url}/v1/runs/{training.run}/steps?buckets=600", trust_env=False).json()["buckets"]
    for i in (3, 300, 301, 580):
        text = readout_at(desk, (answer["since"][i] + answer["until"][i]) / 2)
        assert text.startswith(f"Steps {answer['since'][i]:,} to {answer['until'][i]:,} · ")
        for kind, word in (("applied", "gradient step"), ("skipped_not_finite", "skipped, non-finite")):
            count = answer["kinds"][kind][i]
            assert (f" · {count} {word}" in text) == bool(count), text
        if answer["norm_median"][i] is not None:
            assert f"median {answer['norm_median'][i]:.3g} " in text
        assert text.endswith("limit now 50")
    desk.zoom(0.2, 0.3)
    expect(chart).to_have_attribute("data-buckets", "0")


def test_steps_that_come_are_added_to_the_buckets(open_desk: OpenDesk, training: Reporter) -> None:
    """The summary counts each of them; so it does after another thousand, and on the time axis."""
    desk = open_desk()
    page = desk.open(training.run, window="all")
    summary = page.locator("#norm-summary")
    expect(summary).to_contain_text("Steps 1 to 6,000: 51 bad steps")
    take(training, STEPS + 1, STEPS + 700)
    expect(summary).to_contain_text("Steps 1 to 6,700: 53 bad steps (39 skipped, non-finite; 14 skipped, large norm)")
    page.get_by_role("button", name="by time").click()
    expect(summary).to_contain_text(": 53 bad steps (39 skipped, non-finite; 14 skipped, large norm)")
    expect(desk.chart()).to_have_attribute("data-buckets", re.compile(r"^[1-9]\d+$"))
    take(training, STEPS + 701, STEPS + 1_400)
    expect(summary).to_contain_text(": 54 bad steps")
    assert "skipped" in readout_at(desk, START + 0.1 * 3020)


def test_strip_shows_the_share_of_each_kind(open_desk: OpenDesk, reporter: MakeReporter) -> None:
    """Of steps that are skipped half of the time, half of the strip is red."""
    desk, training = open_desk(), reporter()
    for step in range(1, 3001):
        if step % 2:
            training.job.step("applied", 1.0)
        else:
            training.job.step("skipped_not_finite", "NaN", w=1)
    training.send()
    desk.open(training.run, window="all")
    expect(desk.chart()).to_have_attribute("data-buckets", re.compile(r"^[1-9]\d+$"))
    heights = desk.page.evaluate(STRIP)
    assert heights["--kind-skipped-not-finite"] == pytest.approx(0.5, abs=0.07)
    assert heights["--kind-applied"] == pytest.approx(0.5, abs=0.07)


STRIP = """() => {
    const canvas = document.querySelector(".chart canvas");
    const over = document.querySelector(".chart .u-over").getBoundingClientRect();
    const box = canvas.getBoundingClientRect();
    const part = [over.left - box.left + over.width * 0.2, over.bottom - box.top + 6, over.width * 0.6, 16];
    const { data } = canvas.getContext("2d").getImageData(...part.map((v) => Math.round(v * devicePixelRatio)));
    const share = (name) => {
      const wanted = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
      const [r, g, b] = [1, 3, 5].map((i) => parseInt(wanted.slice(i, i + 2), 16));
      let found = 0;
      for (let i = 0; i < data.length; i += 4) found += Math.hypot(data[i] - r, data[i + 1] - g, data[i + 2] - b) < 20;
      return found / (data.length / 4);
    };
    return Object.fromEntries(["--kind-skipped-not-finite", "--kind-applied"].map((name) => [name, share(name)]));
}"""


PICTURED = """async () => {
    const { createSpark } = await import("/page/panels/spark.js");
    const { Steps } = await import("/page/steps.js");
    const run = new URLSearchParams(location.search).get("run");
    const records = new Steps();
    records.add((await (await fetch(`/v1/runs/${run}/steps?points=60`)).json()).columns);
    const node = document.createElement("div");
    createSpark(node)(records);
    const bad = records.kind.filter((kind) => kind !== "applied");
    return [bad.length, node.querySelectorAll("path")[1].getAttribute("d")];
}"""


def test_the_small_picture_has_no_bad_step_from_before_the_last_60(open_desk: OpenDesk, training: Reporter) -> None:
    """Of many steps the page holds mostly bad ones; the last 60 steps of this run are good."""
    bad, ticks = open_desk().open(training.run).evaluate(PICTURED)
    assert bad > 10
    assert ticks == ""
