"""The commands status and watch: what they print, and their exit status."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optwrap_exporter.cli import client as terminal
from optwrap_exporter.cli import main as cli
from optwrap_exporter.cli import render as screen
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
    for part in ("ok", "1,235", "1,234", "0 / 1 / 0", "3/4", "123.5"):
        assert part in line, (part, line)
    assert any(line.startswith("other ") and "finished" in line for line in lines)
    assert any("skipped at step 1,235" in line for line in lines)


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
    """Run, health, streak, skips, and the first bad parameter with its step."""
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
    for part in ("skipping", " 2 ", "2 / 0 / 0"):
        assert part in line, (part, line)
    words = " ".join(" ".join(lines).split())
    assert "lm-7b-2026: first non-finite in step 1,234,568: decoder/w (3), decoder/b (1) and 1 more" in words
    if width >= 100:
        assert "3/4" in line
    if width == 200:
        assert "1,234,567" in line
    # Good again: nobody asks what went bad.
    job.step("applied", 1.0)
    site.send(job.report())
    cli.run(["status", site.url])
    assert "first non-finite" not in capsys.readouterr().out


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
    assert json.loads(capsys.readouterr().out) == [site.get("/v1/runs/lm")]


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
    assert set(HEALTHS) > terminal.HEALTHY
    assert set(HEALTHS) - terminal.HEALTHY == {
        *("conflict", "gave_up", "failed", "stopped", "stale", "stalled", "starved", "degraded"),
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
    assert screen.clean("a\x1b[31mb\x9b2J\u202ec\n") == "a\ufffd[31mb\ufffd2J\ufffdc\ufffd"
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

    def runs(self: terminal.Exporter, only: str | None, most: int | None = None) -> list[terminal.Json]:
        if looks == 2:
            raise terminal.Unreachable("gone for now")
        return real(self, only, most)

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
