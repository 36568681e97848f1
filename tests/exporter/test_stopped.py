"""A run that stopped itself, or failed: the reason and the step to roll back to, wherever the run is shown."""

import json
from pathlib import Path
from typing import Any

import pytest
from optwrap_exporter.cli import main as cli
from optwrap_exporter.wire.consistency import parse_report
from pydantic import ValidationError

from tests.exporter.running import Job, Served, served

REASON = "not_finite_streak: 5 steps in a row had non-finite gradients"


def end(site: Served, state: str, process: int = 0, of: int = 1, **said: Any) -> Job:
    """A process with two steps, and its end."""
    job = Job(process=process, process_count=of, clock=site.clock)
    job.step("applied", 0.5)
    job.step("skipped_not_finite", "NaN", w=1)
    site.send(job.report())
    site.clock.advance(1)
    site.send(job.report(state, **said))
    return job


def shown(answer: dict[str, Any]) -> tuple[str, str | None, int | None]:
    return answer["health"], answer["reason"], answer["last_clean_step"]


def test_a_stop_is_an_event_and_a_health_with_reason_and_hint(
    site: Served, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the events, in both lists of runs, in the attempts, in the terminal and in /metrics."""
    end(site, "stopped", reason=REASON, last_clean_step=1)
    event, *_ = site.get("/v1/runs/lm/events")["items"]
    assert (event["kind"], event["step"]) == ("stopped", None)
    assert event["detail"] == {"steps": 2, "reason": REASON, "last_clean_step": 1}
    detail = site.get("/v1/runs/lm")
    (brief,) = site.get("/v1/runs")["items"]
    assert shown(detail) == shown(brief) == ("stopped", REASON, 1)
    assert [row["health"] for row in detail["processes"]] == ["stopped"]
    assert [row["state"] for row in detail["attempts"]] == ["stopped"]
    assert 'optwrap_run_health{health="stopped",run="lm"} 1.0' in site.scrape()
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.run(["status", site.url]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("lm: ") and f"{REASON}; restore a checkpoint at or before 1" in line for line in lines)
    assert any("lm/0  Stopped" in line and "last clean step 1" in line for line in lines), lines


def test_a_failure_shows_its_exception(site: Served, capsys: pytest.CaptureFixture[str]) -> None:
    """There is no step to roll back to."""
    end(site, "failed", reason="ValueError: no more data")
    assert shown(site.get("/v1/runs/lm")) == ("failed", "ValueError: no more data", None)
    cli.run(["status", site.url])
    told = "lm: process 0 on node-0 failed at step 2: ValueError: no more data; see its log,"
    assert told in capsys.readouterr().out.splitlines()


def test_of_several_processes_the_first_that_says_why_is_shown(site: Served) -> None:
    """Failed is worse than stopped."""
    end(site, "stopped", 0, 3)
    end(site, "stopped", 1, 3, reason=REASON, last_clean_step=1)
    end(site, "finished", 2, 3, reason="early")
    assert shown(site.get("/v1/runs/lm")) == ("stopped", REASON, 1)
    again = Job(process=2, process_count=3, clock=site.clock, incarnation="e2")
    site.send(again.report("failed"))
    assert shown(site.get("/v1/runs/lm")) == ("failed", None, None)


def test_the_next_attempt_takes_the_reason_away_and_the_event_stays(site: Served) -> None:
    """The run goes on from the clean step."""
    stopped = end(site, "stopped", reason=REASON, last_clean_step=1)
    site.clock.advance(60)
    state = stopped.state.copy()
    state.outcomes["skipped_not_finite"] -= 1
    job = Job(clock=site.clock, incarnation="e2", attempt="second", state=state)
    job.step("applied", 0.5)
    site.send(job.report())
    detail = site.get("/v1/runs/lm")
    assert shown(detail) == ("ok", None, None)
    assert [row["state"] for row in detail["attempts"]] == ["stopped", "running"]
    kinds = [event["kind"] for event in site.get("/v1/runs/lm/events")["items"]]
    assert kinds[:2] == ["resumed", "stopped"]


def test_the_reason_survives_a_restart_of_the_exporter(tmp_path: Path) -> None:
    """It is stored with the incarnation."""
    with served(tmp_path / "data") as site:
        end(site, "stopped", reason=REASON, last_clean_step=1)
    with served(tmp_path / "data", site.clock) as again:
        assert shown(again.get("/v1/runs/lm")) == ("stopped", REASON, 1)


@pytest.mark.parametrize(
    ("state", "said", "field"),
    [
        ("running", {"reason": "early"}, "reason"),
        ("failed", {"last_clean_step": 1}, "last_clean_step"),
        ("stopped", {"reason": "two\nlines"}, "reason"),
        ("stopped", {"reason": "x" * 257}, "reason"),
        ("stopped", {"last_clean_step": -1}, "last_clean_step"),
        ("paused", {}, "state"),
    ],
)
def test_a_wrong_ending_is_refused(state: str, said: dict[str, Any], field: str) -> None:
    """The error names the field."""
    job = Job()
    with pytest.raises(ValidationError) as error:
        parse_report(json.dumps(job.report(state, **said)))
    assert field in str(error.value)


@pytest.mark.parametrize(("clean", "health"), [(1, "ok"), (0, "gave_up"), (None, "ok")])
def test_a_rollback_to_the_clean_step_ends_gave_up(site: Served, clean: int | None, health: str) -> None:
    """The reason is shown although gave_up is the worse health. A resume from a later step does not heal it.

    If the run does not name the step, the step records do.
    """
    job = Job(clock=site.clock)
    job.step("applied", 0.5)
    clean_state = job.state.copy()
    job.step("accepted_not_finite", "NaN", w=1)
    site.send(job.report())
    site.send(job.report("stopped", reason=REASON, **({} if clean is None else {"last_clean_step": clean})))
    assert shown(site.get("/v1/runs/lm")) == ("gave_up", REASON, clean)
    site.clock.advance(20)
    hello = Job(clock=site.clock, incarnation="e2", attempt="second")
    site.send(hello.report("starting"))
    assert shown(site.get("/v1/runs/lm")) == ("gave_up", None, None), "a hello does not say where it goes on"
    site.clock.advance(1)
    again = Job(clock=site.clock, incarnation="e3", attempt="second", state=clean_state)
    again.step("applied", 0.5)
    site.send(again.report())
    assert shown(site.get("/v1/runs/lm")) == (health, None, None)
