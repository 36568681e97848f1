"""Every answer has at most ANSWER_BYTES. What is left out is counted, and the counts add up."""

import itertools
import json
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest
from optwrap_exporter.store.queries import BUCKETS
from optwrap_exporter.wire.answers import ANSWER_BYTES
from optwrap_exporter.wire.vocabulary import GOOD_OUTCOMES

from tests.exporter.running import Job, Served
from tests.exporter.stores import Kept
from tests.exporter.test_stream import following
from tests.exporter.trainer import Trainer

LONG = "layer/" + "é" * 1012
"""A path of 2 KB."""


def fetched(site: Served, path: str, **query: Any) -> Any:
    answer = site.client.get(path, params=query)
    assert answer.status_code == 200, answer.text
    assert len(answer.content) <= ANSWER_BYTES
    return answer.json()


def bad_run(site: Served, count: int, *, outcomes: tuple[str, ...] = ("skipped_not_finite",)) -> list[tuple[int, str]]:
    """A run with one good step in ten. Returns its bad steps with their outcomes."""
    job = Job(clock=site.clock)
    told: list[tuple[int, str]] = []
    for step in range(1, count + 1):
        site.clock.advance(0.01)
        if step % 10:
            outcome = outcomes[step // 7 % len(outcomes)]
            job.step(outcome, "NaN", replica={"replica": step % 8, "count": 1, "of": 8, "device": "tpu:5"}, w=1)
            told.append((step, outcome))
        else:
            job.step("applied", 1.2345678901234567)
        if step % 4000 == 0:
            site.send(job.report())
    site.send(job.report())
    return told


@pytest.mark.parametrize("axis", ["step", "time"])
def test_many_bad_steps_are_thinned_and_counted(site: Served, axis: str) -> None:
    told = bad_run(site, 12_000, outcomes=("skipped_not_finite", "accepted_not_finite", "skipped_other"))
    answer = fetched(site, "/v1/runs/lm/steps", axis=axis)
    buckets, columns = answer["thinned"], answer["columns"]
    shown = {
        step: outcome
        for step, outcome, finite in zip(columns["step"], columns["outcome"], columns["finite"], strict=True)
        if outcome not in GOOD_OUTCOMES or not finite
    }
    assert answer["bad"] == sum(bucket["total"] for bucket in buckets) == len(told)
    assert 1 < len(buckets) <= BUCKETS
    assert sum((Counter(bucket["outcomes"]) for bucket in buckets), Counter()) == Counter(o for _, o in told)
    assert all(before["until"] < after["since"] for before, after in itertools.pairwise(buckets))
    for bucket in buckets[::10]:
        inside = [(step, outcome) for step, outcome in told if bucket["since"] <= step <= bucket["until"]]
        assert Counter(outcome for _, outcome in inside) == bucket["outcomes"]
        for outcome in bucket["outcomes"]:
            these = [step for step, other in inside if other == outcome]
            assert {these[0], these[-1]} <= shown.keys()
    assert shown.items() <= dict(told).items()
    assert {told[0][0], told[-1][0]} <= shown.keys()
    assert len(answer["replicas"]) + answer["replicas_left_out"] == len(shown)


def test_a_short_range_has_every_bad_step(site: Served) -> None:
    told = bad_run(site, 12_000)
    answer = fetched(site, "/v1/runs/lm/steps", since=5000, until=9000)
    assert answer["thinned"] == []
    assert answer["bad"] == sum(5000 <= step <= 9000 for step, _ in told)
    assert {step for step, _ in told if 5000 <= step <= 9000} <= set(answer["columns"]["step"])


def test_the_largest_answer_about_steps_keeps_within_the_limit(site: Served) -> None:
    """Long numbers, every outcome, all good steps asked for."""
    job = Job(clock=site.clock)
    site.clock.now += 0.123456
    for step in range(1, 24_001):
        site.clock.advance(0.0123456789)
        device = "x" * 250
        if step % 2:
            outcome = ("skipped_not_finite", "accepted_not_finite", "skipped_other", "skipped_large")[step // 2 % 4]
            job.step(outcome, 1.2345678901234567e-300, replica={"replica": 2**31, "count": 1, "device": device}, w=1)
        else:
            job.gauges["mini_step"] = 2**53
            job.step("accumulated", 1.2345678901234567e-300)
        if step % 6000 == 0:
            site.send(job.report())
    answer = fetched(site, "/v1/runs/lm/steps", points=20_000)
    assert answer["total"] == 24_000
    assert sum(bucket["total"] for bucket in answer["thinned"]) == answer["bad"] == 12_000


def test_many_bad_steps_take_little_memory(tmp_path: Path) -> None:
    """Half a million of them took 31 MB of JSON and 250 MB of memory for one answer before."""
    kept = Kept(tmp_path)
    trainer = Trainer(kept.clock)
    for _ in range(10):
        for _ in range(5_000):
            trainer.bad()
        kept.take(trainer.report())
    tracemalloc.start()
    answer = kept.store.steps("lm", 0, most_bad=8000).model_dump_json()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert json.loads(answer)["bad"] == 50_000
    assert len(answer) < ANSWER_BYTES
    assert peak < 15e6


def send_short(site: Served, job: Job) -> None:
    """Send a report as UTF-8 without escapes, so that long names fit."""
    body = json.dumps(job.report(), ensure_ascii=False).encode()
    answer = site.client.post("/v1/reports", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 200, answer.text


def with_long_names(site: Served, count: int) -> None:
    """A run with that many non-finite parameters, each in one step, three to a step."""
    job = Job(clock=site.clock)
    for step in range(0, count, 3):
        job.step("skipped_not_finite", "NaN", **{f"{LONG}{number:05}": 1 for number in range(step, step + 3)})
        if step % 150 == 0:
            send_short(site, job)
    send_short(site, job)


def test_events_with_long_names_come_in_small_pages(site: Served) -> None:
    with_long_names(site, 900)
    found: list[Any] = []
    cursor: dict[str, str] = {}
    pages = 0
    while True:
        page = fetched(site, "/v1/runs/lm/events", limit=1000, kind="skipped", **cursor)
        found += page["items"]
        pages += 1
        if page["cursor"] is None:
            break
        cursor = {"cursor": page["cursor"]}
    assert [event["step"] for event in found] == list(range(300, 0, -1))
    assert pages > 1


def test_parameters_with_long_names_are_cut_and_counted(site: Served) -> None:
    with_long_names(site, 1500)
    answer = fetched(site, "/v1/runs/lm")
    assert 0 < answer["left_out"]["parameters"] == 1500 - len(answer["parameters"])
    page = fetched(site, "/v1/runs/lm/parameters", limit=1000)
    assert 900 < len(page["items"]) < 1000
    assert page["cursor"] is not None


def test_a_pod_fits_into_one_answer(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    for process in range(4096):
        trainer = Trainer(kept.clock, process=process, process_count=4096)
        trainer.gauges |= {"every_k": 4, "mini_step": 0, "guard_not_finite_count": 0, "guard_not_finite_limit": 5}
        trainer.state.outcomes["applied"] = 1_234_567
        trainer.step("applied", 0.1234567890123456)
        plan = kept.ledger.plan(trainer.report())
        kept.ledger.apply(plan)
    detail = kept.ledger.detail("lm")
    assert detail is not None
    assert len(detail.processes) == 4096
    assert detail.left_out.processes == 0
    assert len(detail.model_dump_json()) <= ANSWER_BYTES


def test_of_too_many_processes_the_healthy_ones_are_left_out(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    for process in range(6000):
        trainer = Trainer(kept.clock, process=process, process_count=6000)
        trainer.gauges |= {"every_k": 4, "mini_step": 0, "guard_not_finite_count": 0, "guard_not_finite_limit": 5}
        if process % 100 == 99:
            trainer.bad()
        else:
            trainer.step("skipped_large", 0.1234567890123456)
        kept.ledger.apply(kept.ledger.plan(trainer.report(replicated=False)))
    detail = kept.ledger.detail("lm")
    assert detail is not None
    assert len(detail.model_dump_json()) <= ANSWER_BYTES
    assert 0 < detail.left_out.processes == 6000 - len(detail.processes)
    skipping = {row.process for row in detail.processes if row.health == "skipping"}
    assert skipping == set(range(99, 6000, 100))
    rows = [row.process for row in detail.processes]
    assert rows == sorted(rows)


def test_a_stream_of_everything_ever_is_cut_to_the_newest(site: Served) -> None:
    """Measured before: an answer of 1 GB to `Last-Event-ID: 0`."""
    job = Job(clock=site.clock)
    for _ in range(60):
        for _ in range(1000):
            job.step("applied", 1.2345678901234567)
        site.send(job.report())
    job.step("skipped_large", 99.0)
    site.send(job.report())
    received = 0
    steps: list[int] = []
    with following(site.url, "lm", last_event_id="0") as stream:
        for message in stream:
            if message.event == "gap":
                gap = message.data
            if message.event == "report":
                received += len(json.dumps(message.data))
                steps += message.data["steps"]["step"]
                if steps[-1] == 60_001:
                    break
    assert received <= ANSWER_BYTES * 1.2  # the reader's JSON has spaces
    assert gap["after"] == 0
    assert steps == list(range(steps[0], 60_002))
    assert gap["messages"] == (steps[0] - 1) // 1000 == gap["until"]


def test_a_huge_report_is_one_small_message(site: Served) -> None:
    job = Job(clock=site.clock)
    with following(site.url, "lm") as stream:
        for _ in range(7_000):
            job.step("applied", 1.2345678901234567)
        for number in range(1000):
            job.step("skipped_not_finite", "NaN", **{f"p_{number}/{'x' * 900}": 1})
        answer = httpx.post(f"{site.url}/v1/reports", json=job.report(), trust_env=False)
        assert answer.status_code == 200, answer.text
        message = stream.next("report").data
    assert len(json.dumps(message, separators=(",", ":"))) <= ANSWER_BYTES
    assert len(message["steps"]["step"]) + message["left_out"]["steps"] == 8_000
    assert len(message["offenders"]) + message["left_out"]["offenders"] == 1000
    # Bad steps come first: none of them is left out.
    assert set(range(7_001, 8_001)) <= set(message["steps"]["step"])
