"""No figure of the page is false: each has the step and time it is of, and durations count from the event.

The exporter of most of these tests runs in this process, so that hours pass at once: its clock starts in the past, and
is turned to now.
"""

import re
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import expect

from tests.conftest import RunningExporter
from tests.e2e.page.desk import Desk, MakeReporter, OpenDesk, Reporter
from tests.exporter.running import Job, Served, TurnedClock, served
from tests.polling import wait_until

pytestmark = pytest.mark.programs("chromium")

AGO = 1200.0
"""How many seconds before now the clock of the exporter starts."""


@pytest.fixture
def past(tmp_path: Path) -> Iterator[Served]:
    """An exporter that was started twenty minutes ago, by its clock."""
    with served(tmp_path / "data", TurnedClock(time.time() - AGO)) as running:
        yield running


@pytest.fixture
def url(past: Served) -> str:
    """The address of that exporter."""
    return past.url


def turn_to(past: Served, ago: float) -> None:
    """Turn the exporter's clock to so many seconds before now, and let it look at its runs."""
    past.clock.now = time.time() - ago
    past.ingest.tick()


def job(past: Served, **fields: object) -> Reporter:
    """A job that reports to that exporter, on the same clock."""
    return Reporter(Job(**{"clock": past.clock, "interval": 10.0, **fields}), past.url)  # type: ignore[arg-type]  # the fields of a Job


def test_a_stalled_run_has_been_so_since_its_last_step(past: Served, open_desk: OpenDesk) -> None:
    """Not since five minutes after it, when it was found to be stalled; and it has no rate."""
    training = job(past)
    for ago in range(600, 529, -10):
        turn_to(past, ago)
        training.good(20)
    for ago in range(520, -1, -10):
        turn_to(past, ago)
        training.send()
    desk = open_desk()
    desk.open("lm")
    desk.health("stalled")
    expect(desk.part("health").locator(".since")).to_contain_text(re.compile(r"for (8 min 5\d s|9 min)"))
    expect(desk.part("health").locator(".facts")).to_contain_text(re.compile(r"Last report\d s ago"))
    expect(desk.page.locator(".tile.steps .unit")).to_have_text("")
    expect(desk.page.locator(".tile.norm-last .foot")).to_have_text(
        re.compile(r"at step 160, (8 min 5\d s|9 min.*) ago")
    )


def test_a_dead_run_is_silent_since_its_last_report_and_has_no_rate(past: Served, open_desk: OpenDesk) -> None:
    """The verdict, the fact beside it, the event and the incident name the same moment."""
    training = job(past)
    for ago in range(200, 59, -10):
        turn_to(past, ago)
        training.good(20)
    for ago in range(50, -1, -10):
        turn_to(past, ago)
    desk = open_desk()
    page = desk.open("lm")
    desk.health("stale")

    def facts() -> str:
        return desk.part("health").text_content() or ""

    # Both are written each second, one after the other.
    for_as_long = re.compile(r"for (\d min(?: \d+ s)?), since.*Last report\1 ago", re.DOTALL)
    wait_until(lambda: for_as_long.search(facts()), 20, pause=0.2, problem=facts)
    expect(page.locator(".tile.steps .unit")).to_have_text("")
    assert "per s" not in (page.locator("#tiles").text_content() or "")
    event = desk.part("events").locator("[data-kind=stale]")
    expect(event).to_contain_text(re.compile(r"last report \d\d:\d\d:\d\d"))
    for part in ("events", "incidents", "health", "processes"):
        assert not re.search(r"\de9|17\d{8}|1[89]\d{8}", desk.part(part).text_content() or ""), part


def test_a_failed_run_has_no_rate(past: Served, open_desk: OpenDesk) -> None:
    training = job(past)
    for ago in range(200, 0, -10):
        turn_to(past, ago)
        training.good(20)
    training.send("failed", reason="FloatingPointError: NaN loss")
    desk = open_desk()
    page = desk.open("lm")
    desk.health("failed")
    expect(page.locator(".tile.steps .unit")).to_have_text("")
    expect(desk.part("attempts")).to_contain_text("FloatingPointError: NaN loss")
    expect(desk.part("health").locator(".sentence")).to_contain_text("FloatingPointError: NaN loss")


def test_a_non_finite_step_is_trouble_five_minutes_later(past: Served, open_desk: OpenDesk) -> None:
    """It went into the optimizer and was not rolled back, so nothing is healthy again."""
    training = job(past)
    turn_to(past, 900)
    training.good(203)
    training.job.step("accepted_not_finite", "NaN", w=1)
    training.send()
    for ago in range(890, -1, -10):
        turn_to(past, ago)
        training.good(20)
    desk = open_desk()
    page = desk.open("lm")
    desk.health("gave_up")
    expect(desk.part("health").locator(".sentence")).to_contain_text("203")
    expect(desk.part("health").locator(".since")).to_contain_text(re.compile(r"15 min.* ago"))
    expect(page.locator(".tile.accepted")).to_contain_text("not rolled back · last clean step 203")


def test_the_norm_has_the_number_of_its_own_step(past: Served, open_desk: OpenDesk) -> None:
    """Also if the gauges come without the record of their step."""
    training = job(past)
    turn_to(past, 30)
    training.good(20, norm=0.5)
    turn_to(past, 10)
    for _ in range(10):
        training.job.step("applied", 7.25)
    training.send(steps={"step": [], "time": [], "outcome": [], "finite": [], "norm": [], "mini_step": []})
    turn_to(past, 0)
    desk = open_desk()
    page = desk.open("lm")
    found = httpx.get(f"{past.url}/v1/runs/lm", trust_env=False).json()["norm"]
    assert found["step"] is not None
    tile = page.locator(".tile.norm-last")
    expect(tile.locator(".value")).to_have_text(f"{found['value']:g}")
    expect(tile.locator(".foot")).to_contain_text(f"at step {found['step']}, ")
    expect(desk.part("processes").locator("tbody td").last).to_contain_text(f"{found['value']:g} at {found['step']}")


def test_a_streak_beyond_its_limit_says_by_how_much(past: Served, open_desk: OpenDesk) -> None:
    """The number is the streak; “22 past the limit of 5” is its note. The step is that of the streak."""
    training = job(past)
    training.job.gauges |= {"guard_not_finite_limit": 5, "guard_not_finite_count": 5}
    turn_to(past, 30)
    training.good(20)
    for _ in range(27):
        training.job.step("skipped_not_finite", "NaN", w=1)
    training.send()
    turn_to(past, 0)
    desk = open_desk()
    tile = desk.open("lm").locator(".tile.streak")
    expect(tile.locator(".value")).to_have_text("27")
    expect(tile.locator(".unit")).to_have_text("22 past the limit of 5")
    expect(tile.locator(".foot")).to_have_text(re.compile(r"^at step 47, \d+ s ago · longest so far 27$"))


def test_what_trouble_cost_is_a_tile(past: Served, open_desk: OpenDesk) -> None:
    """Steps and time by reason, as the API counts them."""
    training = job(past)
    turn_to(past, 300)
    training.good(20)
    for ago in range(290, 0, -10):
        turn_to(past, ago)
        training.good(5)
        training.large()
    turn_to(past, 0)
    desk = open_desk()
    page = desk.open("lm")
    run = httpx.get(f"{past.url}/v1/runs/lm", trust_env=False).json()
    assert run["lost_steps"]["skipped"] == 29
    tile = page.locator(".tile.lost")
    expect(tile.locator(".value")).to_have_text("29")
    expect(tile.locator("[data-lost=skipped]")).to_have_text(re.compile(r"29skipped, \d"))
    expect(tile.locator("[data-lost]")).to_have_count(1)  # none was taken again, none starved


def test_attempts_have_their_reason_and_the_step_they_began_at(past: Served, open_desk: OpenDesk) -> None:
    """A crash loop is visible: how often, why, and from where."""
    training = job(past)
    saved = training.job.totals
    for number in range(4):
        turn_to(past, 400 - 100 * number)
        again = job(past, attempt=f"a{number}", incarnation=f"e{number}")
        again.job.totals = again.job.at_start = saved
        again.good(30)
        if number == 0:
            saved = again.job.totals
        if number < 3:
            again.send("failed", reason=f"RuntimeError: crash {number}")
    turn_to(past, 0)
    again.send()
    desk = open_desk()
    desk.open("lm")
    rows = desk.part("attempts").locator("tbody tr")
    expect(rows).to_have_count(4)
    expect(rows.first).to_contain_text("Running")
    expect(rows.nth(1)).to_contain_text("RuntimeError: crash 2")
    expect(rows.nth(1).locator("td").nth(3)).to_have_text("30")
    redone = httpx.get(f"{past.url}/v1/runs/lm", trust_env=False).json()["lost_steps"]["redone"]
    assert redone == 60
    expect(desk.page.locator(".tile.steps .foot")).to_contain_text("of these 60 taken again")
    expect(desk.part("health").locator(".facts")).to_contain_text("Attempt4, since")
    desk.health("failed")  # although this attempt runs: it is not past the step at which the others failed
    expect(desk.page).to_have_title("✖ Failed · lm · optwrap")
    again.good(1)
    desk.health("ok")


def test_a_host_exporter_counts_the_processes_that_report_here(past: Served, open_desk: OpenDesk) -> None:
    """With --scope host, the default, the other 56 are no trouble: no cell, no health, no “missing”."""
    turn_to(past, 10)
    for process in range(8):
        job(past, process=process, process_count=64, incarnation=f"e{process}").good(5)
    turn_to(past, 0)
    desk = open_desk()
    page = desk.open("lm")
    desk.health("ok")
    expect(desk.part("pod").get_by_role("option")).to_have_count(8)
    expect(desk.part("pod")).to_contain_text("8 of 64 processes report here")
    expect(desk.part("processes")).to_contain_text("8 of 64 processes report here")
    expect(desk.part("health").locator(".facts")).to_contain_text("8 of 64 here")
    assert not re.search("missing|never|degraded", page.locator("main").inner_text(), re.IGNORECASE)


@pytest.mark.usefixtures("past")
def test_the_page_of_a_job_shows_which_processes_are_missing(tmp_path: Path, open_desk: OpenDesk) -> None:
    """With --scope job they are cells, and the run is degraded."""
    exporter = RunningExporter(tmp_path / "job", "--scope", "job")
    try:
        for process in range(3):
            Reporter(
                Job(run="lm", process=process, process_count=4, incarnation=f"e{process}", clock=time.time),
                exporter.url,
            ).good(5)
        desk = open_desk()
        there = Desk(desk.page, exporter.url, [])
        there.open("lm")
        there.health("degraded")
        cells = there.part("pod").get_by_role("option")
        expect(cells).to_have_count(4)
        expect(cells.nth(3)).to_have_accessible_name("Process 3: Never reported")
        desk.problems.clear()  # this exporter is not the one of the fixture
    finally:
        desk.page.goto("about:blank")
        exporter.stop()


def test_the_pod_verdict_names_process_and_host(past: Served, open_desk: OpenDesk) -> None:
    """Before anything is pointed at, the worst process; the run's own sentence names it, too."""
    turn_to(past, 300)
    pod = [job(past, process=n, process_count=16, incarnation=f"e{n}", interval=60.0) for n in (0, 3, 12)]
    for training in pod:
        training.good(10)
    for ago in range(240, -1, -60):
        turn_to(past, ago)
        pod[0].good(1)
        pod[1].good(1)
    desk = open_desk()
    desk.open("lm")
    desk.health("stale")
    expect(desk.part("health").locator(".sentence")).to_contain_text("rocess 12 on node-12")
    expect(desk.part("health").locator(".word")).to_have_text("No reports: 1 of 3 processes")
    expect(desk.part("health").locator(".facts")).to_contain_text("Processes2 of 16 here")
    verdict = desk.part("pod").locator("output")
    expect(verdict).to_contain_text(re.compile(r"Process 12 on node-12 · No reports for \d min"))


@pytest.mark.usefixtures("past")
def test_replicas_are_a_table(past: Served, open_desk: OpenDesk, reporter: MakeReporter) -> None:
    """Which replica was the first, how often, on which device and from which step on."""
    training = reporter("lm")
    training.good(5)
    for _ in range(3):
        training.bad(replica={"replica": 5, "process": 1, "device": "gpu:5", "count": 1, "of": 8}, w=1)
    training.bad(replica={"replica": 2, "process": 0, "device": "gpu:2", "count": 1, "of": 8}, w=1)
    desk = open_desk()
    desk.open("lm")
    rows = desk.part("replicas").locator("tbody tr")
    expect(rows).to_have_count(2)
    assert rows.first.locator("td").all_text_contents() == ["5", "1", "gpu:5", "3", "6", "8"]
    assert rows.nth(1).locator("td").all_text_contents() == ["2", "0", "gpu:2", "1", "9", "9"]
    assert past.url == desk.url
