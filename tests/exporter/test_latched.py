"""What an operator reads after NaN went into the optimizer: trouble, until it is rolled back or acknowledged."""

import asyncio
from pathlib import Path

import pytest

from tests.exporter.running import START, Job, Served, TurnedClock, served

SENTENCE = "gave up at step 204: 1 non-finite step applied, not rolled back; restore a checkpoint at or before 203"


def poisoned(site: Served) -> Job:
    """A run that applied one non-finite step, number 204, and then went on for an hour as if nothing were."""
    job = Job(clock=site.clock)
    for _ in range(203):
        job.step("applied", 0.5)
    job.step("accepted_not_finite", "NaN", w=1)
    site.send(job.report())
    for _ in range(60):
        site.clock.advance(60)
        for _ in range(50):
            job.step("applied", 0.5)
        site.send(job.report())
        site.ingest.tick()
    return job


def test_an_hour_of_good_steps_does_not_heal_it(site: Served) -> None:
    poisoned(site)
    run = site.get("/v1/runs/lm")
    assert (run["health"], run["summary"], run["runbook"]) == ("gave_up", SENTENCE, "OptwrapGaveUp")
    assert run["processes"][0]["health"] == "gave_up"
    assert run["processes"][0]["summary"] == SENTENCE
    (incident,) = run["incidents"]
    assert (incident["state"], incident["first_step"], incident["last_clean_step"]) == ("open", 204, 203)
    assert (
        incident["summary"] == "step 204: 1 step non-finite, first w, 1 applied, not rolled back, last clean step 203"
    )
    metrics = site.scrape()
    assert 'optwrap_run_health{health="gave_up",run="lm"} 1.0' in metrics
    assert 'optwrap_process_health{health="gave_up",process="0",run="lm"} 1.0' in metrics
    assert 'optwrap_incidents_open{kind="gave_up",run="lm"} 1.0' in metrics


def test_neither_a_restart_of_the_exporter_nor_the_end_of_the_job_heals_it(tmp_path: Path) -> None:
    clock = TurnedClock()
    with served(tmp_path, clock) as site:
        job = poisoned(site)
    with served(tmp_path, clock) as site:
        assert site.get("/v1/runs/lm")["health"] == "gave_up"
        site.send(job.report("finished"))
        site.clock.advance(86_400)
        site.ingest.tick()
        assert site.get("/v1/runs/lm")["health"] == "gave_up"
        assert 'optwrap_run_health{health="gave_up",run="lm"} 1.0' in site.scrape(), "its alert must not resolve"


def test_a_start_at_the_last_clean_step_heals_it(site: Served) -> None:
    job = poisoned(site)
    later = Job(clock=site.clock, incarnation="e2", attempt="second", state=job.state.copy())
    site.clock.advance(60)
    later.step("applied", 0.5)
    site.send(later.report())
    assert site.get("/v1/runs/lm")["health"] == "gave_up", "the state that was resumed is still the poisoned one"
    clean = Job(clock=site.clock)
    for _ in range(203):
        clean.step("applied", 0.5)
    site.clock.advance(60)
    again = Job(clock=site.clock, incarnation="e3", attempt="third", state=clean.state.copy())
    again.step("applied", 0.5)
    site.send(again.report())
    run = site.get("/v1/runs/lm")
    assert (run["health"], run["since"]) == ("ok", site.clock())
    assert run["incidents"][0]["state"] == "closed"
    assert run["incidents"][0]["summary"].endswith("1 applied, rolled back")


def test_an_acknowledgement_ends_it_for_everybody(site: Served) -> None:
    poisoned(site)
    (incident,) = site.get("/v1/runs/lm")["incidents"]
    site.clock.advance(1)
    asyncio.run(site.ingest.acknowledge(incident["id"]))
    run = site.get("/v1/runs/lm")
    assert (run["health"], run["since"], run["incidents_open"]) == ("ok", site.clock(), {})
    assert 'optwrap_run_health{health="gave_up",run="lm"} 0.0' in site.scrape()


@pytest.mark.parametrize("state", ["failed", None])
def test_a_dead_run_that_is_acknowledged_is_dead_but_calm(site: Served, state: str | None) -> None:
    """Its gauges go, so its alerts resolve. The health is still the truth."""
    job = Job(clock=site.clock)
    job.step("applied", 0.5)
    site.send(job.report() if state is None else job.report(state, reason="ValueError: bad batch"))
    site.clock.advance(3600)
    site.ingest.tick()
    health = state or "stale"
    line = f'optwrap_process_health{{health="{health}",process="0",run="lm"}} 1.0'
    run = site.get("/v1/runs/lm")
    assert (run["health"], run["acknowledged"], run["incidents_open"]) == (health, False, {health: 1})
    assert line in site.scrape()
    asyncio.run(site.ingest.acknowledge(run["incidents"][0]["id"]))
    run = site.get("/v1/runs/lm")
    assert (run["health"], run["acknowledged"], run["incidents_open"]) == (health, True, {})
    assert run["processes"][0]["acknowledged"]
    assert line not in site.scrape()
    site.ingest.tick()
    assert site.get("/v1/runs/lm")["acknowledged"]


def acknowledge(site: Served, kind: str) -> None:
    """Acknowledge the newest incident of a kind."""
    (number, *_) = (one["id"] for one in site.get("/v1/runs/lm/incidents", kind=kind)["items"])
    assert site.client.post(f"/v1/incidents/{number}/acknowledge").status_code == 200


def test_the_verdict_does_not_say_that_the_guard_gave_up_at_a_step_that_it_skipped(site: Served) -> None:
    job = Job(clock=site.clock)
    for _ in range(5):
        job.step()
    job.step("skipped_not_finite", "NaN", w=1)
    job.step("skipped_not_finite", "NaN", w=1)
    job.step("accepted_not_finite", "NaN", w=1)
    site.send(job.report())
    said = "gave up at step 8: 1 non-finite step applied, not rolled back; restore a checkpoint at or before 5"
    site.clock.advance(60)
    job.step("accepted_not_finite", "NaN", w=1)
    site.send(job.report())
    run = site.get("/v1/runs/lm")
    assert (run["summary"], run["since"]) == (said.replace("1 non-finite step", "2 non-finite steps"), START)
    incident = run["incidents"][0]
    assert (incident["first_step"], incident["first_applied_step"], incident["gave_up"]) == (6, 8, START)
    assert incident["summary"].startswith("steps 6 to 9: 4 steps non-finite, first w, 2 applied from step 8 on")


def test_an_acknowledged_give_up_that_goes_on_still_says_that_values_are_applied(site: Served) -> None:
    job = Job(clock=site.clock)
    job.gauges["guard_not_finite_limit"] = 2
    for _ in range(10):
        job.step()
    site.send(job.report())
    site.clock.advance(1)
    for outcome in ["skipped_not_finite"] * 2 + ["accepted_not_finite"] * 30:
        job.step(outcome, "NaN", w=1)
    site.send(job.report())
    acknowledge(site, "gave_up")
    for _ in range(20):
        site.clock.advance(1)
        job.step("accepted_not_finite", "NaN", w=1)
        site.send(job.report())
    said = "gave up at step 13: 50 non-finite steps applied, not rolled back; restore a checkpoint at or before 10"
    run = site.get("/v1/runs/lm")
    assert (run["health"], run["acknowledged"], run["runbook"]) == ("gave_up", True, "OptwrapGaveUp")
    assert (run["summary"], run["since"]) == (f"{said}; acknowledged", START + 1)
    assert (run["last_clean_step"], run["incidents_open"]) == (10, {})
    assert (run["processes"][0]["summary"], run["processes"][0]["acknowledged"]) == (f"{said}; acknowledged", True)
    site.send(job.report("failed", reason="OSError: x"))
    run = site.get("/v1/runs/lm")
    assert (run["health"], run["acknowledged"]) == ("failed", False), "it hides nothing that is new"


def test_an_acknowledged_failure_does_not_hide_a_process_that_goes_silent_later(site: Served) -> None:
    """Of three processes 0 failed, which somebody acknowledged. Then 2 is killed."""
    jobs = [Job(process=index, incarnation=f"e{index}", process_count=3, clock=site.clock) for index in range(3)]
    for job in jobs:
        job.step()
        site.send(job.report())
    site.send(jobs[0].report("failed", reason="OSError: x"))
    acknowledge(site, "failed")
    run = site.get("/v1/runs/lm")
    assert (run["health"], run["acknowledged"]) == ("failed", True)
    for _ in range(15):
        site.clock.advance(1)
        jobs[1].step()
        site.send(jobs[1].report())
    site.ingest.tick()
    run = site.get("/v1/runs/lm")
    assert (run["health"], run["acknowledged"], run["runbook"]) == ("stale", False, "OptwrapProcessStale")
    assert run["summary"].startswith("1 of 3 processes silent for 10 s: process 2 on node-2, after step")
    assert [one["run"] for one in site.get("/v1/runs", health="stale")["items"]] == ["lm"]
    assert 'optwrap_run_health{health="stale",run="lm"} 1.0' in site.scrape()
    acknowledge(site, "stale")
    run = site.get("/v1/runs/lm")
    assert (run["health"], run["acknowledged"]) == ("failed", True)


def test_an_acknowledged_conflict_does_not_hide_nan_in_the_optimizer(site: Served) -> None:
    one, other = (Job(incarnation=name, attempt=name, clock=site.clock) for name in ("first", "second"))
    for _ in range(15):
        for job in (one, other):
            job.step()
            site.send(job.report())
            site.clock.advance(1)
    assert site.get("/v1/runs/lm")["health"] == "conflict"
    acknowledge(site, "conflict")
    one.step()
    site.send(one.report())
    other.step("accepted_not_finite", "NaN", w=1)
    site.send(other.report())
    run = site.get("/v1/runs/lm")
    assert (run["health"], run["acknowledged"], run["incidents_open"]) == ("gave_up", False, {"gave_up": 1})


def test_the_summary_of_a_run_that_gave_up_has_the_step_to_roll_back_to(site: Served) -> None:
    poisoned(site)
    assert site.get("/v1/runs")["items"][0]["last_clean_step"] == 203
    assert site.get("/v1/runs/lm")["last_clean_step"] == 203


def test_processes_that_failed_for_different_reasons_are_not_all_said_to_have_failed_for_the_first(
    site: Served,
) -> None:
    jobs = [Job(process=index, incarnation=f"e{index}", process_count=3, clock=site.clock) for index in range(3)]
    for job in jobs:
        job.step()
        site.send(job.report())
    for job in jobs:
        site.send(job.report("failed", reason="ValueError: shapes" if job.process == 0 else "RuntimeError: peer"))
    assert (
        site.get("/v1/runs/lm")["summary"] == "process 0 on node-0 and 2 more failed at step 1: ValueError: shapes; "
        "see its log, and mend the cause before it starts again"
    )


def test_two_jobs_of_several_processes_are_one_conflict(site: Served) -> None:
    jobs = [
        Job(process=index, incarnation=f"{name}{index}", attempt=name, process_count=4, clock=site.clock)
        for index in range(4)
        for name in ("first", "second")
    ]
    for turn in range(14):
        for job in jobs if turn % 2 else jobs[::-1]:
            job.step()
            site.send(job.report())
            site.clock.advance(0.1)
        site.clock.advance(1)
    run = site.get("/v1/runs/lm")
    assert run["incidents_open"] == {"conflict": 1}
    (incident,) = run["incidents"]
    assert incident["processes"] == [0, 1, 2, 3]
    assert incident["summary"].startswith("two jobs report under this name, from node-")
