"""The commands status and watch: what they print, and their exit status."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optwrap_exporter.cli import exporter as terminal
from optwrap_exporter.cli import main as cli
from optwrap_exporter.cli import render as screen
from optwrap_exporter.cli.text import clean, duration, number, percent
from optwrap_exporter.wire.vocabulary import HEALTHS

from tests.exporter.running import Job, Served, served


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("OPTWRAP_ENDPOINT", raising=False)


def fill(site: Served, run: str = "lm", state: str = "running") -> None:
    job = Job(run=run, clock=site.clock)
    job.gauges |= {"mini_step": 3, "every_k": 4}
    for _ in range(1234):
        job.step("applied", 0.5)
    job.step("skipped_large", 123.456)
    site.send(job.report(state))


def test_status_shows_each_run_in_one_line(site: Served, capsys: pytest.CaptureFixture[str]) -> None:
    fill(site)
    fill(site, "other", "finished")
    assert cli.run(["status", site.url]) == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if line.startswith("lm ")]
    for part in ("Healthy", "1,235", "< 0.1 %", "3/4", " 123 "):
        assert part in line, (part, line)
    assert any(line.startswith("other ") and "Finished" in line and " ago" in line for line in lines)
    assert any("Skipped, large norm at step 1,235" in line for line in lines)


NORMS = st.one_of(st.floats(0, 3e38), st.sampled_from(["NaN", "Infinity"]))


@given(st.lists(st.tuples(NORMS, st.sampled_from(["applied", "accumulated", "skipped_large"]), st.booleans())))
def test_the_sparkline_has_one_character_per_step(rows: list[tuple[float | str, str, bool]]) -> None:
    """Bad steps are crosses; among good ones a larger norm is never drawn lower."""
    columns = {name: [row[i] for row in rows] for i, name in enumerate(("norm", "outcome", "finite"))}
    drawn = screen.sparkline(columns).plain
    last = rows[-24:]
    assert len(drawn) == len(last)
    assert [sign == "✕" for sign in drawn] == [not finite or outcome == "skipped_large" for _, outcome, finite in last]
    good = [
        (norm, sign)
        for (norm, _, _), sign in zip(last, drawn, strict=True)
        if sign != "✕" and not isinstance(norm, str)
    ]
    assert [sign for _, sign in sorted(good)] == sorted(sign for _, sign in good)


def test_status_draws_the_last_norms(site: Served, capsys: pytest.CaptureFixture[str]) -> None:
    job = Job(clock=site.clock)
    for norm in (1.0, 10.0, 100.0):
        job.step("applied", norm)
    job.step("skipped_not_finite", "NaN", w=1)
    job.step("applied", 1000.0)
    site.send(job.report())
    assert cli.run(["status", site.url]) == 0
    assert "▁▃▆✕█" in capsys.readouterr().out


@pytest.mark.parametrize("width", [60, 80, 100, 140, 200])
def test_a_narrow_terminal_keeps_the_important_columns(
    site: Served, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    """Run, health, streak, skips, and the sentence about what is wrong."""
    monkeypatch.setenv("COLUMNS", str(width))
    job = Job(run="lm-7b-2026", clock=site.clock)
    job.gauges |= {"mini_step": 3, "every_k": 4}
    job.state.outcomes["applied"] = 1_234_567
    job.step("skipped_not_finite", "NaN", decoder__w=3, decoder__b=1, head=2)
    job.step("skipped_not_finite", "NaN", head=2)
    site.send(job.report())
    cli.run(["status", site.url])
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line.rstrip()) <= width for line in lines)
    (line,) = [line for line in lines if line.startswith("lm-7b-2026 ")]
    for part in ("Skipping", " 2 ", " %"):
        assert part in line, (part, line)
    words = " ".join(" ".join(lines).split())
    assert f"lm-7b-2026: {site.get('/v1/runs/lm-7b-2026')['summary']}" in words
    if width >= 100:
        assert "3/4" in line
    if width == 200:
        assert "1,234,569" in line


def test_status_without_runs(site: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["status", site.url]) == 0
    assert "no run has reported yet" in capsys.readouterr().out


def test_status_uses_the_endpoint_of_the_environment(
    site: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(site)
    monkeypatch.setenv("OPTWRAP_ENDPOINT", site.url)
    assert cli.run(["status"]) == 0
    assert "1,235" in capsys.readouterr().out


def test_json_is_the_apis_own_answer(site: Served, capsys: pytest.CaptureFixture[str]) -> None:
    fill(site)
    assert cli.run(["status", site.url, "--run", "lm", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == site.get("/v1/runs/lm")
    assert cli.run(["status", site.url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == site.get("/v1/runs")["items"]


def test_an_unknown_run_is_one_line(site: Served, capsys: pytest.CaptureFixture[str]) -> None:
    fill(site)
    assert cli.run(["status", site.url, "--run", "nobody"]) == 2
    assert capsys.readouterr().err == f"optwrap-exporter: the exporter at {site.url} has no run 'nobody'\n"


@pytest.mark.parametrize(("state", "status"), [("failed", 1), ("stopped", 1), ("finished", 0), ("running", 0)])
def test_the_exit_status_shows_whether_a_run_needs_attention(site: Served, state: str, status: int) -> None:
    fill(site)
    fill(site, "it", state)
    assert cli.run(["status", site.url]) == status
    assert cli.run(["status", site.url, "--run", "lm"]) == 0
    assert cli.run(["status", site.url, "--run", "it", "--json"]) == status


def test_a_stale_run_needs_attention(site: Served) -> None:
    fill(site)
    site.clock.advance(3600)
    assert cli.run(["status", site.url]) == 1


def test_every_health_has_an_exit_status() -> None:
    assert set(HEALTHS) > cli.HEALTHY
    assert set(cli.UNHEALTHY) == {
        *("conflict", "diverged", "gave_up", "failed", "stopped", "stale", "stalled", "starved", "degraded"),
    }


def test_more_runs_than_a_page_are_all_shown(site: Served, capsys: pytest.CaptureFixture[str]) -> None:
    names = {f"run-{number}" for number in range(105)}
    for name in names:
        site.send(Job(run=name, clock=site.clock).report("starting"))
    assert cli.run(["status", site.url, "--json"]) == 0
    assert {run["run"] for run in json.loads(capsys.readouterr().out)} == names


def test_a_server_that_is_not_an_exporter_is_an_error(site: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["status", f"{site.url}/page"]) == 2
    assert "expected the answer of an optwrap exporter" in capsys.readouterr().err


def test_control_characters_are_not_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert clean("a\x1b[31mb\x9b2J\u202ec\n") == "a\ufffd[31mb\ufffd2J\ufffdc\ufffd"
    with served(tmp_path / "data") as site:
        job = Job(clock=site.clock)
        job.step("skipped_not_finite", "NaN", **{"[red]w": 1})
        site.send(job.report())
        assert cli.run(["status", site.url]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out


def test_watch_refreshes_and_survives_an_exporter_that_stops(
    site: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It shows the run, an unreachable exporter, and the changed run, until Ctrl-C."""
    fill(site)
    looks = 0
    real = terminal.Exporter.runs

    def runs(self: terminal.Exporter, *filters: Any) -> Iterator[terminal.Json]:
        if looks == 2:
            raise terminal.UnreachableError("gone for now")
        return real(self, *filters)

    def sleep(seconds: float) -> None:
        nonlocal looks
        looks += 1
        assert seconds == 0.5
        if looks == 3:
            fill(site, "second")
        if looks == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(terminal.Exporter, "runs", runs)
    monkeypatch.setattr("optwrap_exporter.cli.client.time.sleep", sleep)
    assert cli.run(["watch", site.url, "--interval", "0.5"]) == 0
    out = capsys.readouterr().out
    assert looks == 4
    assert "second" in out


@pytest.mark.parametrize(
    ("replica", "says"),
    [
        ({"process": 1, "device": "tpu:5", "of": 8}, "first from replica 5: process 1, tpu:5; 2 of 8"),
        ({"of": 8}, "first from replica 5; 2 of 8"),
        ({}, "first from replica 5; 2 in all"),
    ],
    ids=["all", "without a device", "number alone"],
)
def test_an_event_line_names_the_first_replica(site: Served, replica: dict[str, Any], says: str) -> None:
    job = Job(clock=time.time)
    job.step()
    job.step("skipped_not_finite", "NaN", replica={"replica": 5, "count": 2, **replica}, w=1)
    site.send(job.report())
    assert says in screen._event(site.get("/v1/runs/lm/events")["items"][0], time.time())


@pytest.mark.parametrize(("command", "status"), [("status", 1), ("watch", 0)])
def test_the_worst_runs_are_shown_and_the_others_counted(
    site: Served, command: str, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A dead run that reported long ago is the first of 48, not left out."""

    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("optwrap_exporter.cli.client.time.sleep", interrupted)  # watch sleeps after each look
    site.send(Job(run="dead", clock=site.clock).report("failed"))
    site.clock.advance(60)
    for i in range(47):
        site.send(Job(run=f"run-{i}", clock=site.clock).report("finished" if i % 2 else "starting"))
    assert cli.run([command, site.url]) == status
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if (line.startswith(("dead", "run-")) and "ago" in line) or "Starting" in line]
    assert rows[0].startswith("dead ")
    assert sum(line.startswith(("dead ", "run-")) for line in lines if ": " not in line) == 20
    (more,) = [line for line in lines if line.startswith("and ")]
    assert more.rstrip() == "and 28 more: 5 starting, 23 finished"


def test_an_acknowledged_failure_is_no_reason_to_exit_with_1(site: Served, capsys: pytest.CaptureFixture[str]) -> None:
    fill(site, "it", "failed")
    assert cli.run(["status", site.url]) == 1
    (incident,) = site.get("/v1/incidents", kind="failed")["items"]
    assert site.client.post(f"/v1/incidents/{incident['id']}/acknowledge").status_code == 200
    capsys.readouterr()
    assert cli.run(["status", site.url]) == 0
    assert "Failed (acknowledged)" in capsys.readouterr().out


def test_the_healths_to_exit_on_can_be_chosen(site: Served, capsys: pytest.CaptureFixture[str]) -> None:
    fill(site, "it", "failed")
    assert cli.run(["status", site.url, "--exit-on", "stale,conflict"]) == 0
    assert cli.run(["status", site.url, "--exit-on", "stale,failed"]) == 1
    assert cli.run(["status", site.url, "--exit-on", "finished"]) == 0
    assert cli.run(["status", site.url, "--exit-on", "ill"]) == 2
    assert "'ill' is no health: expected some of conflict, diverged" in capsys.readouterr().err


def test_runs_are_chosen_by_name_and_health(site: Served, capsys: pytest.CaptureFixture[str]) -> None:
    for name, state in (("lm-1", "running"), ("lm-2", "failed"), ("vit", "failed")):
        fill(site, name, state)

    def shown(*options: str) -> list[str]:
        cli.run(["status", site.url, "--json", *options])
        return [run["run"] for run in json.loads(capsys.readouterr().out)]

    assert set(shown("--run", "lm-*")) == {"lm-1", "lm-2"}
    assert set(shown("--health", "failed")) == {"lm-2", "vit"}
    assert set(shown("--health", "failed", "--health", "ok")) == {"lm-1", "lm-2", "vit"}
    assert shown("--run", "lm-?", "--health", "failed") == ["lm-2"]
    assert cli.run(["status", site.url, "--health", "ill"]) == 2


def test_the_runs_of_several_exporters_are_merged(
    site: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with served(tmp_path / "other") as other:
        fill(site, "here")
        fill(other, "there", "failed")
        assert cli.run(["status", site.url, other.url]) == 1
        lines = capsys.readouterr().out.splitlines()
        rows = [line.split() for line in lines if line.startswith("127.0.0.1:")]
        assert [row[:2] for row in rows] == [
            [other.url.removeprefix("http://"), "there"],
            [site.url.removeprefix("http://"), "here"],
        ]
    assert cli.run(["status", site.url, other.url]) == 2
    out = capsys.readouterr().out
    assert f"no exporter answers at {other.url}" in " ".join(out.split())
    assert "here" in out


def test_a_dead_run_has_no_rate(site: Served, capsys: pytest.CaptureFixture[str]) -> None:
    job = Job(clock=site.clock)
    for _ in range(3):
        for _ in range(10):
            site.clock.advance(0.4)
            job.step()
        site.send(job.report())
    cli.run(["status", site.url])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("lm ")]
    assert " 2.5 " in line
    site.clock.advance(3600)
    cli.run(["status", site.url])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("lm ")]
    assert "No reports" in line
    assert " 2.5 " not in line


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (None, ""),
        (0.0, "0"),
        (0.8123, "0.812"),
        (12.345, "12.3"),
        (4120.4, "4,120"),
        (3.14e-7, "3.1e-7"),
        (2e9, "2e9"),
        (-0.5, "-0.5"),
        ("NaN", "NaN"),
        ("-Infinity", "-∞"),
    ],
)
def test_a_number_has_three_digits(value: object, written: str) -> None:
    assert number(value) == written


@pytest.mark.parametrize(
    ("seconds", "written"),
    [
        (0.4, "0 s"),
        (59.9, "59 s"),
        (200, "3 min 20 s"),
        (7200, "2 h"),
        (7500, "2 h 5 min"),
        (273_600, "3 d 4 h"),
        (-3, "0 s"),
    ],
)
def test_a_duration_is_written_as_on_the_page(seconds: float, written: str) -> None:
    assert duration(seconds) == written


def test_a_share_is_written_as_on_the_page() -> None:
    assert [percent(part, 1000) for part in (0, 14, 120, 1)] == ["0 %", "1.4 %", "12 %", "0.1 %"]
    assert percent(1, 100_000) == "< 0.1 %"
    assert percent(0, 0) == ""


def test_the_norms_after_a_rollback_are_those_of_the_steps_as_they_were_taken_last(
    site: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    """Steps 6 to 12 were bad. The run went back to 5, and has taken 6 to 10 again, well."""
    job = Job(clock=site.clock)
    for _ in range(5):
        job.step()
    resumed = Job(clock=site.clock, incarnation="e2", attempt="second", state=job.state.copy())
    for _ in range(7):
        job.step("skipped_not_finite", "NaN", w=1)
    site.send(job.report("stopped"))
    site.clock.advance(10)
    for _ in range(5):
        resumed.step()
    site.send(resumed.report())
    cli.run(["status", site.url])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("lm ")]
    assert "✕" not in line
    assert line.count(screen.sparkline({"norm": [1.0], "outcome": ["applied"], "finite": [True]}).plain) == 10


def test_the_details_of_an_event_are_not_called_by_the_names_of_a_runs_figures(
    site: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = [Job(process=index, incarnation=f"e{index}", process_count=3, clock=site.clock) for index in range(3)]
    for job in jobs:
        job.step("skipped_not_finite", "NaN", w=1)
        job.step("applied", 8018.0 if job.process == 2 else 0.945)
        site.send(job.report())
    cli.run(["status", site.url])
    lines = capsys.readouterr().out.splitlines()
    assert any("Non-finite streak ended" in line and "first step 1  last step 1" in line for line in lines)
    (line,) = [line for line in lines if "Processes disagree at step 2" in line]
    assert "processes 2 " in line
    assert "processes reporting" not in line
    assert "norms 0.945 (process 0), 8,018 (process 2)" in line
