"""The account: incarnations add up to the steps that ran, after rollbacks, repetitions and missed readings."""

import itertools
import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from optwrap_exporter.wire import requests as wire

from optwrap._monitor.account import MAX_REPLICAS, ZERO, Account, Observation, add, before_step, subtract
from optwrap._monitor.sending.encode import Identity
from optwrap._monitor.sending.encode import totals as as_json
from optwrap._monitor.sending.outbox import Outbox
from optwrap._reading.counters import OUTCOMES
from optwrap._reading.replicas import OTHERS, NonfiniteReplicas, Replica
from optwrap._reading.unpack import Totals, unpack
from tests.optwrap import monitoring
from tests.optwrap.monitoring import PARAMETERS, Training, counts

OFFENDERS = st.dictionaries(st.sampled_from(PARAMETERS), st.integers(1, 2**20), max_size=3)
ORDINARY = st.sampled_from(["applied", "accumulated", "skipped_large"])


def observed(training: Training, **fields: object) -> Observation:
    words = np.array(training.words())
    given: dict[str, Any] = {"time": 0.0, "layout": training.layout, **fields}
    return Observation(unpack(words, given["layout"]), words.tobytes(), **given)


def account(**limits: Any) -> Account:
    ids = itertools.count()
    return Account(lambda: f"incarnation-{next(ids)}", **limits)


def total(of: Account) -> dict[str, int]:
    """The sum over incarnations."""
    found: dict[str, int] = {}
    for incarnation in of.incarnations:
        found = monitoring.plus(found, counts(as_json(incarnation.counted)))
    return found


class Trainings(RuleBasedStateMachine):
    """A training that steps, is observed now and then and is rolled back, next to the steps that ran."""

    def __init__(self) -> None:
        super().__init__()
        self.account = account(max_rows=40, max_incarnations=4)
        self.training = Training(mini_step=1, distinct=True)
        self.saved: list[Training] = []
        self.truth: dict[str, int] = {}
        self.observed_at = counts(self.training)
        self.steps_observed = 0
        self.must_observe = False

    def observe(self) -> None:
        now = counts(self.training)
        if now != self.observed_at:
            self.steps_observed += 1
        self.account.add(observed(self.training))
        self.truth = monitoring.plus(self.truth, monitoring.less(now, self.observed_at))
        self.observed_at = now
        self.must_observe = False

    @rule(offenders=OFFENDERS, ordinary=ORDINARY, look=st.booleans())
    def step(self, offenders: Mapping[str, int], ordinary: str, look: bool) -> None:
        outcome = "accepted_not_finite" if len(offenders) > 1 else "skipped_not_finite" if offenders else ordinary
        self.training.step(outcome, offenders)
        # The first step and the one after a rollback are observed: an unobserved step that is rolled back leaves no
        # trace.
        if look or self.must_observe or self.steps_observed == 0:
            self.observe()

    @precondition(lambda self: self.steps_observed and not self.must_observe)
    @rule()
    def observe_again(self) -> None:
        self.observe()

    @precondition(lambda self: counts(self.training) == self.observed_at)
    @rule()
    def save(self) -> None:
        self.saved.append(self.training.saved())

    @precondition(lambda self: self.saved and self.steps_observed)
    @rule(which=st.integers(0, 10))
    def roll_back(self, which: int) -> None:
        self.training = self.saved[which % len(self.saved)].saved()
        self.saved = [saved for saved in self.saved if saved.steps <= self.training.steps]
        self.observed_at = counts(self.training)
        self.must_observe = True

    @invariant()
    def incarnations_add_up_to_the_steps_that_ran(self) -> None:
        assert total(self.account) == self.truth

    @invariant()
    def every_record_is_waiting_or_counted_as_dropped(self) -> None:
        dropped = sum(
            incarnation.dropped_steps + incarnation.dropped_bad_steps for incarnation in self.account.incarnations
        )
        assert len(self.account.backlog) + dropped == self.steps_observed

    @invariant()
    def memory_is_bounded(self) -> None:
        assert self.account.backlog.weight <= 40
        assert len(self.account.incarnations) <= 4


TestTrainings = Trainings.TestCase
TestTrainings.settings = hypothesis.settings(max_examples=50, stateful_step_count=30, deadline=None)


def test_a_fresh_training_counts_from_zero_in_the_first_incarnation() -> None:
    """Neither the reading of a fresh state nor step 1 starts a new incarnation."""
    training, book = Training(), account()
    book.add(observed(training))
    book.add(observed(training.step()))
    assert [incarnation.id for incarnation in book.incarnations] == ["incarnation-0"]
    assert book.current.at_start == ZERO
    assert counts(as_json(book.current.totals)) == {"applied": 1}


def test_a_resumed_training_counts_from_where_it_was_resumed() -> None:
    """A second incarnation starts at the first reading less its own step; that of the hello stays at zero."""
    training = Training()
    for _ in range(7):
        training.step()
    training.step("skipped_not_finite", {"head": 3})
    book = account()
    book.add(observed(training))
    hello, resumed = book.incarnations
    assert hello.counted == ZERO
    assert counts(as_json(resumed.at_start)) == {"applied": 7}
    assert counts(as_json(resumed.counted)) == {"skipped_not_finite": 1, "not_finite_steps": 1, "parameter head": 1}


def test_a_count_that_falls_starts_an_incarnation_even_if_steps_rose() -> None:
    """A state from another branch of the training may have more steps and fewer bad ones."""
    bad, good = Training(), Training()
    bad.step("skipped_not_finite", {"head": 1})
    good.step()
    good.step()
    book = account()
    book.add(observed(bad))
    book.add(observed(good))
    assert len(book.incarnations) == 2
    assert total(book) == {"skipped_not_finite": 1, "not_finite_steps": 1, "parameter head": 1, "applied": 1}


def test_lost_readings_are_counted_only_where_steps_are_missing() -> None:
    """Five readings lost in a gap of three steps, one of them bad, are three dropped records, one of them bad."""
    training, book = Training(), account()
    book.add(observed(training.step()))
    training.step().step("skipped_not_finite", {"head": 1}).step()
    book.add(observed(training.step(), lost=5))
    assert (book.current.dropped_steps, book.current.dropped_bad_steps) == (2, 1)


def test_renamed_parameters_start_an_incarnation() -> None:
    """Counts by path are compared within an incarnation, so a path must mean the same parameter throughout."""
    training, book = Training(), account()
    book.add(observed(training.step("skipped_not_finite", {"head": 1}), layout=None))
    book.add(observed(training.step()))
    assert len(book.incarnations) == 2
    assert counts(as_json(book.current.counted)) == {"applied": 1}


TOTALS = st.builds(
    Totals,
    outcomes=st.fixed_dictionaries({outcome: st.integers(0, 9) for outcome in OUTCOMES}),
    not_finite_steps=st.integers(0, 9),
    parameters=st.dictionaries(st.sampled_from(PARAMETERS), st.integers(1, 9)),
)


@hypothesis.given(TOTALS, TOTALS)
def test_subtract_undoes_add(a: Totals, b: Totals) -> None:
    """(a + b) - b = a, and a - (a + b) = 0."""
    assert counts(as_json(subtract(add(a, b), b))) == counts(as_json(a))
    assert subtract(a, add(a, b)) == ZERO


@hypothesis.given(offenders=OFFENDERS, before=st.integers(0, 3))
def test_before_step_gives_the_totals_of_the_reading_before(offenders: Mapping[str, int], before: int) -> None:
    """`before_step` undoes the reading's own step."""
    training = Training()
    for _ in range(before):
        training.step("skipped_not_finite", {"head": 1})
    then = training.reading().totals
    assert before_step(training.step("accumulated", offenders).reading()) == then


def test_totals_are_json() -> None:
    """Plain numbers, with steps and gradient steps computed."""
    wire = as_json(Training().step().step("accumulated").reading().totals)
    assert json.loads(json.dumps(wire)) == wire
    assert (wire["steps"], wire["gradient_steps"], wire["parameters"]) == (2, 1, {})


REPLICAS = st.builds(Replica, st.integers(0, 200), st.integers(0, 9) | st.none(), st.just("tpu:5") | st.none())
BROUGHT = st.none() | REPLICAS.flatmap(
    lambda first: st.integers(1, 50).flatmap(
        lambda n: st.builds(
            NonfiniteReplicas, st.just(first), st.just(n), st.none() | st.integers((first.number or 0) + n, 400)
        )
    )
)


@hypothesis.settings(deadline=None, max_examples=40)
@hypothesis.given(st.lists(st.tuples(BROUGHT, st.booleans()), max_size=90))
def test_incarnations_add_up_to_the_replicas_observed_and_their_reports_are_valid(
    steps: list[tuple[NonfiniteReplicas | None, bool]],
) -> None:
    """After any rollback; replicas beyond the first few of an incarnation are counted together."""
    book = account()
    outbox = Outbox(book, Identity("r", 0, "a", 1.0))
    training, saved = Training(distinct=True), Training(distinct=True)
    expected: list[NonfiniteReplicas] = []
    for which, (found, back) in enumerate(steps):
        if back:
            training = saved.saved()
        training.step("skipped_not_finite", {"head": 1})
        words = np.array(training.words())
        book.add(
            Observation(unpack(words, training.layout), b"%d" % which, 1.0, training.layout, nonfinite_replicas=found)
        )
        expected += [found] if found else []
        if which % 7 == 0:
            saved = training.saved()
    counted: Counter[Replica] = Counter()
    for incarnation in book.incarnations:
        assert len(incarnation.counted.replicas) <= MAX_REPLICAS + 1
        assert not incarnation.at_start.replicas
        counted.update(incarnation.counted.replicas)
    assert counted.total() == len(expected)
    for replica, n in counted.items():
        assert replica == OTHERS or n <= [one.first for one in expected].count(replica)
    if len({one.first for one in expected}) <= MAX_REPLICAS:
        assert counted == Counter(one.first for one in expected)
    source = {"host": "h", "platform": "cpu", "device_kind": "cpu", "device_count": 1, "process_count": 1}
    source |= {"jax_version": "1", "optwrap_version": "1"}
    reported: list[tuple[Any, ...]] = []
    while (report := outbox.build(source, 1.0, heartbeat=False)) is not None:
        valid = wire.Report.model_validate_json(report.body)
        reported += [(one.replica, one.process, one.device, one.count, one.of) for one in valid.replicas]
        outbox.acknowledge(report.incarnation, report.seq)
    assert Counter(reported) == Counter((*one.first, one.affected, one.total) for one in expected)
