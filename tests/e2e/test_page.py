"""The live page, in a real Chromium, on a real exporter that a real HTTP client reports to."""

import dataclasses
import json
import random
import re
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlencode, urlsplit

import httpx
import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Dialog,
    Locator,
    Page,
    Request,
    Route,
    expect,
    sync_playwright,
)

from tests.conftest import RunningExporter
from tests.exporter.running import Job

pytestmark = pytest.mark.programs("chromium")

DESK = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}
GUARD = {"guard_not_finite_limit": 5, "every_k": 4, "gradient_norm_limit": 50.0}
BAD = ("skipped_not_finite", "skipped_large", "skipped_other", "accepted_not_finite")
# What the browser itself says while nothing listens on the exporter's port.
GONE = re.compile(
    r"Failed to load resource: net::ERR_(CONNECTION_REFUSED|INCOMPLETE_CHUNKED_ENCODING|CONNECTION_RESET)"
)
WATCH = """
    window.loadedOnce = true;
    window.refused = [];
    document.addEventListener("securitypolicyviolation", (e) => refused.push(`${e.violatedDirective} ${e.blockedURI}`));
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One Chromium for all tests; each has its own context."""
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=[*arguments, "--disable-component-update", "--disable-sync"]
        )
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningExporter]:
    """One exporter for the tests that look at their own run only."""
    running = RunningExporter(tmp_path_factory.mktemp("page") / "data")
    yield running
    running.stop()


@pytest.fixture
def url(request: pytest.FixtureRequest) -> str:
    """Where the exporter is: the shared one, unless the test asks for `exporter`, one of its own."""
    name = "exporter" if "exporter" in request.fixturenames else "shared"
    running: RunningExporter = request.getfixturevalue(name)
    return running.url


@dataclasses.dataclass
class Desk:
    """An operator's browser tab, and what went wrong in it."""

    page: Page
    url: str
    problems: list[str]
    expected: re.Pattern[str] | None = None
    """What the console may say although it is an error."""

    def open(self, run: str | None = None, **query: str) -> Page:
        wanted = {"run": run, **query} if run else query
        self.page.goto(f"{self.url}/?{urlencode(wanted)}")
        return self.page

    def part(self, name: str) -> Locator:
        return self.page.locator(f"#{name}")

    def health(self, name: str) -> None:
        """Waits until the verdict is this health."""
        expect(self.part("verdict")).to_have_attribute("data-health", name)

    def chart(self) -> Locator:
        return self.page.locator(".chart")

    def check(self) -> None:
        """Nothing was refused, nothing failed, and the page was loaded once."""
        assert self.page.evaluate("window.refused") == []
        unexpected = [said for said in self.problems if not (self.expected and self.expected.search(said))]
        assert unexpected == []


OpenDesk = Callable[..., Desk]


@pytest.fixture
def open_desk(browser: Browser, url: str) -> Iterator[OpenDesk]:
    """Opens tabs; after the test each must have asked nobody but the exporter, broken no policy and logged no error."""
    opened: list[tuple[BrowserContext, Desk]] = []

    def open_(viewport: dict[str, int] = DESK, scheme: str = "light") -> Desk:
        context = browser.new_context(viewport=viewport, color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]  # playwright's TypedDict and Literal
        context.set_default_timeout(20_000)
        page = context.new_page()
        page.add_init_script(WATCH)
        desk = Desk(page, url, [])

        def asked(request: Request) -> None:
            target = urlsplit(request.url)
            if target.scheme != "data" and f"{target.scheme}://{target.netloc}" != url:
                desk.problems.append(f"another origin: {request.url}")

        def logged(said: ConsoleMessage) -> None:
            if said.type in {"error", "warning"}:
                desk.problems.append(said.text)

        def asks(dialog: Dialog) -> None:
            desk.problems.append(f"dialog: {dialog.message}")
            dialog.dismiss()

        page.on("request", asked)
        page.on("pageerror", lambda error: desk.problems.append(f"exception: {error}"))
        page.on("console", logged)
        page.on("dialog", asks)
        opened.append((context, desk))
        return desk

    expect.set_options(timeout=20_000)
    yield open_
    for context, desk in opened:
        desk.check()
        context.close()


@dataclasses.dataclass
class Reporter:
    """A job that reports to the exporter."""

    job: Job
    url: str

    @property
    def run(self) -> str:
        return self.job.run

    def send(self, state: str = "running") -> None:
        answer = httpx.post(f"{self.url}/v1/reports", json=self.job.report(state), trust_env=False)
        assert answer.status_code == 200, answer.text

    def good(self, count: int = 1, norm: float = 0.8) -> None:
        """Steps of an accumulation window of four, with finite gradients; then a report."""
        for _ in range(count):
            mini = (self.job.gauges.get("mini_step", 0) + 1) % 4
            self.job.gauges |= {"mini_step": mini, "guard_not_finite_count": 0}
            self.job.step("accumulated" if mini else "applied", norm)
        self.send()

    def bad(self, **offenders: int) -> None:
        """One step that the guard rejects; then a report."""
        self.job.gauges["guard_not_finite_count"] = self.job.gauges.get("guard_not_finite_count", 0) + 1
        self.job.step("skipped_not_finite", "NaN", **offenders)
        self.send()

    def large(self, norm: float = 90.0) -> None:
        self.job.step("skipped_large", norm)
        self.send()


@pytest.fixture
def reporter(url: str, request: pytest.FixtureRequest) -> Callable[..., Reporter]:
    """Makes jobs; the run is called after the test unless it says otherwise."""
    name = re.sub(r"\W+", "-", request.node.name)

    def make(run: str = name, **job: Any) -> Reporter:
        # A minute between reports: none of these jobs goes stale while its test looks.
        made = Reporter(Job(run=run, clock=time.time, interval=60, **job), url)
        made.job.gauges |= {**GUARD, "mini_step": 0, "guard_not_finite_count": 0}
        return made

    return make


@pytest.mark.usefixtures("exporter")
def test_an_open_page_follows_the_reports_without_being_loaded_again(
    open_desk: OpenDesk, reporter: Callable[..., Reporter]
) -> None:
    """From an exporter with nothing in it to a streak and its end: every panel says what the job's own counters say."""
    desk, training = open_desk(), reporter("char-lm")
    page = desk.open()
    expect(page.get_by_role("heading", name="No run has reported yet")).to_be_visible()
    expect(desk.part("empty")).to_contain_text(desk.url)
    page.evaluate("window.loadedOnce = 'still the same page'")

    training.good(42)
    desk.health("ok")
    expect(page.get_by_role("heading", name="char-lm")).to_be_visible()
    expect(page).to_have_title("✓ Healthy · char-lm · optwrap")
    accumulation = page.locator(".tile.accumulation")
    expect(accumulation.locator(".value")).to_have_text("2")
    expect(accumulation.get_by_role("meter")).to_have_attribute("aria-valuetext", "2 of 4")
    expect(accumulation).to_contain_text("10 gradient steps")

    training.large()
    training.bad(decoder__layer_3__mlp__w=262_144)
    training.bad(decoder__layer_3__mlp__w=4, embed__table=9)
    desk.health("skipping")
    expect(page).to_have_title("▲ Skipping · char-lm · optwrap")
    assert page.locator("#favicon").get_attribute("data-tier") == "warning"
    streak = page.locator(".tile.streak")
    expect(streak.locator(".value")).to_have_text("2")
    expect(streak.get_by_role("meter")).to_have_attribute("aria-valuetext", "2 of 5")
    expect(page.locator("[data-reason=not_finite] b")).to_have_text("2")
    expect(page.locator("[data-reason=large] b")).to_have_text("1")
    expect(page.locator("[data-reason=other] b")).to_have_text("0")
    expect(page.locator(".tile.norm-last .value")).to_have_text("NaN")

    rows = desk.part("parameters").locator("tbody tr")
    expect(rows).to_have_count(2)
    worst = rows.first.locator("td")
    expect(worst).to_have_text(["firstdecoder/layer_3/mlp/w", "44", "45", "2", "262,148"])
    expect(rows.first.locator(".badge")).to_be_visible()
    expect(rows.nth(1).locator(".badge")).to_be_hidden()
    events = desk.part("events").locator("li")
    expect(events.filter(has_text="Skipped, not finite")).to_have_count(2)
    expect(events.filter(has_text="Skipped, large")).to_have_count(1)
    expect(events.first).to_contain_text("step 45")
    expect(events.filter(has_text="Streak began")).to_contain_text("step 44")

    training.good(3)
    desk.health("ok")
    expect(streak.locator(".value")).to_have_text("0")
    expect(streak).to_contain_text("longest 2")
    expect(desk.part("events").locator("li").first).to_contain_text("Streak ended")
    expect(page.locator(".tile.steps .value")).to_have_text("48")
    expect(desk.part("processes").locator("tbody tr")).to_have_count(1)
    expect(desk.part("processes").locator("tbody tr")).to_contain_text("node-0")
    training.send("finished")
    desk.health("finished")
    assert page.evaluate("window.loadedOnce") == "still the same page"


def random_steps(training: Reporter, seed: int, count: int) -> dict[int, str]:
    """Steps of every kind in random order, reported in pieces of random length; the bad ones by step."""
    rng = random.Random(seed)
    truth: dict[int, str] = {}
    for step in range(1, count + 1):
        verdict = rng.choice(BAD) if rng.random() < 0.08 else "applied"
        if verdict in {"skipped_not_finite", "accepted_not_finite"}:
            training.job.step(verdict, rng.choice(["NaN", "Infinity"]), w=1)
        else:
            training.job.step(verdict, rng.lognormvariate(0, 2))
        if verdict != "applied":
            truth[step] = verdict
        if rng.random() < 0.02:
            training.send()
    training.send()
    return truth


@pytest.mark.parametrize("seed", [1, 2])
def test_every_bad_step_is_marked_and_no_other(
    open_desk: OpenDesk, reporter: Callable[..., Reporter], seed: int
) -> None:
    """The marks that were painted are the steps that were bad, whether they came by the stream or by a later load."""
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


def test_the_marks_are_on_the_canvas(open_desk: OpenDesk, reporter: Callable[..., Reporter]) -> None:
    """Bad steps that stand apart are as many blots of their colour in the row of marks; the line has no gap."""
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


def test_an_exporter_that_dies_is_seen_and_its_return_needs_no_reload(
    open_desk: OpenDesk, reporter: Callable[..., Reporter], exporter: RunningExporter
) -> None:
    """While it is gone the page says so and that its figures are old; afterwards it shows everything, each once."""
    desk, training = open_desk(), reporter()
    desk.expected = GONE
    training.good(10)
    training.bad(w=3)
    page = desk.open()
    desk.health("skipping")
    page.evaluate("window.loadedOnce = 'still the same page'")
    exporter.kill9()
    expect(page.locator("#lost")).to_be_visible()
    expect(page.locator("#lost")).to_contain_text("No live data from the exporter")
    expect(page.locator("#connection")).to_contain_text("Disconnected")
    expect(page.locator("#verdict-word")).to_have_text("Last known: Skipping")
    expect(page).to_have_title("⚠ Disconnected · optwrap")

    exporter.restart()
    training.bad(w=4)
    training.good(5)
    expect(page.locator("#lost")).to_be_hidden()
    desk.health("ok")
    expect(page.locator(".tile.steps .value")).to_have_text("17")
    expect(desk.chart()).to_have_attribute("data-marked", "11 12")
    expect(desk.part("events").locator("li").filter(has_text="Skipped, not finite")).to_have_count(2)
    training.bad(w=5)
    expect(desk.chart()).to_have_attribute("data-marked", "11 12 18")
    assert page.evaluate("window.loadedOnce") == "still the same page"


HOSTILE = {
    "<img src=x onerror=alert(1)>": 4,
    "</script><script>alert(2)</script>": 3,
    '"><svg/onload=alert(3)>': 3,
    "javascript:alert(4)": 2,
    "a\u202egnp.exe": 2,
    "constructor": 2,
    "deep/" * 200 + "w": 1,
}


def test_hostile_names_are_shown_as_the_text_they_are(open_desk: OpenDesk, reporter: Callable[..., Reporter]) -> None:
    """Markup in a parameter's path stays text, what would turn the text around is written out, no width bursts."""
    for viewport in (DESK, PHONE):
        desk, training = open_desk(viewport), reporter(f"constructor-{viewport['width']}")
        training.good(3)
        training.bad(**HOSTILE)
        page = desk.open(training.run)
        rows = desk.part("parameters").locator("tbody tr")
        expect(rows).to_have_count(len(HOSTILE))
        shown = desk.part("parameters").locator("td bdi").all_text_contents()
        assert sorted(shown) == sorted(name.replace("\u202e", "\\u202e") for name in HOSTILE)
        expect(desk.part("events").locator("li").filter(has_text="Skipped, not finite").first).to_be_visible()
        assert page.locator("main img, main script").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.usefixtures("exporter")
def test_a_phone_shows_everything_without_scrolling_sideways(
    open_desk: OpenDesk, reporter: Callable[..., Reporter]
) -> None:
    """390 pixels are wide enough for the empty page, for one run, and for several."""
    fits = "document.documentElement.scrollWidth <= innerWidth"
    desk, training = open_desk(PHONE), reporter()
    page = desk.open()
    expect(desk.part("empty")).to_be_visible()
    assert page.evaluate(fits)
    training.good(50)
    training.bad(decoder__layer_3__self_attention__query__kernel=12)
    desk.health("skipping")
    expect(desk.chart()).to_have_attribute("data-marks", "1")
    assert page.evaluate(fits)
    reporter("a-rather-long-name-of-a-run.with-its-hyperparameters:lr-3e-4.bs-2048.seed-17").good(3)
    reporter("short").good(3)
    expect(page.locator("#runs a")).to_have_count(3)
    assert page.evaluate(fits)


def luminance(colour: str) -> float:
    """Relative luminance of `#rrggbb`, as WCAG 2 defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_light_and_in_dark(
    open_desk: OpenDesk, reporter: Callable[..., Reporter], scheme: str
) -> None:
    """Every colour of text has a contrast of 4.5 to 1 on what it stands on (WCAG AA); marks have 3 to 1."""
    desk, training = open_desk(scheme=scheme), reporter()
    training.good(90)
    training.bad(w=1)
    page = desk.open(training.run)
    desk.health("skipping")
    tiers = ["critical", "warning", "idle", "good"]
    pairs = [(tier, back, 4.5) for tier in tiers for back in (f"{tier}-back", "surface")]
    pairs += [("ink", f"{tier}-back", 4.5) for tier in tiers]
    pairs += [(text, back, 4.5) for text in ("ink", "muted", "link") for back in ("surface", "page")]
    pairs += [(f"kind-{kind.replace('_', '-')}", "surface", 3.0) for kind in (*BAD, "applied")]
    for text, back, least in pairs:
        front, behind = (
            luminance(
                page.evaluate("(n) => getComputedStyle(document.documentElement).getPropertyValue(n)", f"--{name}")
            )
            for name in (text, back)
        )
        contrast = (max(front, behind) + 0.05) / (min(front, behind) + 0.05)
        assert contrast >= least, f"{text} on {back}, {scheme}: {contrast:.2f}"
    background = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background))) > 384) == (scheme == "light")


def test_without_the_chart_library_everything_else_works(
    open_desk: OpenDesk, reporter: Callable[..., Reporter]
) -> None:
    """An installation that lacks uPlot says so where the chart would be, and shows the rest."""
    desk, training = open_desk(), reporter()
    desk.expected = re.compile("status of 404")
    desk.page.route("**/page/vendor/*", not_found)
    training.good(5)
    training.bad(w=2)
    page = desk.open(training.run)
    desk.health("skipping")
    expect(desk.chart()).to_contain_text("No charts")
    expect(page.locator(".tile.streak .value")).to_have_text("1")
    page.get_by_role("button", name="◂ bad step").click()
    expect(page.locator(".readout")).to_contain_text("Step 6")


def not_found(route: Route) -> None:
    route.fulfill(status=404)


def test_the_address_carries_the_view_and_the_keyboard_moves_it(
    open_desk: OpenDesk, reporter: Callable[..., Reporter]
) -> None:
    """A link opens on its run and range; arrow keys go from bad step to bad step, Escape follows the run again."""
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
    expect(page.get_by_role("button", name="Follow")).to_be_visible()

    page.get_by_label("Gradient norm over steps").focus()
    page.keyboard.press("Escape")
    expect(desk.chart()).to_have_attribute("data-marked", "21 322")
    expect(page.get_by_role("button", name="Follow")).to_be_hidden()
    page.keyboard.press("ArrowLeft")
    expect(page.locator(".readout")).to_contain_text("Step 322")
    expect(page.locator(".readout")).to_contain_text("v (1 value)")
    page.keyboard.press("ArrowLeft")
    expect(page.locator(".readout")).to_contain_text("Step 21")
    page.wait_for_url(re.compile(r"step=21\b"))

    desk.part("events").get_by_role("button", name="step 322").first.click()
    expect(desk.chart()).to_have_attribute("data-marked", "322")
    page.locator("#runs a").filter(has_text="another").click()
    expect(page.get_by_role("heading", name="another")).to_be_visible()
    page.wait_for_url(re.compile(r"\?run=another$"))
    page.go_back()
    expect(page.get_by_role("heading", name=training.run)).to_be_visible()


def test_dragging_over_the_chart_zooms_and_stops_following(
    open_desk: OpenDesk, reporter: Callable[..., Reporter]
) -> None:
    """What was dragged over is what is shown, though new steps arrive; Follow goes back to the newest."""
    desk, training = open_desk(), reporter()
    training.good(99)
    training.bad(w=1)
    training.good(100)
    page = desk.open(training.run)
    expect(desk.chart()).to_have_attribute("data-marked", "100")
    box = page.locator(".u-over").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.9 * box["width"], box["y"] + 60, steps=8)
    expect(page.locator(".u-select")).not_to_have_css("width", "0px")
    page.mouse.up()
    page.wait_for_url(re.compile(r"from=\d+&to=\d+"))
    expect(desk.chart()).to_have_attribute("data-marks", "0")
    training.bad(w=1)
    expect(page.locator(".tile.steps .value")).to_have_text("201")
    expect(desk.chart()).to_have_attribute("data-marks", "0")
    page.get_by_role("button", name="Follow").click()
    expect(desk.chart()).to_have_attribute("data-marked", "100 201")


def test_an_unknown_run_is_said_in_words_and_appears_when_it_reports(
    open_desk: OpenDesk, reporter: Callable[..., Reporter]
) -> None:
    """A link to a run that nobody knows is no empty page."""
    desk, training = open_desk(), reporter("tomorrow")
    desk.expected = re.compile("status of 404")
    page = desk.open("tomorrow")
    expect(page.get_by_role("heading", name="No run named tomorrow")).to_be_visible()
    training.good(4)
    desk.health("ok")
    expect(desk.part("missing")).to_be_hidden()


def test_processes_that_report_the_same_steps_are_counted_once(
    open_desk: OpenDesk, reporter: Callable[..., Reporter]
) -> None:
    """Two processes of one data-parallel job: one step's record, one event of each skip, two rows of processes."""
    desk = open_desk()
    both = [reporter(process=process, process_count=2) for process in (0, 1)]
    for training in both:
        training.good(8)
    page = desk.open(both[0].run)
    desk.health("ok")
    for training in both:
        training.bad(w=1)
    desk.health("skipping")
    expect(desk.part("processes").locator("tbody tr")).to_have_count(2)
    expect(desk.part("processes").locator(".status.warning")).to_have_count(2)
    expect(page.locator(".tile.steps .value")).to_have_text("9")
    expect(desk.chart()).to_have_attribute("data-marked", "9")
    expect(desk.part("events").locator("li").filter(has_text="Skipped")).to_have_count(1)


def test_records_may_come_in_any_order_and_any_pieces(open_desk: OpenDesk) -> None:
    """The records held are a function of the set of records that came; where they do not fit, good ones go first."""
    page = open_desk().open()
    rng = random.Random(3)
    steps = list(range(1, 400))
    records = [
        {
            "step": step,
            "time": 1e9 + step,
            "verdict": rng.choice(("applied", "accumulated", *BAD)),
            "finite": rng.random() < 0.9,
            "norm": rng.choice([rng.random(), "NaN", "Infinity", 0.0]),
            "mini_step": rng.choice([None, 0, 1]),
        }
        for step in steps
    ]

    def columns(chosen: list[dict[str, Any]]) -> dict[str, list[Any]]:
        return {name: [record[name] for record in chosen] for name in records[0]}

    def held(pieces: list[dict[str, list[Any]]], limit: int = 20_000) -> Any:
        script = """async ([pieces, limit]) => {
            const { Steps } = await import("/page/steps.js");
            const steps = new Steps(limit);
            for (const piece of pieces) steps.add(piece);
            return JSON.stringify([steps.step, steps.time, steps.kind, steps.norm,
                                   steps.raw.map(String), steps.mini, steps.bad]);
        }"""
        return json.loads(page.evaluate(script, [pieces, limit]))

    whole = held([columns(records)])
    assert whole[0] == steps
    bad = [r["step"] for r in records if r["verdict"] in BAD or not r["finite"]]
    assert whole[-1] == bad
    for _ in range(5):
        shuffled = records + rng.sample(records, 50)
        rng.shuffle(shuffled)
        cuts = sorted(rng.sample(range(1, len(shuffled)), 6))
        pieces = [columns(shuffled[a:b]) for a, b in zip([0, *cuts], [*cuts, len(shuffled)], strict=True)]
        assert held(pieces) == whole

    again = [
        record | {"time": record["time"] + 1000, "verdict": "applied", "finite": True} for record in records[200:250]
    ]
    for pieces in ([columns(records), columns(again)], [columns(again), columns(records)]):
        lived_twice = held(pieces)
        assert lived_twice[0] == steps
        assert lived_twice[2][200:250] == ["applied"] * 50, (
            "a rollback's later step counts, whichever report came first"
        )

    pieces = [columns(records[i : i + 10]) for i in range(0, len(records), 10)]
    bounded = held(pieces, limit=len(bad) + 60)
    assert len(bounded[0]) <= len(bad) + 60
    assert bounded[-1] == bad[-len(bounded[-1]) :]
    assert len(bounded[-1]) >= 0.75 * len(bad)
    assert bounded[0][-1] == steps[-1]
