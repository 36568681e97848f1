"""The reporting thread's work, turn by turn under a simulated clock, over a network that does what networks do.

The law: once the exporter can be reached, the sum over incarnations that it keeps is what has run, every step record is with
it or is counted as dropped, no report ever changes after it was sent, and memory was bounded all the while.
"""

import dataclasses
import itertools
import json
import logging
import random
from collections.abc import Callable, Mapping
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from optwrap_exporter.wire import requests as wire

from optwrap._monitor.account import Account, Observed
from optwrap._monitor.outbox import Identity, Outbox
from optwrap._monitor.queue import Closing, Flush, Inbox
from optwrap._monitor.settings import Settings, resolve
from optwrap._monitor.thread import LONGEST_BACKOFF, Clock, Reporter
from optwrap._monitor.transport import Answer, TransportError
from optwrap._reading.unpack import Reading, Totals
from tests.optwrap import monitoring
from tests.optwrap.monitoring import PARAMETERS, Books, Training, counts

SOURCE = {
    "host": "node-1",
    "platform": "cpu",
    "device_kind": "cpu",
    "device_count": 1,
    "process_count": 1,
    "jax_version": "0",
    "optwrap_version": "0",
}


@dataclasses.dataclass
class FixedSource:
    """A source that knows at once."""

    known: bool = True

    def process(self) -> int | None:
        return 0 if self.known else None

    def attempt(self, run: str, incarnation: str, now: float) -> str | None:
        del run, now
        return incarnation if self.known else None

    def describe(self) -> dict[str, Any]:
        return SOURCE

    def stepped(self) -> None:
        pass


class Network:
    """A transport whose exporter keeps books, and checks every report against the exporter's own models."""

    def __init__(self) -> None:
        self.books = Books()
        self.mode = "up"
        self.posts = 0

    def post(self, body: bytes, *, within: float | None = None, meanwhile: Callable[[], None] | None = None) -> Answer:
        del meanwhile
        assert within is None or within > 0
        self.posts += 1
        report = wire.Report.model_validate_json(body)
        mode = self.mode
        if (report.incarnation, report.seq) in self.books.reports and mode in ("refusing", "too large"):
            mode = "up"  # what is stored is acknowledged again, whatever else is refused
        if mode == "too large" and len(report.steps) <= 1:
            mode = "up"
        match mode:
            case "down":
                raise TransportError("Connection refused")
            case "busy":
                return Answer(503, b"{}", retry_after=7.0)
            case "refusing":
                return Answer(422, b'{"detail": [{"field": "run", "value": "r", "allowed": "s"}]}')
            case "too large":
                return Answer(413, b"{}")
            case "gibberish":
                return Answer(200, b"<html>It works!</html>")
        answer = self.books.take(body)
        if mode == "answer lost":
            raise TransportError("timed out")
        if mode == "lagging":  # what is durable is one report behind what was taken
            answer["acknowledged"] -= 1
        return Answer(200, json.dumps(answer).encode())

    def close(self) -> None:
        pass

    def abandon(self) -> None:
        pass


class Desk:
    """A Reporter without a thread, its clock, its network and a training."""

    def __init__(
        self, *, most_rows: int = 65_536, most_incarnations: int = 32, queue: int = 2048, seed: int = 0
    ) -> None:
        self.now = 1000.0
        self.set_back = 0.0
        ids = (f"e{n}" for n in itertools.count())
        settings = resolve({}, run="r", process=0)
        assert isinstance(settings, Settings)
        clock = Clock(lambda: self.now - self.set_back, lambda: self.now, self.pass_time, random.Random(seed).random)
        self.network = Network()
        self.source = FixedSource()
        self.inbox = Inbox(queue, clock.time)
        self.account = Account(lambda: next(ids), most_rows=most_rows, most_incarnations=most_incarnations)
        self.reporter = Reporter(
            settings, self.inbox, self.account, transport=self.network, source=self.source, clock=clock
        )
        self.training = Training()
        self.inbox.layout, self.inbox.stepping = self.training.layout, True

    @property
    def books(self) -> Books:
        return self.network.books

    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    def observe(self, training: Training | None = None) -> None:
        self.inbox.put(np.array((training or self.training).words()), None)

    def run(self, seconds: float) -> None:
        """Let the thread's loop go on for that long."""
        until = self.now + seconds
        while self.now < until:
            self.reporter.cycle()
            self.now += min(self.reporter.pause(), until - self.now)

    def finish(self, state: str = "finished") -> None:
        self.inbox.closing = Closing(state, self.now + 2)
        self.reporter.finish()


class Deliveries(RuleBasedStateMachine):
    """A training that steps and is rolled back, observed in full, while the network changes its mind."""

    def __init__(self) -> None:
        super().__init__()
        self.desk = Desk(most_rows=30, most_incarnations=4, queue=6)
        self.desk.training = Training(distinct=True)
        self.saved: list[Training] = []
        self.truth: dict[str, int] = {}
        self.steps = 0

    def step(self, offenders: Mapping[str, int]) -> None:
        before = counts(self.desk.training)
        self.desk.training.step("skipped_not_finite" if offenders else "applied", offenders)
        self.truth = monitoring.plus(self.truth, monitoring.less(counts(self.desk.training), before))
        self.steps += 1
        self.desk.observe()

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
        self.desk.reporter.cycle()
        self.saved.append(self.desk.training.saved())

    @precondition(lambda self: self.saved)
    @rule(which=st.integers(0, 10), offenders=st.dictionaries(st.sampled_from(PARAMETERS), st.just(1), max_size=1))
    def roll_back(self, which: int, offenders: Mapping[str, int]) -> None:
        # The reading before and the one after a rollback are taken from the queue: if neither were, it would not show.
        self.desk.reporter.cycle()
        self.desk.training = self.saved[which % len(self.saved)].saved()
        self.saved = [saved for saved in self.saved if saved.steps <= self.desk.training.steps]
        self.step(offenders)
        self.desk.reporter.cycle()

    @rule(seconds=st.sampled_from([0.3, 1.0, 5.0, 60.0]))
    def time_passes(self, seconds: float) -> None:
        self.desk.run(seconds)

    @rule(mode=st.sampled_from(["up", "down", "answer lost", "busy", "refusing", "too large", "lagging", "gibberish"]))
    def network_changes(self, mode: str) -> None:
        self.desk.network.mode = mode

    @invariant()
    def memory_is_bounded(self) -> None:
        assert self.desk.account.backlog.weight <= 30
        assert len(self.desk.account.incarnations) <= 4 + 8
        assert len(self.desk.inbox.items) <= 6
        outbox = self.desk.reporter._outbox
        assert outbox is None or len(outbox.held) <= 8

    def teardown(self) -> None:
        desk = self.desk
        # One report more than was refused tells of everything.
        desk.network.mode = "up"
        desk.run(2 * LONGEST_BACKOFF)
        desk.finish()
        assert desk.reporter.delivered
        assert desk.books.totals() == self.truth
        records, dropped = desk.books.steps(), desk.books.dropped()
        assert len(set(records)) == len(records), "a record was reported twice"
        assert len(records) + dropped["steps"] + dropped["bad_steps"] == self.steps
        assert desk.books.order[-1]["state"] == "finished"


TestDeliveries = Deliveries.TestCase
TestDeliveries.settings = hypothesis.settings(max_examples=40, stateful_step_count=20, deadline=None)


def test_the_hello_is_all_zeros_and_comes_before_any_step() -> None:
    """Counters have to exist at zero before they rise, or their first increase is not seen."""
    desk = Desk()
    desk.training.step()
    desk.observe()
    desk.run(0.1)
    hello = desk.books.order[0]
    assert (hello["seq"], hello["oldest_held"], hello["state"]) == (1, 1, "starting")
    assert counts(hello["totals"]) == counts(hello["at_start"]) == {}
    assert hello["steps"]["step"] == []
    assert desk.books.totals() == {"applied": 1}


def test_a_resume_leaves_the_hello_in_an_incarnation_of_its_own() -> None:
    """So the place where an incarnation began never changes, and nobody has to ask which report of it to believe."""
    desk = Desk()
    for _ in range(5):
        desk.training.step()
    desk.run(1.5)
    desk.observe()
    desk.run(1.5)
    first, second = desk.books.incarnations().values()
    assert [counts(report["at_start"]) for report in first] == [{}] * len(first)
    assert counts(second[0]["at_start"]) == {"applied": 4}
    assert second[0]["seq"] == 1
    assert second[0]["attempt"] == first[0]["incarnation"], "both are of one launch"
    assert desk.books.totals() == {"applied": 1}


def test_a_report_goes_out_every_interval_steps_or_none() -> None:
    """A job that compiles, or hangs, can be told from one that is dead."""
    desk = Desk()
    desk.run(10.05)
    assert [report["seq"] for report in desk.books.order] == list(range(1, 12))


def test_an_answer_that_is_lost_makes_the_same_report_come_again() -> None:
    """Byte for byte, although steps came in the meantime."""
    desk = Desk()
    desk.network.mode = "answer lost"
    desk.run(0.01)
    for _ in range(20):
        desk.training.step()
        desk.observe()
        desk.run(1.0)
    assert len(desk.books.order) > 2
    assert set(desk.books.reports) == {("e0", 1)}
    desk.network.mode = "up"
    desk.run(LONGEST_BACKOFF)
    assert len(desk.books.steps()) == 20


def test_an_exporter_that_is_away_is_left_alone_ever_longer() -> None:
    """An hour of absence costs a few hundred attempts and not 3,600."""
    desk = Desk()
    desk.network.mode = "down"
    desk.run(3600)
    assert 3600 / LONGEST_BACKOFF <= desk.network.posts <= 400


def test_what_is_drawn_for_a_pause_is_not_taken_from_the_training_program() -> None:
    """Its seeded draws must not depend on how often an exporter was away."""
    random.seed(7)
    expected = random.random()
    random.seed(7)
    assert 0 <= Clock().jitter() <= 1
    assert random.random() == expected


def test_retry_after_is_honoured() -> None:
    """Whatever the backoff says, nothing is sent before the exporter wants it, not even for a flush."""
    desk = Desk()
    desk.network.mode = "busy"
    desk.run(0.01)
    posts = desk.network.posts
    desk.inbox.flushes.append(Flush())
    desk.run(6.9)
    assert desk.network.posts == posts
    desk.inbox.flushes.clear()
    desk.run(30)
    assert desk.network.posts > posts


@pytest.mark.parametrize("state", ["finished", "failed"])
def test_the_last_report_says_how_it_ended_and_goes_at_once(state: str) -> None:
    """Although the exporter asked for patience: there will be no later."""
    desk = Desk()
    desk.network.mode = "busy"
    desk.run(1.0)
    desk.training.step()
    desk.observe()
    desk.network.mode = "up"
    began = desk.now
    desk.finish(state)
    assert desk.books.order[-1]["state"] == state
    assert desk.books.totals() == {"applied": 1}
    assert desk.now - began < 2


def test_a_run_ends_in_time_without_an_exporter() -> None:
    """Simulated seconds: the end is tried again until its deadline and not beyond."""
    desk = Desk()
    desk.network.mode = "down"
    desk.finish()
    assert desk.network.posts > 1
    assert desk.now <= 1002


def test_each_refusal_is_said_once_with_the_exporters_own_words(caplog: pytest.LogCaptureFixture) -> None:
    """And its records are counted as dropped, which the next report that is taken says."""
    desk = Desk()
    desk.run(1.5)
    desk.network.mode = "refusing"
    for _ in range(5):
        desk.training.step()
        desk.observe()
        desk.run(1.0)
    (line,) = [record.getMessage() for record in caplog.records if record.name == "optwrap"]
    assert "422 run: got r, allowed: s" in line
    desk.network.mode = "up"
    desk.run(2.0)
    assert desk.books.totals() == {"applied": 5}
    assert len(desk.books.steps()) + desk.books.dropped()["steps"] == 5


def test_losing_the_exporter_and_having_it_back_is_a_line_each(caplog: pytest.LogCaptureFixture) -> None:
    """However often and however differently it fails in between."""
    desk = Desk()
    for mode in ("up", "down", "busy", "gibberish", "up"):
        desk.network.mode = mode
        desk.run(60)
    lost, back = [record.getMessage() for record in caplog.records if record.name == "optwrap"]
    assert "Connection refused" in lost
    assert "again" in back


def test_a_report_that_breaks_the_exporter_is_given_up_in_the_end() -> None:
    """One that it answers with 500 time and again must not keep all others waiting for ever."""
    desk = Desk()
    ok = desk.network.post

    def post(body: bytes, *, within: float | None = None, **_: Any) -> Answer:
        return Answer(500, b"") if b'"step":[2]' in body else ok(body, within=within)

    desk.network.post = post  # type: ignore[method-assign]  # an exporter with a fault
    for _ in range(3):
        desk.training.step()
        desk.observe()
        desk.run(1.0)
    desk.run(600)
    assert desk.books.totals() == {"applied": 3}


def test_an_exporter_that_lost_its_directory_gets_back_what_it_had_said() -> None:
    """`base` of its answers is in every later report of the incarnation, word for word."""
    desk = Desk()
    desk.training.step()
    base = {**json.loads(json.dumps(monitoring_base())), "steps": 7}
    take = desk.books.take
    desk.books.take = lambda body: {**take(body), "base": base}  # type: ignore[method-assign]  # it knows of a past
    desk.run(2.5)
    assert [report["base"] for report in desk.books.order] == [None, base, base]


@pytest.mark.parametrize("answered", [True, False], ids=["hello answered", "hello on its way"])
def test_an_incarnation_knows_of_the_past_what_the_one_before_it_was_told(answered: bool) -> None:
    """An exporter may lose its directory before a resumed trainer's first step, or in the moment after a rollback."""
    desk = Desk()
    take = desk.books.take
    desk.books.take = lambda body: {**take(body), "base": monitoring_base()}  # type: ignore[method-assign]
    desk.run(0.5 if answered else 0.0)
    for _ in range(3):
        desk.training.step()
    desk.observe()
    if not answered:
        desk.reporter.cycle()  # the hello goes out, and the reading is counted before its answer is read
    desk.run(1.0)
    for _ in range(2):
        desk.training.step()
        desk.observe()
    desk.run(1.0)
    desk.training = Training()
    desk.training.step()
    desk.observe()
    desk.books.take = take  # type: ignore[method-assign]  # another exporter, which knows nothing
    desk.run(2.0)
    hello, resumed, rolled_back = desk.books.incarnations().values()
    assert [report["base"] for report in hello[:1]] == [None]
    assert {report["base"]["steps"] for report in resumed} == {7}
    assert {report["base"]["steps"] for report in rolled_back} == {7 + 3}
    assert rolled_back[0]["base"]["outcomes"]["applied"] == rolled_back[0]["base"]["gradient_steps"] == 10


def test_a_clock_that_is_set_back_sets_no_report_back() -> None:
    """By when they were sent the exporter tells older from newer; what a step shows is the clock as it is."""
    desk = Desk()
    for _ in range(4):
        desk.training.step()
        desk.observe()
        desk.run(1.0)
        desk.set_back += 300
    sent = [report["sent_at"] for report in desk.books.order]
    assert sent == sorted(sent)
    assert (sent[0], sent[-1]) == (1000, pytest.approx(1003, abs=0.1))
    times = [time for report in desk.books.order for time in report["steps"]["time"]]
    assert times == pytest.approx([1000, 1001 - 300, 1002 - 600, 1003 - 900], abs=0.1)


def monitoring_base() -> dict[str, Any]:
    """Counters of seven applied steps, as an exporter says them."""
    outcomes = dict.fromkeys(wire.OUTCOMES, 0) | {"applied": 7}
    return {"steps": 7, "gradient_steps": 7, "not_finite_steps": 0, "outcomes": outcomes, "parameters": {}}


def test_steps_in_a_row_have_times_between_two_observations() -> None:
    """Four steps of one scan, observed 4 s after the step before them, ended one second apart, as far as we know."""
    desk = Desk()
    desk.run(0.01)
    began = desk.now = 2000.0
    desk.training.step()
    desk.observe()
    desk.now = began + 4
    block = np.stack([np.array(desk.training.step().words()) for _ in range(4)])
    desk.inbox.put(block, None)
    desk.run(1.0)
    steps = desk.books.order[-1]["steps"]
    assert steps["step"] == [1, 2, 3, 4, 5]
    assert steps["time"] == [began, began + 1, began + 2, began + 3, began + 4]
    assert steps["interpolated"] == [False, True, True, True, True]


def test_replicas_of_a_step_are_one_step() -> None:
    """Equal rows, as pmap returns them; and the same rows once more are no news."""
    desk = Desk()
    block = np.stack([np.array(desk.training.step("skipped_not_finite", {"head": 2}).words())] * 8)
    desk.inbox.put(block, None)
    desk.inbox.put(block, None)
    desk.run(1.0)
    report = desk.books.order[-1]
    assert report["steps"]["step"] == [1]
    assert "interpolated" not in report["steps"]
    assert report["offenders"] == [{"step": 1, "parameter": "head", "not_finite": 2}]


def test_rows_that_are_neither_steps_nor_replicas_are_refused(caplog: pytest.LogCaptureFixture) -> None:
    """With one line that shows the steps; the next reading that is in order has their totals."""
    desk = Desk()
    first, _, third = [np.array(desk.training.step().words()) for _ in range(3)]
    for _ in range(3):
        desk.inbox.put(np.stack([first, third]), None)
    desk.run(1.0)
    (line,) = [record.getMessage() for record in caplog.records if record.name == "optwrap"]
    assert "rows of the steps 1, 3" in line
    assert desk.books.totals() == {}
    desk.observe()
    desk.run(1.0)
    assert desk.books.totals() == {"applied": 1}, "the first reading is of one step; those before it nobody saw"


def test_the_newest_reading_gets_through_a_full_queue() -> None:
    """Ten thousand readings while the thread was away: the totals are right, and what was lost is counted."""
    desk = Desk(queue=16)
    desk.training.step()
    desk.observe()
    desk.run(0.1)
    for _ in range(1000):
        desk.training.step()
        desk.observe()
    desk.run(2.0)
    assert desk.books.totals() == {"applied": 1001}
    assert len(desk.books.steps()) == 17
    assert desk.books.dropped() == {"steps": 984, "bad_steps": 0}


def test_an_hour_without_an_exporter_is_bounded_and_loses_no_total() -> None:
    """100 steps a second, every thousandth bad: in the end it has all totals and bad records; what lacks is counted."""
    account = Account(lambda: "e")
    outbox = Outbox(account, Identity("r", 0, "a", 1.0))
    training = Training()
    good = training.step().reading()
    bad = training.saved().step("skipped_not_finite", {"head": 1, PARAMETERS[0]: 3}).reading()
    outcomes, bads = dict(good.totals.outcomes), 0
    held = outbox.build(SOURCE, 0.0, beat=True)
    assert held is not None
    for n in range(1, 360_001):
        is_bad = n % 1000 == 0
        bads += is_bad
        one = bad if is_bad else good
        totals = Totals(
            {**outcomes, "applied": n - bads, "skipped_not_finite": bads},
            bads,
            {PARAMETERS[0]: bads, "head": bads} if bads else {},
        )
        reading = Reading(totals, one.outcome, one.finite, one.norm, one.nonfinite_parameters, one.gauges)
        account.take(Observed(reading, b"%d" % n, n / 100, training.layout))
        if n % 10_000 == 0:
            assert account.backlog.weight <= 65_536
    books = Books()
    books.take(held.body)
    outbox.acknowledge(held.incarnation, held.seq, None)
    while (report := outbox.build(SOURCE, 3600.0, beat=False)) is not None:
        assert len(report.body) < 4 * 2**20, "within what the exporter takes at once"
        wire.Report.model_validate_json(report.body)
        outbox.acknowledge(report.incarnation, books.take(report.body)["acknowledged"], None)
    assert books.totals() == {
        "applied": 360_000 - 360,
        "skipped_not_finite": 360,
        "not_finite_steps": 360,
        f"parameter {PARAMETERS[0]}": 360,
        "parameter head": 360,
    }
    steps = {step for _, step in books.steps()}
    assert {n for n in range(1, 360_001) if n % 1000 == 0} <= steps
    assert books.dropped() == {"steps": 360_000 - len(steps), "bad_steps": 0}
    assert outbox.settled


def test_a_step_that_goes_wrong_does_not_wait_for_the_next_report() -> None:
    """Nor does the first that is right again; a streak in between, however long, makes no report of its own."""
    desk = Desk()
    desk.training.step()
    desk.observe()
    desk.run(5.0)
    for offenders in ({"head": 1}, {}):
        desk.run(0.5)
        before = desk.network.posts
        desk.training.step("skipped_not_finite" if offenders else "applied", offenders)
        desk.observe()
        desk.run(0.11)
        assert desk.network.posts == before + 1
        assert desk.training.steps in {step for _, step in desk.books.steps()}

    desk.run(3.0)
    before = desk.network.posts
    for _ in range(100):
        desk.training.step("skipped_not_finite", {"head": 1})
        desk.observe()
        desk.run(0.1)
    assert desk.network.posts - before <= 12


def test_nobody_reports_before_it_is_known_who() -> None:
    """And what was observed until then is not lost."""
    desk = Desk()
    desk.source.known = False
    desk.training.step()
    desk.observe()
    desk.run(5.0)
    assert desk.network.posts == 0
    desk.source.known = True
    desk.run(1.0)
    assert desk.books.totals() == {"applied": 1}


def test_no_bad_step_has_to_go_while_it_is_not_known_who_reports() -> None:
    """Processes may need seconds to agree on what their launch is called; the hello says zero all the same."""
    desk = Desk(queue=16)
    desk.source.known = False
    for n in range(100):
        desk.training.step("skipped_not_finite" if n < 5 else "applied", {"head": 1} if n < 5 else None)
        desk.observe()
        desk.run(0.1)
    assert desk.network.posts == 0
    desk.source.known = True
    desk.run(1.0)
    hello = desk.books.order[0]
    assert (hello["seq"], hello["state"], counts(hello["totals"]), hello["gauges"]) == (1, "starting", {}, {})
    assert counts(hello["at_start"]) == {}
    assert hello["steps"]["step"] == []
    assert desk.books.totals() == {"applied": 95, "skipped_not_finite": 5, "not_finite_steps": 5, "parameter head": 5}
    assert [step for _, step in desk.books.steps()] == list(range(1, 101))
    assert desk.books.dropped() == {"steps": 0, "bad_steps": 0}


def test_a_first_reading_waits_for_the_names_of_its_parameters() -> None:
    """Observed before the step is traced, it is of a restored state, and is counted under the names that come later."""
    desk = Desk()
    layout, desk.inbox.layout, desk.inbox.stepping = desk.inbox.layout, None, False
    for _ in range(3):
        desk.training.step("skipped_not_finite", {"head": 1})
    desk.observe()
    desk.run(2.0)
    assert desk.books.totals() == {}
    desk.inbox.layout = layout
    desk.training.step("skipped_not_finite", {"head": 1})
    desk.observe()
    desk.run(2.0)
    report = desk.books.order[-1]
    assert counts(report["at_start"]) == {"skipped_not_finite": 3, "not_finite_steps": 3, "parameter head": 3}
    assert desk.books.totals() == {"skipped_not_finite": 1, "not_finite_steps": 1, "parameter head": 1}
    assert [step for _, step in desk.books.steps()] == [4]


def test_without_names_parameters_are_numbered() -> None:
    """An instrument that was not given the Monitor describes nothing; its readings count all the same."""
    desk = Desk()
    desk.inbox.layout = None
    for _ in range(3):
        desk.training.step("skipped_not_finite", {"head": 1})
        desk.observe()
    desk.run(2.0)
    assert desk.books.totals() == {"skipped_not_finite": 3, "not_finite_steps": 3, "parameter leaf_2": 3}


def test_names_the_wire_does_not_take_are_written_so_that_it_does() -> None:
    """Paths with control characters or half a character, empty or endless ones: the report is taken."""
    desk = Desk()
    desk.training = Training(("", "a\nb", "\ud800", "x" * 2000))
    desk.inbox.layout = desk.training.layout
    desk.training.step("skipped_not_finite", dict.fromkeys(desk.training.layout.parameters, 1))
    desk.observe()
    desk.run(1.0)
    names = list(desk.books.order[-1]["totals"]["parameters"])
    assert names == [".", "a\\nb", "\\ud800", "x" * 1024]


def test_names_that_the_wire_cannot_tell_apart_are_one_parameter() -> None:
    """Its values are those of both; its steps at least those of either, and no more than there were."""
    desk = Desk()
    endless, escaped = "x" * 2000, "a\nb"
    desk.training = Training((endless, endless + "y", escaped, "a\\nb"))
    desk.inbox.layout = desk.training.layout
    for offenders in ({endless: 1, endless + "y": 2, escaped: 4}, {escaped: 1}, {endless + "y": 1, "a\\nb": 8}):
        desk.training.step("skipped_not_finite", offenders)
        desk.observe()
    desk.run(1.0)
    report = desk.books.order[-1]
    assert report["totals"]["parameters"] == {"x" * 1024: 2, "a\\nb": 2}
    assert [(one["step"], one["parameter"], one["not_finite"]) for one in report["offenders"]] == [
        (1, "x" * 1024, 3),
        (1, "a\\nb", 4),
        (2, "a\\nb", 1),
        (3, "x" * 1024, 1),
        (3, "a\\nb", 8),
    ]


@hypothesis.given(
    outcomes=st.lists(st.sampled_from(["applied", "accumulated", "skipped_not_finite"]), min_size=1, max_size=8),
    offenders=st.lists(st.sets(st.sampled_from(PARAMETERS), max_size=2), min_size=8, max_size=8),
    room=st.tuples(*[st.integers(0, 2)] * 4),
)
@hypothesis.settings(max_examples=100, deadline=None)
def test_counters_that_saturate_make_reports_that_are_taken(
    outcomes: list[str], offenders: list[set[str]], room: tuple[int, int, int, int]
) -> None:
    """Each stops by itself at the largest int32, so that they do not fit together any more; the totals are the last."""
    full = 2**31 - 1
    desk = Desk()
    training = desk.training
    training.outcomes.update({"skipped_not_finite": full - room[0], "applied": full - room[1]})
    training.not_finite_steps = full - room[2]
    training.parameters[PARAMETERS[0]] = full - max(room[2], room[3])
    for outcome, bad in zip(outcomes, offenders, strict=False):
        training.step(outcome, dict.fromkeys(sorted(bad), 1))
        for counts_of in (training.outcomes, training.parameters):
            counts_of.update({name: min(n, full) for name, n in counts_of.items()})
        training.not_finite_steps = min(training.not_finite_steps, full)
        desk.observe()
        desk.run(1.0)
    assert counts(desk.books.order[-1]["totals"]) == counts(training)


def test_a_fault_of_our_own_does_not_end_the_thread(caplog: pytest.LogCaptureFixture) -> None:
    """It is said once, with its traceback, and reporting goes on."""
    desk = Desk()
    ok, faults = desk.network.post, itertools.count()

    def post(body: bytes, *, within: float | None = None, **_: Any) -> Answer:
        if next(faults) < 3:
            raise ZeroDivisionError
        return ok(body, within=within)

    desk.network.post = post  # type: ignore[method-assign]  # a fault
    desk.inbox.bell.wait = lambda timeout: stop(desk, timeout)  # type: ignore[method-assign]  # the thread's loop, here
    desk.reporter.run()
    (line,) = [record for record in caplog.records if record.name == "optwrap"]
    assert line.levelno == logging.WARNING
    assert line.exc_info is not None
    assert line.exc_info[0] is ZeroDivisionError
    assert desk.books.order[-1]["state"] == "finished"


def stop(desk: Desk, timeout: float) -> None:
    desk.now += timeout
    if desk.now > 1010:
        desk.inbox.closing = Closing("finished", desk.now + 2)
