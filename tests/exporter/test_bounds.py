"""Forged reports cannot hide a live process or leave a total; true ones are taken after any outage."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optwrap_exporter.ledger import bounds
from optwrap_exporter.ledger.bounds import ImplausibleError, Limits, Quota
from optwrap_exporter.ledger.ledger import MOST_SHOWN, Ledger
from optwrap_exporter.wire.requests import Report
from optwrap_exporter.wire.vocabulary import LARGEST

from tests.conftest import RunningExporter
from tests.exporter.running import Job, Served
from tests.exporter.trainer import Trainer, TurnedClock, sent, take

DAY = 86_400.0


def take_checked(ledger: Ledger, report: Report) -> None:
    """What the ingest does with a report that is not stored yet."""
    assert ledger.admit(report) == 0.0
    take(ledger, report)


def with_steps(job: Job, steps: int, **changes: Any) -> dict[str, Any]:
    """The next report, with so many applied steps in its totals."""
    report = job.report() | changes
    report["totals"]["outcomes"]["applied"] = report["totals"]["steps"] = report["totals"]["gradient_steps"] = steps
    return report


@pytest.mark.parametrize("seq", [2**53, 100_000])
def test_a_forged_seq_hides_no_live_run(site: Served, seq: int) -> None:
    job = Job(clock=site.clock)
    job.step()
    site.send(job.report())
    answer = site.client.post("/v1/reports", json=Job(clock=site.clock).report() | {"seq": seq})
    (detail,) = answer.json()["detail"]
    assert (answer.status_code, detail["field"], detail["value"]) == (422, "seq", str(seq))
    assert "at most" in detail["allowed"]
    for _ in range(30):
        site.clock.advance(1)
        job.step()
        site.send(job.report())
        site.ingest.tick()
    assert site.get("/v1/runs/lm")["health"] == "ok"
    assert site.get("/v1/runs/lm")["gauges"]["gradient_norm"] is not None


@pytest.mark.parametrize("sent_at", [None, 4e9])
def test_a_forged_total_does_not_stay(site: Served, sent_at: float | None) -> None:
    job = Job(clock=site.clock)
    job.step()
    site.send(job.report())
    changes = {} if sent_at is None else {"sent_at": sent_at}
    answer = site.client.post("/v1/reports", json=with_steps(Job(clock=site.clock, seq=1), 2**53, **changes))
    (detail,) = answer.json()["detail"]
    assert (answer.status_code, detail["field"], detail["value"]) == (422, "totals.steps", str(2**53))
    forged = Job(clock=site.clock, seq=1).report() | {"dropped": {"steps": 0, "bad_steps": LARGEST}}
    assert site.client.post("/v1/reports", json=forged).json()["detail"][0]["field"] == "dropped.bad_steps"
    job.step()
    site.send(job.report())
    assert site.get("/v1/runs/lm")["totals"]["steps"] == 2


def test_a_forged_first_report_is_bounded_too(site: Served) -> None:
    answer = site.client.post("/v1/reports", json=with_steps(Job(clock=site.clock), 2**53))
    assert (answer.status_code, answer.json()["detail"][0]["field"]) == (422, "totals.steps")
    # What was taken before the exporter heard of it is not counted, so it may be any number.
    resumed = with_steps(Job(clock=site.clock, seq=6), 2**52, oldest_held=7)
    site.send(resumed)
    assert site.get("/v1/runs/lm")["totals"]["steps"] == 0


def test_a_day_of_outage_is_taken(site: Served) -> None:
    """Held reports first, then one with the steps of a day, all at once; sent at their own times."""
    job = Job(clock=TurnedClock())
    held = []
    for _ in range(8):
        job.step()
        held.append(job.report())
        job.clock.advance(1)  # type: ignore[attr-defined] # a TurnedClock
    site.send(held[0])
    job.clock.advance(DAY)  # type: ignore[attr-defined]
    site.clock.advance(DAY + 10)
    for report in held[1:]:
        site.send(report)
    site.send(with_steps(job, 100_000 * int(DAY)))
    assert site.get("/v1/runs/lm")["totals"]["steps"] == 100_000 * int(DAY)


def test_an_incarnation_that_began_while_the_exporter_was_away_is_taken(site: Served) -> None:
    """Its hello was built then, and arrives a moment before the report with the steps of a day."""
    clock = TurnedClock()
    job = Job(clock=clock)
    hello = job.report("starting")
    clock.advance(DAY)
    site.clock.advance(DAY)
    site.send(hello)
    site.clock.advance(0.01)
    site.send(with_steps(job, 10_000 * int(DAY)))


def test_a_hidden_loop_of_hours_is_taken(site: Served) -> None:
    """A jitted loop reports nothing but heartbeats, and then all its steps."""
    job = Job(clock=site.clock)
    site.send(job.report())
    for _ in range(10):
        site.clock.advance(3600)
        site.send(job.report())
    site.send(with_steps(job, 200_000 * 36_000))


def test_after_a_store_was_restored_from_a_backup_seq_goes_on_where_the_client_is(site: Served) -> None:
    job = Job(clock=site.clock)
    site.send(job.report())
    job.seq = 86_400  # a day of reports that the backup does not have
    site.clock.advance(DAY)
    site.send(job.report() | {"oldest_held": 86_400})


@given(st.data())
def test_a_true_report_is_always_taken(data: st.DataObject) -> None:
    """Any pace up to 200,000 steps/s, any outage up to two days, any delay of single reports."""
    clock = TurnedClock()
    ledger = Ledger(clock)
    trainer = Trainer(clock)
    pace = data.draw(st.floats(0, 200_000))
    total, waiting = 0.0, []
    for _ in range(data.draw(st.integers(1, 12))):
        seconds = data.draw(st.floats(0.2, 5) | st.floats(5, 2 * DAY))
        clock.advance(seconds)
        total += pace * seconds
        report = trainer.json()
        for name in ("steps", "gradient_steps"):
            report["totals"][name] = int(total)
        report["totals"]["outcomes"]["applied"] = int(total)
        waiting.append(sent(report))
        if data.draw(st.booleans()) or len(waiting) == 8:  # a Monitor builds no more while it holds eight
            for one in waiting:
                take_checked(ledger, one)
            waiting = []


def test_what_is_refused_is_acceptable_after_some_time() -> None:
    """So no client is refused for ever, even one that nobody thought of."""
    clock = TurnedClock()
    ledger = Ledger(clock)
    trainer = Trainer(clock)
    take_checked(ledger, trainer.report())
    trainer.seq = 100_000
    with pytest.raises(ImplausibleError):
        ledger.admit(trainer.report())
    trainer.seq = 100_000
    clock.advance(100_000 / bounds.SEQ_RATE)
    take_checked(ledger, trainer.report())


def test_new_runs_beyond_the_quota_wait_and_known_ones_do_not(site: Served) -> None:
    known = Job(run="known", clock=site.clock)
    site.send(known.report())
    answers = [
        site.client.post("/v1/reports", json=Job(run=f"forged-{i}").report()) for i in range(Limits().new_runs + 5)
    ]
    assert [answer.status_code for answer in answers].count(200) == Limits().new_runs - 1
    assert answers[-1].status_code == 429
    assert int(answers[-1].headers["retry-after"]) >= 1
    known.step()
    site.send(known.report())
    site.send(Job(run="known", process=1, clock=site.clock).report())
    site.clock.advance(1)
    site.send(Job(run="patient", clock=site.clock).report())


def test_a_quota_is_filled_by_time_alone() -> None:
    clock = TurnedClock(0.0)
    quota = Quota(60, clock)
    assert [quota.take() for _ in range(61)] == [*[0.0] * 60, 1.0]
    clock.advance(1)
    assert quota.take() == 0.0
    assert 0 < quota.take() <= 1
    clock.advance(1e9)
    assert [quota.take() for _ in range(61)][-2:] == [0.0, 1.0]


def test_new_runs_leave_room_for_known_ones() -> None:
    clock = TurnedClock()
    ledger = Ledger(clock, limits=Limits(new_runs=1000, incarnations=10))
    known = Trainer(clock, run="known")
    take_checked(ledger, known.report())
    for number in range(9):
        take_checked(ledger, Trainer(clock, run=f"forged-{number}").report())
    assert ledger.admit(Trainer(clock, run="too-many").report()) > 0
    take_checked(ledger, known.report())
    take_checked(ledger, Trainer(clock, run="known", attempt="second").report())
    for number in range(2):
        ledger.forget(f"forged-{number}")
    take_checked(ledger, Trainer(clock, run="now").report())


def test_runs_that_report_are_shown_first_and_the_older_before_the_newer() -> None:
    clock = TurnedClock()
    ledger = Ledger(clock)
    ended = Trainer(clock, run="ended")
    take(ledger, ended.report("finished"))
    for number in range(MOST_SHOWN):
        clock.advance(0.001)
        take(ledger, Trainer(clock, run=f"live-{number:04}").report())
    assert [run.run for run in ledger.shown()] == [f"live-{number:04}" for number in range(MOST_SHOWN)]
    assert len(ledger.views()) == MOST_SHOWN
    assert len(ledger.runs()) == MOST_SHOWN + 1


def test_no_answer_has_the_id_of_an_incarnation(site: Served) -> None:
    """Who knows it can report under it."""
    with site.client.stream("GET", "/v1/stream", params={"run": "lm"}) as stream:
        lines = stream.iter_lines()
        jobs = [Job(incarnation=f"secret-{attempt}", attempt=attempt, clock=site.clock) for attempt in "ab"]
        for _ in range(6):
            site.clock.advance(1)
            for job in jobs:
                job.step("skipped_not_finite", "NaN", w=1)
                site.send(job.report())
        site.clock.advance(100)
        site.ingest.tick()
        heard = [next(lines) for _ in range(40)]
    run = site.get("/v1/runs/lm")
    kinds = {event["kind"] for event in site.get("/v1/runs/lm/events")["items"]}
    assert {"conflict", "skipped", "stale"} <= kinds
    told = [json.dumps(run), *heard, site.scrape()]
    told += [json.dumps(site.get(f"/v1/runs{path}")) for path in ("", "/lm/steps", "/lm/events", "/lm/parameters")]
    assert "secret" not in "".join(told)


def test_forged_hellos_leave_half_of_a_small_store_to_a_known_run(
    start_exporter: Callable[..., RunningExporter],
) -> None:
    """Before, 755 of them filled a store of 1 MiB."""
    exporter = start_exporter("--retention-bytes", "1MiB", "--new-runs-per-minute", "100000")
    with httpx.Client(base_url=exporter.url, trust_env=False, timeout=30) as client:
        known = Job(run="known")
        assert client.post("/v1/reports", json=known.report()).status_code == 200
        answers = [client.post("/v1/reports", json=Job(run=f"forged-{i}").report("starting")) for i in range(800)]
        assert {answer.status_code for answer in answers} == {200, 429}
        for _ in range(5):
            for _ in range(1000):
                known.step()
            assert client.post("/v1/reports", json=known.report()).status_code == 200
        assert client.get("/v1/runs/known/steps").json()["total"] == 5000
        assert client.get("/-/healthy").status_code == 200
