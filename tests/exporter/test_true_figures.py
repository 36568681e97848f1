"""What an operator reads is true: each value says of which step and time it is, and a dead run has no speed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from optwrap_exporter.store import condition, schema

from tests.exporter.running import START, Job, Served, served


def run(site: Served) -> Any:
    """The run, which both answers describe in the same words."""
    detail = site.get("/v1/runs/lm")
    (brief,) = site.get("/v1/runs")["items"]
    common = set(brief) - {"processes"}
    assert {name: detail[name] for name in common} == {name: brief[name] for name in common}
    return plain(brief)


def plain(value: Any) -> Any:
    """Without the times as text, which stand beside those in seconds."""
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items() if not name.endswith("_rfc3339")}
    return [plain(inner) for inner in value] if isinstance(value, list) else value


def train(site: Served, job: Job, reports: int, *, steps: int = 5, seconds: float = 2.0) -> None:
    """So many reports, each of a few steps in a few seconds."""
    for _ in range(reports):
        for _ in range(steps):
            site.clock.advance(seconds / steps)
            job.step()
        site.send(job.report())


def beat(site: Served, job: Job, seconds: int) -> None:
    """A report a second, without steps."""
    for _ in range(seconds):
        site.clock.advance(1)
        site.send(job.report())


@pytest.fixture
def job(site: Served) -> Job:
    """A run that takes 2.5 steps a second."""
    made = Job(clock=site.clock)
    site.send(made.report("starting"))
    assert run(site)["steps_per_second"] is None
    train(site, made, 10)
    assert run(site)["steps_per_second"] == pytest.approx(2.5)
    return made


def silence(site: Served, job: Job) -> None:
    del job
    site.clock.advance(15)


def finish(site: Served, job: Job) -> None:
    site.send(job.report("finished"))


def fail(site: Served, job: Job) -> None:
    site.send(job.report("failed", reason="OSError: no"))


def stall(site: Served, job: Job) -> None:
    beat(site, job, 15)


def restart_from_a_checkpoint(site: Served, job: Job) -> None:
    again = Job(clock=site.clock, incarnation="e2", attempt="a2", state=job.state.copy())
    site.send(again.report())


@pytest.mark.parametrize("end", [silence, finish, fail, stall, restart_from_a_checkpoint])
def test_a_run_has_a_speed_only_while_it_takes_steps(
    site: Served, job: Job, end: Callable[[Served, Job], None]
) -> None:
    end(site, job)
    assert run(site)["steps_per_second"] is None


def test_a_run_of_slow_steps_keeps_its_speed_between_them(site: Served) -> None:
    job = Job(clock=site.clock)
    for _ in range(4):
        beat(site, job, 59)
        train(site, job, 1, steps=1, seconds=1)
    beat(site, job, 100)
    assert run(site)["steps_per_second"] == pytest.approx(1 / 60)
    beat(site, job, 120)
    assert run(site)["steps_per_second"] is None


def test_while_the_exporter_stores_no_reports_a_run_has_no_speed_and_is_not_called_silent(
    site: Served, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the exporter that is ill. Afterwards the job has time to report first."""
    monkeypatch.setattr(condition, "TRIAL_SECONDS", 0.0)
    used = site.store.size()
    schema.limit_pages(site.store._db, used)
    while True:
        job.step("skipped_not_finite", "NaN", **{f"w{job.seq}_{i}": 1 for i in range(150)})
        if site.client.post("/v1/reports", json=job.report()).status_code == 503:
            break
    site.ingest.tick()
    before = run(site)
    assert before["steps_per_second"] is None
    for _ in range(3):
        site.clock.advance(3600)
        site.ingest.tick()
        assert run(site) == before
    schema.limit_pages(site.store._db, 100 * used)
    for seconds in (0, 35):
        site.clock.advance(seconds)
        site.ingest.tick()
        assert run(site)["health"] == before["health"]
    train(site, job, 8)
    assert run(site)["steps_per_second"] == pytest.approx(2.5)
    for path in ("events", "incidents"):
        assert not {"stale", "stalled"} & {one["kind"] for one in site.get(f"/v1/runs/lm/{path}")["items"]}


def test_the_norm_is_of_the_step_that_is_named_beside_it(site: Served) -> None:
    job = Job(clock=site.clock)
    site.send(job.report("starting"))
    assert [run(site)[name] for name in ("norm", "last_step", "last_step_time")] == [None, None, None]
    site.clock.advance(1)
    job.step("applied", 0.5)
    job.step("skipped_not_finite", "NaN", w=1)
    site.send(job.report())
    answer = run(site)
    assert answer["norm"] == {"value": "NaN", "step": 2, "time": START + 1}
    assert (answer["last_step"], answer["last_step_time"]) == (2, START + 1)
    (row,) = site.get("/v1/runs/lm")["processes"]
    assert plain(row["norm"]) == answer["norm"]
    site.clock.advance(30)
    site.send(job.report())
    assert run(site)["norm"] == {"value": "NaN", "step": 2, "time": START + 1}, "a report without a step moves nothing"


def test_every_figure_keeps_the_step_and_time_at_which_it_was_last_seen(site: Served) -> None:
    job = Job(clock=site.clock)
    job.step()
    job.columns["scalars"] = {"loss": [2.5], "lr": [0.1]}  # type: ignore[assignment]
    job.gauges["update_norm"] = 0.25
    site.send(job.report())
    site.clock.advance(5)
    job.step("skipped_large", 99.0)
    job.columns["scalars"] = {"loss": ["NaN"], "lr": [0.2]}  # type: ignore[assignment]
    del job.gauges["update_norm"]
    site.send(job.report())
    answer = run(site)
    assert answer["norm"] == {"value": 99.0, "step": 2, "time": START + 5}
    assert answer["update_norm"] == {"value": 0.25, "step": 1, "time": START}
    assert answer["scalars"] == {
        "loss": {"value": "NaN", "step": 2, "time": START + 5},
        "lr": {"value": 0.2, "step": 2, "time": START + 5},
    }


def test_after_a_rollback_the_last_step_is_the_states_and_has_no_time_yet(site: Served, job: Job) -> None:
    checkpoint = job.state.copy()
    train(site, job, 4)
    again = Job(clock=site.clock, incarnation="e2", attempt="a2", state=checkpoint)
    site.send(again.report())
    assert [run(site)[name] for name in ("last_step", "last_step_time")] == [50, None]
    train(site, again, 1)
    assert [run(site)[name] for name in ("last_step", "last_step_time")] == [55, site.clock.now]


def test_durations_count_from_the_last_report_and_the_last_step(site: Served, job: Job) -> None:
    """No step for 8 min 50 s is not "stalled for 3 min 50 s"."""
    stepped = site.clock.now
    beat(site, job, 400)
    site.ingest.tick()
    beat(site, job, 130)
    answer = run(site)
    assert (answer["health"], answer["since"], answer["last_step_time"]) == ("stalled", stepped, stepped)
    assert "for 8 min" in answer["summary"]
    reported = site.clock.now
    site.clock.advance(61)
    site.ingest.tick()
    answer = run(site)
    assert (answer["health"], answer["since"], answer["last_report"]) == ("stale", reported, reported)
    assert "for 1 min" in answer["summary"]


def test_events_tell_durations_and_dates_not_seconds_since_1970(site: Served, job: Job) -> None:
    beat(site, job, 301)
    site.ingest.tick()
    site.clock.advance(20)
    site.ingest.tick()
    events = {event["kind"]: event for event in site.get("/v1/runs/lm/events")["items"]}
    assert events["stalled"]["detail"] == {"seconds_without_step": 301.0, "last_step": "2025-11-22T08:27:00Z"}
    assert events["stale"]["detail"] == {"silent_seconds": 20.0, "last_report": "2025-11-22T08:32:01Z"}
    for event in events.values():
        for value in event["detail"].values():
            assert not (isinstance(value, float) and value > 1e9), event


def test_the_last_thousand_steps_tell_how_many_were_skipped(site: Served) -> None:
    job = Job(clock=site.clock)
    for skipped in (True, False):
        for _ in range(900):
            for _ in range(2):
                job.step("skipped_large" if skipped else "applied")
            site.clock.advance(1)
            site.send(job.report())
        found = run(site)["skipped_recently"]
        assert 1000 <= found["steps"] < 1200
        assert found["skipped"] == (found["steps"] if skipped else 0)


@pytest.mark.parametrize("steps", [1, 7, 99, 100, 5000])
def test_reports_of_any_size_are_counted_among_the_last_thousand_steps(site: Served, steps: int) -> None:
    job = Job(clock=site.clock)
    taken = 0
    for number in range(40):
        for _ in range(steps):
            job.step("applied" if number % 2 else "skipped_large")
        taken += steps
        site.clock.advance(1)
        site.send(job.report())
    found = run(site)["skipped_recently"]
    assert min(taken, 1000) <= found["steps"] <= max(1000 + 100 + steps, steps)
    assert found["skipped"] == pytest.approx(found["steps"] / 2, abs=100 + steps)


def test_sidecars_miss_no_process_and_say_how_many_report_here(tmp_path: Path) -> None:
    """A part of a job is not degraded unless the exporter is told that all of it reports here."""
    for scope, health, missing, sentence in (
        ("host", "ok", None, "at step 1; 8 of 64 processes report here"),
        ("job", "degraded", 56, "56 of 64 processes have not reported (8 to 63): see whether they were started"),
    ):
        with served(tmp_path / scope, scope=scope) as exporter:
            for process in range(8):
                job = Job(process=process, incarnation=f"e{process}", process_count=64, clock=exporter.clock)
                job.step()
                exporter.send(job.report())
            (brief,) = exporter.get("/v1/runs")["items"]
            assert [brief[name] for name in ("health", "missing", "summary")] == [health, missing, sentence]
            text = exporter.scrape()
            assert f'optwrap_run_health{{health="{health}",run="lm"}} 1.0' in text
            assert 'optwrap_processes_expected{run="lm"} 64.0' in text
            assert 'optwrap_processes_reporting{run="lm"} 8.0' in text
            assert f'<meta name="scope" content="{scope}">' in exporter.client.get("/").text
