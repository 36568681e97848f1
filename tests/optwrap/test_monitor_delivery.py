"""Reports get through: the reporter, turn by turn under a simulated clock, over a simulated network.

The law: once the exporter can be reached, its sum over incarnations is what ran, every step record is stored or counted
as dropped, no report changed after it was sent, and memory was bounded all the while.
"""

import itertools
import json
import logging
import random
from collections.abc import Mapping
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from optwrap._monitor.queue import Closing, Ending, Flush
from optwrap._monitor.sending.schedule import MAX_BACKOFF, Clock
from optwrap._monitor.sending.transport import Answer
from tests.optwrap import monitoring
from tests.optwrap.monitoring import PARAMETERS, Books, Training, counts
from tests.optwrap.simulated_monitor import MODES, SimulatedMonitor


class Deliveries(RuleBasedStateMachine):
    """A training that steps and is rolled back, observed in full, while the network changes."""

    def __init__(self) -> None:
        super().__init__()
        self.sim = SimulatedMonitor(max_rows=30, max_incarnations=4, queue=6)
        self.sim.training = Training(distinct=True)
        self.saved: list[Training] = []
        self.truth: dict[str, int] = {}
        self.steps = 0

    def step(self, offenders: Mapping[str, int]) -> None:
        before = counts(self.sim.training)
        self.sim.step("skipped_not_finite" if offenders else "applied", dict(offenders))
        self.truth = monitoring.plus(self.truth, monitoring.less(counts(self.sim.training), before))
        self.steps += 1

    @rule(
        offenders=st.lists(
            st.dictionaries(st.sampled_from(PARAMETERS), st.integers(1, 9), max_size=2), min_size=1, max_size=9
        )
    )
    def steps_run(self, offenders: list[Mapping[str, int]]) -> None:
        for each in offenders:
            self.step(each)

    @rule()
    def save(self) -> None:
        self.sim.reporter.cycle()
        self.saved.append(self.sim.training.saved())

    @precondition(lambda self: self.saved)
    @rule(which=st.integers(0, 10), offenders=st.dictionaries(st.sampled_from(PARAMETERS), st.just(1), max_size=1))
    def roll_back(self, which: int, offenders: Mapping[str, int]) -> None:
        # Read the readings before and after the rollback: if both were evicted from the queue, it would not show.
        self.sim.reporter.cycle()
        self.sim.training = self.saved[which % len(self.saved)].saved()
        self.saved = [saved for saved in self.saved if saved.steps <= self.sim.training.steps]
        self.step(offenders)
        self.sim.reporter.cycle()

    @rule(seconds=st.sampled_from([0.3, 1.0, 5.0, 60.0]))
    def time_passes(self, seconds: float) -> None:
        self.sim.run(seconds)

    @rule(mode=st.sampled_from(MODES))
    def network_changes(self, mode: str) -> None:
        self.sim.network.mode = mode

    @invariant()
    def memory_is_bounded(self) -> None:
        assert self.sim.account.backlog.weight <= 30
        assert len(self.sim.account.incarnations) <= 4 + 8
        assert len(self.sim.inbox.items) <= 6
        outbox = next(iter(self.sim.reporter._outboxes), None)
        assert outbox is None or len(outbox.held) <= 8

    def teardown(self) -> None:
        sim = self.sim
        # The first report after the refused ones carries the totals.
        sim.network.mode = "up"
        sim.run(2 * MAX_BACKOFF)
        sim.finish()
        assert sim.reporter.delivered
        assert sim.books.totals() == self.truth
        records, dropped = sim.books.steps(), sim.books.dropped()
        assert len(set(records)) == len(records), "a record was reported twice"
        assert len(records) + dropped["steps"] + dropped["bad_steps"] == self.steps
        assert sim.books.order[-1]["state"] == "finished"


TestDeliveries = Deliveries.TestCase
TestDeliveries.settings = hypothesis.settings(max_examples=40, stateful_step_count=20, deadline=None)


def test_a_report_is_sent_every_interval_with_or_without_steps() -> None:
    """A job that compiles must differ from a dead one."""
    sim = SimulatedMonitor()
    sim.run(10.05)
    assert [report["seq"] for report in sim.books.order] == list(range(1, 12))


def test_a_lost_answer_makes_the_client_send_the_same_report_again() -> None:
    """Byte for byte, although there were steps meanwhile."""
    sim = SimulatedMonitor()
    sim.network.mode = "answer lost"
    sim.run(0.01)
    for _ in range(20):
        sim.step()
        sim.run(1.0)
    assert len(sim.books.order) > 2
    assert set(sim.books.reports) == {("e0", 1)}
    sim.network.mode = "up"
    sim.run(MAX_BACKOFF)
    assert len(sim.books.steps()) == 20


def test_attempts_to_reach_an_absent_exporter_become_rare() -> None:
    """An hour costs a few hundred attempts, not 3,600."""
    sim = SimulatedMonitor()
    sim.network.mode = "down"
    sim.run(3600)
    assert 3600 / MAX_BACKOFF <= sim.network.posts <= 400


def test_the_jitter_does_not_use_the_random_module_of_the_training_program() -> None:
    """A program's seeded numbers must not depend on the exporter."""
    random.seed(7)
    expected = random.random()
    random.seed(7)
    assert 0 <= Clock().jitter() <= 1
    assert random.random() == expected


def test_retry_after_is_followed() -> None:
    """Nothing is sent earlier, whatever the backoff says, not even for a flush."""
    sim = SimulatedMonitor()
    sim.network.mode = "busy"
    sim.run(0.01)
    posts = sim.network.posts
    sim.inbox.flushes.append(Flush())
    sim.run(6.9)
    assert sim.network.posts == posts
    sim.inbox.flushes.clear()
    sim.run(30)
    assert sim.network.posts > posts


@pytest.mark.parametrize("state", ["finished", "failed"])
def test_the_last_report_has_the_final_state_and_ignores_retry_after(state: str) -> None:
    """There is no later moment to send it."""
    sim = SimulatedMonitor()
    sim.network.mode = "busy"
    sim.run(1.0)
    sim.step()
    sim.network.mode = "up"
    began = sim.now
    sim.finish(state)
    assert sim.books.order[-1]["state"] == state
    assert sim.books.totals() == {"applied": 1}
    assert sim.now - began < 2


def test_a_run_ends_in_time_without_an_exporter() -> None:
    """The last report is tried again until the deadline, in simulated seconds, and not beyond."""
    sim = SimulatedMonitor()
    sim.network.mode = "down"
    sim.finish()
    assert sim.network.posts > 1
    assert sim.now <= 1002


def test_a_refusal_is_logged_once_with_the_exporters_message(caplog: pytest.LogCaptureFixture) -> None:
    """The records of a refused report are counted as dropped; its totals are in the next report."""
    sim = SimulatedMonitor()
    sim.run(1.5)
    sim.network.mode = "refusing"
    for _ in range(5):
        sim.step()
        sim.run(1.0)
    (line,) = [record.getMessage() for record in caplog.records if record.name == "optwrap"]
    assert "422 run: got r, allowed: s" in line
    sim.network.mode = "up"
    sim.run(2.0)
    assert sim.books.totals() == {"applied": 5}
    assert len(sim.books.steps()) + sim.books.dropped()["steps"] == 5


@pytest.mark.parametrize("mode", ["down", "refusing"])
def test_the_first_report_that_is_stored_holds_everything_from_the_start(mode: str) -> None:
    """After any number of refusals oldest_held is still 1, so the exporter counts from at_start."""
    sim = SimulatedMonitor()
    sim.network.mode = mode
    for _ in range(10):
        sim.step()
        sim.run(1.0)
    sim.network.mode = "up"
    sim.run(2 * MAX_BACKOFF)
    assert sim.books.order[0]["oldest_held"] == 1
    assert sim.books.totals() == {"applied": 10}


def test_a_seq_known_with_other_content_is_not_used_again() -> None:
    """The answer was lost and the repeated report refused, so the next report has another seq."""
    sim = SimulatedMonitor()
    sim.run(1.5)
    sim.step()
    sim.network.mode = "answer lost"
    sim.run(1.0)
    stored = sim.books.order[-1]
    ok = sim.network.post

    def post(body: bytes, *, within: float | None = None, **_: Any) -> Answer:
        report = json.loads(body)
        if sim.now < 1005:
            return Answer(401, b"{}")
        known = sim.books.reports.get((report["incarnation"], report["seq"]), body)
        return ok(body, within=within) if known == body else Answer(409, b"{}")

    sim.network.post = post  # type: ignore[method-assign]  # its token is wrong for a while
    sim.network.mode = "up"
    sim.run(10.0)
    assert sim.books.order[-1]["seq"] > stored["seq"]
    sim.step()
    sim.run(2.0)
    assert sim.books.totals() == {"applied": 2}


def test_an_exporter_that_lost_its_data_counts_from_the_next_report() -> None:
    """oldest_held > 1 tells it that earlier reports were acknowledged: it counts nothing twice."""
    sim = SimulatedMonitor()
    for _ in range(5):
        sim.step()
        sim.run(1.0)
    sim.network.books = Books()
    sim.step()
    sim.run(1.0)
    assert sim.books.order[0]["oldest_held"] > 1
    before = sim.books.order[0]["totals"]["steps"]
    sim.step()
    sim.run(1.0)
    assert sim.books.totals() == {"applied": 7 - before}


def test_losing_the_exporter_and_getting_it_back_is_one_line_each(caplog: pytest.LogCaptureFixture) -> None:
    """Failures in between are not logged."""
    sim = SimulatedMonitor()
    for mode in ("up", "down", "busy", "gibberish", "up"):
        sim.network.mode = mode
        sim.run(60)
    lost, back = [record.getMessage() for record in caplog.records if record.name == "optwrap"]
    assert "Connection refused" in lost
    assert "again" in back


@pytest.mark.parametrize(
    "body",
    [
        *("", "[]", "{}", "3"),
        *(f'{{"acknowledged": {value}}}' for value in ("true", "null", "-1", "1.0", '"1"', "9007199254740993")),
    ],
)
def test_an_answer_without_a_valid_acknowledged_is_no_acknowledgement(
    body: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Something else listens there: the same report is sent again."""
    sim = SimulatedMonitor()
    ok = sim.network.post
    sim.network.post = lambda *_, **__: Answer(200, body.encode())  # type: ignore[method-assign]
    sim.run(1.0)
    (line,) = [record.getMessage() for record in caplog.records if record.name == "optwrap"]
    assert "not from an exporter" in line
    sim.network.post = ok  # type: ignore[method-assign]
    sim.run(MAX_BACKOFF)
    assert sim.books.order[0]["seq"] == 1


def test_further_keys_of_an_answer_are_ignored() -> None:
    """A newer exporter may say more."""
    sim = SimulatedMonitor()
    take = sim.books.take
    sim.books.take = lambda body: {**take(body), "interval": 5, "more": None}  # type: ignore[method-assign]
    sim.run(3.0)
    assert sim.reporter.delivered


def test_a_report_that_is_always_answered_with_500_is_given_up() -> None:
    """It must not hold back the others."""
    sim = SimulatedMonitor()
    ok = sim.network.post

    def post(body: bytes, *, within: float | None = None, **_: Any) -> Answer:
        return Answer(500, b"") if b'"step":[2]' in body else ok(body, within=within)

    sim.network.post = post  # type: ignore[method-assign]  # an exporter with a fault
    for _ in range(3):
        sim.step()
        sim.run(1.0)
    sim.run(600)
    assert sim.books.totals() == {"applied": 3}


def test_a_bad_step_is_reported_at_once() -> None:
    """The first good step after it is, too, but no step of the streak in between."""
    sim = SimulatedMonitor()
    sim.step()
    sim.run(5.0)
    for offenders in ({"head": 1}, {}):
        sim.run(0.5)
        before = sim.network.posts
        sim.step("skipped_not_finite" if offenders else "applied", offenders)
        sim.run(0.11)
        assert sim.network.posts == before + 1
        assert sim.training.steps in {step for _, step in sim.books.steps()}

    sim.run(3.0)
    before = sim.network.posts
    for _ in range(100):
        sim.step("skipped_not_finite", {"head": 1})
        sim.run(0.1)
    assert sim.network.posts - before <= 12


def test_nothing_is_reported_before_the_process_is_known() -> None:
    """Earlier observations are not lost."""
    sim = SimulatedMonitor()
    sim.source.known = False
    sim.step()
    sim.run(5.0)
    assert sim.network.posts == 0
    sim.source.known = True
    sim.run(1.0)
    assert sim.books.totals() == {"applied": 1}


def test_no_bad_step_is_dropped_before_the_process_is_known() -> None:
    """Processes may take seconds to agree on an attempt; the hello still has only zeros."""
    sim = SimulatedMonitor(queue=16)
    sim.source.known = False
    for n in range(100):
        sim.step("skipped_not_finite" if n < 5 else "applied", {"head": 1} if n < 5 else None)
        sim.run(0.1)
    assert sim.network.posts == 0
    sim.source.known = True
    sim.run(1.0)
    hello = sim.books.order[0]
    assert (hello["seq"], hello["state"], counts(hello["totals"]), hello["gauges"]) == (1, "starting", {}, {})
    assert counts(hello["at_start"]) == {}
    assert hello["steps"]["step"] == []
    assert sim.books.totals() == {"applied": 95, "skipped_not_finite": 5, "not_finite_steps": 5, "parameter head": 5}
    assert [step for _, step in sim.books.steps()] == list(range(1, 101))
    assert sim.books.dropped() == {"steps": 0, "bad_steps": 0}


def test_an_unexpected_error_does_not_end_the_thread(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged once with its traceback, and reporting goes on."""
    sim = SimulatedMonitor()
    ok, calls = sim.network.post, itertools.count()

    def post(body: bytes, *, within: float | None = None, **_: Any) -> Answer:
        if next(calls) < 3:
            raise ZeroDivisionError
        return ok(body, within=within)

    def wait(timeout: float) -> None:
        sim.now += timeout
        if sim.now > 1010:
            sim.inbox.closing = Closing(Ending("finished"), sim.now + 2)

    sim.network.post = post  # type: ignore[method-assign]  # the bug
    sim.inbox.wakeup.wait = wait  # type: ignore[method-assign]  # the loop runs here, in simulated time
    sim.reporter.run()
    (line,) = [record for record in caplog.records if record.name == "optwrap"]
    assert line.levelno == logging.WARNING
    assert line.exc_info is not None
    assert line.exc_info[0] is ZeroDivisionError
    assert sim.books.order[-1]["state"] == "finished"
