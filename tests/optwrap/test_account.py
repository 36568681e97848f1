"""The account of incarnations: readings add up to what has run, whatever was rolled back, repeated or not observed."""

import itertools
import json
from collections.abc import Mapping
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from optwrap._monitor.account import ZERO, Account, Observed, less_own_step, minus, plus
from optwrap._monitor.backlog import Backlog, Record
from optwrap._monitor.outbox import totals as as_wire
from optwrap._reading.counters import OUTCOMES
from optwrap._reading.unpack import Totals, unpack
from tests.optwrap import monitoring
from tests.optwrap.monitoring import PARAMETERS, Training, counts

OFFENDERS = st.dictionaries(st.sampled_from(PARAMETERS), st.integers(1, 2**20), max_size=3)
ORDINARY = st.sampled_from(["applied", "accumulated", "skipped_large"])


def observed(training: Training, **circumstances: object) -> Observed:
    words = np.array(training.words())
    given: dict[str, Any] = {"time": 0.0, "layout": training.layout, **circumstances}
    return Observed(unpack(words, given["layout"]), words.tobytes(), **given)


def account(**bounds: int) -> Account:
    ids = itertools.count()
    return Account(lambda: f"incarnation-{next(ids)}", **bounds)


def total(of: Account) -> dict[str, int]:
    """The sum over the incarnations of what each adds."""
    found: dict[str, int] = {}
    for incarnation in of.incarnations:
        found = monitoring.plus(found, counts(as_wire(incarnation.share)))
    return found


class Trainings(RuleBasedStateMachine):
    """A training that steps, skips observing, is rolled back and resumed, beside what has verifiably run."""

    def __init__(self) -> None:
        super().__init__()
        self.account = account(most_rows=40, most_incarnations=4)
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
        self.account.take(observed(self.training))
        self.truth = monitoring.plus(self.truth, monitoring.less(now, self.observed_at))
        self.observed_at = now
        self.must_observe = False

    @rule(offenders=OFFENDERS, ordinary=ORDINARY, look=st.booleans())
    def step(self, offenders: Mapping[str, int], ordinary: str, look: bool) -> None:
        outcome = "accepted_not_finite" if len(offenders) > 1 else "skipped_not_finite" if offenders else ordinary
        self.training.step(outcome, offenders)
        # The first step and the one after a rollback are observed: a step that nobody saw before the counters went
        # back left no trace.
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

    @precondition(lambda self: self.saved and self.steps_observed)
    @rule(which=st.integers(0, 10))
    def roll_back_and_say_so(self, which: int) -> None:
        self.roll_back(which)
        self.account.take(observed(self.training, restored=True))
        self.must_observe = False

    @invariant()
    def the_shares_add_up_to_what_has_run(self) -> None:
        assert total(self.account) == self.truth

    @invariant()
    def every_record_waits_or_is_counted_as_dropped(self) -> None:
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
    """Step 1 needs no new incarnation, and none begins with a reading of a state that has not stepped."""
    training, book = Training(), account()
    book.take(observed(training))
    book.take(observed(training.step()))
    assert [incarnation.id for incarnation in book.incarnations] == ["incarnation-0"]
    assert book.current.at_start == ZERO
    assert counts(as_wire(book.current.totals)) == {"applied": 1}


def test_a_resumed_training_counts_from_where_it_was_resumed() -> None:
    """The first reading less its own step is where the second incarnation begins; the hello's stays at zero."""
    training = Training()
    for _ in range(7):
        training.step()
    training.step("skipped_not_finite", {"head": 3})
    book = account()
    book.take(observed(training))
    hello, resumed = book.incarnations
    assert hello.share == ZERO
    assert counts(as_wire(resumed.at_start)) == {"applied": 7}
    assert counts(as_wire(resumed.share)) == {"skipped_not_finite": 1, "not_finite_steps": 1, "parameter head": 1}


def test_a_restored_state_that_is_observed_before_the_loop_is_no_step() -> None:
    """It tells where the counters stand: no record, no share, and a state that is still starting."""
    training = Training()
    for _ in range(7):
        training.step()
    book = account()
    book.take(observed(training, restored=True))
    assert (book.current.state, len(book.backlog), book.current.share) == ("starting", 0, ZERO)
    book.take(observed(training.step()))
    assert (book.current.state, len(book.backlog)) == ("running", 1)
    assert counts(as_wire(book.current.share)) == {"applied": 1}


def test_counters_that_fell_begin_an_incarnation_although_steps_rose() -> None:
    """A state of another branch of the training, further on and with fewer bad steps, is no continuation."""
    bad, good = Training(), Training()
    bad.step("skipped_not_finite", {"head": 1})
    good.step()
    good.step()
    book = account()
    book.take(observed(bad))
    book.take(observed(good))
    assert len(book.incarnations) == 2
    assert total(book) == {"skipped_not_finite": 1, "not_finite_steps": 1, "parameter head": 1, "applied": 1}


def test_readings_that_were_lost_are_counted_once_and_only_where_steps_are_missing() -> None:
    """Of five lost readings in a gap of three steps, one bad, three steps are dropped, one of them bad."""
    training, book = Training(), account()
    book.take(observed(training.step()))
    training.step().step("skipped_not_finite", {"head": 1}).step()
    book.take(observed(training.step(), lost=5))
    assert (book.current.dropped_steps, book.current.dropped_bad_steps) == (2, 1)


def test_parameters_that_get_other_names_begin_an_incarnation() -> None:
    """Counts by path are compared within an incarnation, so a path must mean the same throughout."""
    training, book = Training(), account()
    book.take(observed(training.step("skipped_not_finite", {"head": 1}), layout=None))
    book.take(observed(training.step()))
    assert len(book.incarnations) == 2
    assert counts(as_wire(book.current.share)) == {"applied": 1}


TOTALS = st.builds(
    Totals,
    outcomes=st.fixed_dictionaries({outcome: st.integers(0, 9) for outcome in OUTCOMES}),
    not_finite_steps=st.integers(0, 9),
    parameters=st.dictionaries(st.sampled_from(PARAMETERS), st.integers(1, 9)),
)


@hypothesis.given(TOTALS, TOTALS)
def test_minus_undoes_plus(a: Totals, b: Totals) -> None:
    """(a + b) - b = a, and a - (a + b) = 0."""
    assert counts(as_wire(minus(plus(a, b), b))) == counts(as_wire(a))
    assert minus(a, plus(a, b)) == ZERO


@hypothesis.given(offenders=OFFENDERS, before=st.integers(0, 3))
def test_a_step_less_itself_is_what_was_before(offenders: Mapping[str, int], before: int) -> None:
    """`less_own_step` of the reading after a step is the totals of the reading before it."""
    training = Training()
    for _ in range(before):
        training.step("skipped_not_finite", {"head": 1})
    then = training.reading().totals
    assert less_own_step(training.step("accumulated", offenders).reading()) == then


RECORDS = st.builds(
    Record,
    step=st.integers(1, 99),
    time=st.just(0.0),
    interpolated=st.just(False),
    outcome=st.sampled_from(OUTCOMES),
    finite=st.booleans(),
    norm=st.just(1.0),
    mini_step=st.none(),
    offenders=st.dictionaries(st.sampled_from(PARAMETERS), st.integers(1, 9)),
)


@hypothesis.given(st.lists(RECORDS, max_size=60), st.integers(1, 30))
def test_a_backlog_keeps_its_bound_and_gives_up_good_records_first(records: list[Record], most: int) -> None:
    """Nothing bad goes while something ordinary is there; what stays keeps its order; nothing vanishes."""
    backlog: Backlog[str] = Backlog(most)
    gone: list[Record] = []
    for record in records:
        dropped = backlog.add("owner", record)
        gone += [entry.record for entry in dropped]
        assert backlog.weight <= most
        if any(entry.record.bad for entry in dropped):
            kept = backlog.take("owner", 10**9)
            assert all(entry.record.bad for entry in kept)
            assert not backlog.put_back(kept)
    kept = backlog.take("owner", 10**9)
    assert [entry.order for entry in kept] == sorted(entry.order for entry in kept)
    assert sorted(map(id, gone + [entry.record for entry in kept])) == sorted(map(id, records))
    assert backlog.weight == len(backlog) == 0


@hypothesis.given(st.lists(RECORDS, min_size=1, max_size=30), st.integers(1, 10))
def test_records_leave_in_order_in_parts_of_a_size(records: list[Record], most: int) -> None:
    """Each `take` is within its bound, or one record that is larger; together they are all records, in order."""
    backlog: Backlog[str] = Backlog(10**9)
    for record in records:
        backlog.add("owner", record)
    taken = []
    while part := backlog.take("owner", most):
        assert len(part) == 1 or sum(entry.record.weight for entry in part) <= most
        taken += [entry.record for entry in part]
    assert [id(record) for record in taken] == [id(record) for record in records]


def test_what_travels_is_json() -> None:
    """Totals are plain numbers, with steps and gradient steps worked out."""
    wire = as_wire(Training().step().step("accumulated").reading().totals)
    assert json.loads(json.dumps(wire)) == wire
    assert (wire["steps"], wire["gradient_steps"], wire["parameters"]) == (2, 1, {})
