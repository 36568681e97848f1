"""The decision to stop, against a plain reference that looks at each step's outcome and at nothing else."""

import dataclasses
import itertools
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import optwrap
from optwrap import Stop, StopPolicy
from optwrap._reading.counters import ABSENT, GOOD_OUTCOMES, INTEGER_GAUGES, OUTCOMES, Counters, pack
from optwrap._reading.unpack import Layout
from optwrap._stop import tally
from optwrap._stop.decision import Decision

PARAMETERS = ("a", "b")
LAYOUT = Layout(PARAMETERS)
STEPS = 24
"""Steps of every training here, so that its readings are packed by one compiled program."""

_pack: Any = jax.jit(pack)


class Step(NamedTuple):
    """What becomes of one step."""

    outcome: str
    finite: bool

    @property
    def is_bad(self) -> bool:
        return self.outcome not in GOOD_OUTCOMES or not self.finite


NAN = Step("accepted_not_finite", False)


def readings(steps: Sequence[Step], old: int = 0) -> Any:
    """The readings of all steps, uint32[STEPS, words].

    Args:
      steps: what becomes of each; further ones are applied.
      old: steps with NaN that were accepted before the first one, and ended before it.
    """
    steps = [*steps, *[Step("applied", True)] * (STEPS - len(steps))]
    outcome = np.array([OUTCOMES.index(step.outcome) for step in steps])
    bad = ~np.array([step.finite for step in steps])
    streaks = list(itertools.accumulate(bad, lambda streak, now: (streak + 1) * now, initial=0))[1:]
    before = np.zeros(len(OUTCOMES), np.uint32)
    before[[OUTCOMES.index("accepted_not_finite"), OUTCOMES.index("skipped_large")]] = old
    values = np.stack([np.zeros(STEPS), 3 * bad], axis=1)

    def filled(value: int, *shape: int) -> Any:
        return np.full((STEPS, *shape), value, np.int32)

    fields: dict[str, Any] = dict(
        fingerprint=np.full(STEPS, LAYOUT.fingerprint, np.uint32),
        outcomes=(before + np.cumsum(np.eye(len(OUTCOMES))[outcome], axis=0)).astype(np.uint32),
        not_finite_steps=(old + np.cumsum(bad)).astype(np.uint32),
        not_finite_streak=np.array(streaks, np.uint32),
        not_finite_streak_peak=np.maximum(old, np.maximum.accumulate(streaks)).astype(np.uint32),
        outcome=outcome.astype(np.int32),
        finite=~bad,
        gradient_norm=np.ones(STEPS, np.float32),
        gradient_norm_limit=np.full(STEPS, ABSENT, np.float32),
        largest=np.tile(np.array([0, 1, ABSENT], np.int32), (STEPS, 1)),
        largest_shares=np.tile(np.array([0.75, 0.25, 0], np.float32), (STEPS, 1)),
        update_norm=np.full(STEPS, ABSENT, np.float32),
        scalars=np.zeros((STEPS, 0), np.float32),
        gauges=filled(ABSENT, len(INTEGER_GAUGES)),
        replica=np.where(bad, 5, ABSENT).astype(np.int32),
        replicas_not_finite=np.where(bad, 2, ABSENT).astype(np.int32),
        window_not_finite=np.zeros((STEPS, 0), np.bool_),
        parameters=np.cumsum(values > 0, axis=0).astype(np.uint32),
        not_finite_values=values.astype(np.uint32),
    )
    return np.asarray(_pack(Counters(**fields)))


class Expected(NamedTuple):
    """What a `Stop` has to say."""

    condition: str
    step: int
    first_bad_step: int
    last_clean_step: int
    bad_steps: list[int]


def reference(steps: Sequence[Step], policy: StopPolicy) -> Expected | None:
    """The decision after these steps, by a search through all of them."""
    not_finite = np.array([not step.finite for step in steps])
    accepted = np.array([step.outcome == "accepted_not_finite" for step in steps])
    skipped = np.array([step.outcome.startswith("skipped") for step in steps])
    for end in range(1, len(steps) + 1):
        begin: dict[str, int] = {}
        if (n := policy.not_finite_streak) and end >= n and not_finite[end - n : end].all():
            begin["not_finite_streak"] = end - n
        if (n := policy.accepted_not_finite) and accepted[:end].sum() >= n:
            begin["accepted_not_finite"] = int(np.argmax(accepted))
        if policy.skipped and skipped[max(0, end - policy.skipped[1]) : end].sum() >= policy.skipped[0]:
            begin["skipped"] = int(np.flatnonzero(skipped[:end])[-policy.skipped[0]])
        if begin:
            condition, first = next(iter(begin.items()))
            if accepted[:end].any():
                first = min(first, int(np.argmax(accepted)))
            while first and steps[first - 1].is_bad:
                first -= 1
            harmless = [i for i in range(first, end) if steps[i].is_bad and not accepted[:i].any()]
            return Expected(condition, end, first + 1, first, [i + 1 for i in harmless])
    return None


def as_expected(stop: Stop | None, old: int = 0) -> Expected | None:
    """A `Stop` as an `Expected`, its steps counted from the first one after `old` steps."""
    if stop is None:
        return None
    return Expected(
        stop.reason.partition(":")[0],
        stop.step - old,
        stop.first_bad_step - old,
        stop.last_clean_step - old,
        [bad.step - old for bad in stop.bad_steps],
    )


def decision(policy: StopPolicy) -> Decision:
    """A decision that gets rows in place of arrays on a device."""
    found = Decision(policy, lambda rows: rows)  # type: ignore[arg-type, return-value]
    found.describe(LAYOUT, stepping=True)
    return found


STEP = st.builds(
    Step, st.sampled_from(["applied", "applied", "accumulated", *OUTCOMES[2:]]), st.sampled_from([True, False])
)
TRAINING = st.lists(STEP, min_size=STEPS, max_size=STEPS)
POLICY = st.builds(
    lambda streak, accepted, skipped, lag: StopPolicy(streak, accepted, skipped and (min(skipped), max(skipped)), lag),
    st.integers(1, 5),
    st.none() | st.integers(1, 4),
    st.none() | st.tuples(st.integers(1, 8), st.integers(1, 8)),
    st.integers(0, 5),
) | st.builds(
    lambda skipped, lag: StopPolicy(skipped=(min(skipped), max(skipped)), lag=lag),
    st.tuples(st.integers(1, 8), st.integers(1, 8)),
    st.integers(0, 5),
)


@settings(deadline=None, max_examples=80)
@given(
    steps=TRAINING,
    policy=POLICY,
    cuts=st.sets(st.integers(1, STEPS - 1)),
    old=st.sampled_from([0, 7]),
    asked=st.lists(st.booleans(), min_size=STEPS, max_size=STEPS),
)
def test_the_decision_is_the_references_whatever_the_readings_hold(
    steps: list[Step], policy: StopPolicy, cuts: set[int], old: int, asked: list[bool]
) -> None:
    """One step a reading, or several; after a resume with bad steps in the counters; asked each time, or seldom."""
    rows, deciding = readings(steps, old), decision(policy)
    ends = [*sorted(cuts), STEPS]
    for number, (start, end) in enumerate(zip([0, *ends], ends, strict=False), start=1):
        deciding.observe(rows[start:end])
        if asked[number - 1]:
            seen = number - policy.lag
            expected = reference(steps[: ends[seen - 1]], policy) if seen > 0 else None
            assert as_expected(deciding.decide(), 2 * old) == expected


@settings(deadline=None, max_examples=50)
@given(steps=TRAINING, streak=st.integers(1, 4), skipped=st.integers(1, 4), every=st.integers(2, 6))
def test_if_readings_are_missing_a_stop_is_never_too_early_and_its_clean_step_never_too_late(
    steps: list[Step], streak: int, skipped: int, every: int
) -> None:
    """What happened in the steps between two readings is known by the counters alone."""
    rows = readings(steps)
    policies = (
        StopPolicy(not_finite_streak=streak, lag=0),
        StopPolicy(accepted_not_finite=streak, lag=0),
        StopPolicy(skipped=(skipped, 6), lag=0),
    )
    for policy in policies:
        deciding = decision(policy)
        for index in range(0, STEPS, every):
            deciding.observe(rows[index : index + 1])
            stop, exact = deciding.decide(), reference(steps[: index + 1], policy)
            if policy.accepted_not_finite:
                assert (stop is None) == (exact is None), "the number of accepted steps is exact"
            if stop is not None:
                assert exact is not None
                accepted = [i for i, step in enumerate(steps) if step.outcome == "accepted_not_finite"]
                assert stop.last_clean_step <= min(accepted[:1], default=STEPS)
                assert stop.last_clean_step == 0 or not steps[stop.last_clean_step - 1].is_bad
                break


@pytest.mark.parametrize(
    ("bad", "read", "policy", "expected"),
    [
        # The skip of steps 2 to 6 may be that of step 2, which is outside the window.
        ({2: Step("skipped_other", True), 9: Step("skipped_other", True)}, (1, 7, 9), StopPolicy(skipped=(2, 6)), None),
        ({6: Step("skipped_other", True), 9: Step("skipped_other", True)}, (1, 5, 6, 9), StopPolicy(skipped=(2, 6)), 5),
        # Steps 2 to 4 are good, as the counters say.
        ({1: Step("skipped_large", True), 5: NAN}, (1, 5), StopPolicy(accepted_not_finite=1), 4),
        # One of steps 2 to 4 was bad.
        ({1: Step("skipped_large", True), 3: Step("skipped_large", True), 5: NAN}, (1, 5), StopPolicy(1), 0),
        # The streak of steps 3 to 5 shows in its peak alone.
        ({3: NAN, 4: NAN, 5: NAN}, (1, 2, 7), StopPolicy(not_finite_streak=3), 2),
    ],
)
def test_what_the_counters_say_of_missing_readings_is_used(
    bad: dict[int, Step], read: tuple[int, ...], policy: StopPolicy, expected: int | None
) -> None:
    """The last clean step, or no stop."""
    rows = readings([bad.get(step, Step("applied", True)) for step in range(1, STEPS + 1)])
    deciding = decision(dataclasses.replace(policy, lag=0))
    for step in read:
        deciding.observe(rows[step - 1 : step])
    stop = deciding.decide()
    assert (stop and stop.last_clean_step) == expected


def test_a_stop_stays_until_the_counters_fall_and_then_counts_begin_anew() -> None:
    """A rollback within the process: restored to step 2, with other batches."""
    bad, good = Step("skipped_not_finite", False), Step("applied", True)
    rows = readings([good] * 3 + [bad] * 3 + [good] * 3)
    deciding = decision(StopPolicy(not_finite_streak=3, skipped=(5, 20), lag=0))
    for row in rows[:9]:
        deciding.observe(row[None])
        stop = deciding.decide()
    assert as_expected(stop) == Expected("not_finite_streak", 6, 4, 3, [4, 5, 6])
    again = readings([good] * 4 + [bad] * 2 + [good] * 3 + [bad] * 3)
    for row in again[2:11]:
        deciding.observe(row[None])
        assert deciding.decide() is None
    deciding.observe(again[11:12])
    assert as_expected(deciding.decide()) == Expected("not_finite_streak", 12, 10, 9, [10, 11, 12])


def test_a_reading_that_is_observed_twice_counts_once() -> None:
    """Alone, and as the last row of a block."""
    bad = Step("accepted_not_finite", False)
    rows = readings([bad] * 6)
    deciding = decision(StopPolicy(accepted_not_finite=4, lag=0))
    for block in (rows[:1], rows[:1], rows[0:3], rows[2:3]):
        deciding.observe(block)
        assert deciding.decide() is None
    deciding.observe(rows[2:4])
    assert deciding.decide() is not None


def test_a_fresh_state_may_be_observed_first() -> None:
    """Its counters are all zero, and its outcome is none."""
    rows = readings([NAN] * 3)
    params = {name: np.zeros(3, np.float32) for name in PARAMETERS}
    fresh = np.asarray(optwrap.reading(optwrap.instrument(optax.sgd(0.1)).init(params)))[None]
    assert fresh.shape[1] == rows.shape[1]
    deciding = decision(StopPolicy(accepted_not_finite=3, lag=0))
    deciding.observe(fresh)
    deciding.observe(rows[2:3])  # two steps are missing between them
    stop = deciding.decide()
    assert as_expected(stop) == Expected("accepted_not_finite", 3, 1, 0, [])
    assert stop is not None
    assert stop.unlisted == 2, "at most: the first of them may be the first accepted one"


def test_no_more_than_lag_and_one_readings_are_held_and_each_is_read_when_it_is_lag_readings_old() -> None:
    """A loop that runs ahead of the device waits only for a reading of `lag` readings ago, asked or not."""

    class Observed:
        def __init__(self, index: int) -> None:
            self.index = index

    lag, rows, read, alive = 3, readings([]), [], weakref.WeakSet[Observed]()

    def take(observed: Any) -> Any:
        read.append(observed.index)
        return rows[observed.index : observed.index + 1]

    deciding = Decision(StopPolicy(not_finite_streak=2, lag=lag), take)
    for index in range(12):
        alive.add(observed := Observed(index))
        deciding.observe(observed)
        del observed
        if index % 2:
            deciding.decide()
            assert read == list(range(index + 1 - lag))
        assert len(alive) <= lag + 1
    for index in range(12, 20):
        deciding.observe(Observed(index))
        assert read == list(range(index - lag)), "observe reads what decide has not read in time"


def test_a_stop_lists_the_last_bad_steps_and_counts_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """So memory is bounded."""
    monkeypatch.setattr(tally, "MAX_BAD_STEPS", 4)
    steps = [Step("applied", True), *[Step("skipped_other", True)] * 7]
    deciding = decision(StopPolicy(skipped=(7, 20), lag=0))
    deciding.observe(readings(steps))
    stop = deciding.decide()
    assert as_expected(stop) == Expected("skipped", 8, 2, 1, [5, 6, 7, 8])
    assert stop is not None
    assert stop.unlisted == 3


def test_a_bad_step_names_parameter_and_replica() -> None:
    """As the event of such a step does."""
    deciding = decision(StopPolicy(not_finite_streak=1, lag=0))
    deciding.observe(readings([Step("skipped_not_finite", False)]))
    stop = deciding.decide()
    assert stop is not None
    (bad,) = stop.bad_steps
    assert (bad.outcome, bad.parameter, bad.parameter_count) == ("skipped_not_finite", "b", 1)
    assert bad.replica is not None
    assert (bad.replica.number, bad.replica_count) == (5, 2)


def test_a_step_with_a_large_norm_names_the_parameter_with_the_largest_share() -> None:
    """No gradient of it is non-finite."""
    deciding = decision(StopPolicy(skipped=(1, 1), lag=0))
    deciding.observe(readings([Step("skipped_large", True)]))
    stop = deciding.decide()
    assert stop is not None
    (bad,) = stop.bad_steps
    assert (bad.parameter, bad.parameter_count, bad.replica) == ("a", 0, None)


def test_rows_that_are_not_consecutive_steps_are_refused() -> None:
    """They would be those of a vmap, or in a wrong order."""
    deciding = decision(StopPolicy(not_finite_streak=1, lag=0))
    deciding.observe(readings([])[[2, 1]])
    with pytest.raises(ValueError, match="2 rows of steps 3, 2; allowed"):
        deciding.decide()


def test_a_reading_of_another_instrumentation_is_refused() -> None:
    """Its counters say nothing about this training."""
    deciding = decision(StopPolicy(not_finite_streak=1, lag=0))
    deciding.describe(Layout(("a", "c")), stepping=True)
    deciding.observe(readings([])[:1])
    with pytest.raises(ValueError, match="another instrumentation"):
        deciding.decide()
