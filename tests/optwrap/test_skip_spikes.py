"""skip_spikes: what enters its statistics, its options, and what `instrument` sees of it.

The rule on whole sequences is tested in test_spike_scenarios, the laws of all wrappers in test_laws and test_nesting.
"""

import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import optwrap
from optwrap._wrappers import spike_rule
from tests.optwrap.checkpoints import through_flax, through_orbax
from tests.optwrap.spike_reference import Reference

PARAMS = {"w": jnp.zeros((2, 2)), "b": jnp.zeros(3)}
DIRECTION = {"w": np.full((2, 2), 0.3, np.float32), "b": np.array([0.8, 0, 0], np.float32)}
"""Of norm 1."""


def of_norm(norm: float) -> Any:
    with np.errstate(invalid="ignore"):  # 0 * Inf
        return jax.tree.map(lambda leaf: leaf * np.float32(norm), DIRECTION)


@functools.cache
def jitted(tx: Any) -> Callable[..., Any]:
    return jax.jit(lambda grads, state, params, extra: optwrap.apply_gradients(tx, grads, state, params, **extra))


def train(tx: Any, norms: Any, state: Any = None, params: Any = PARAMS, **extra: Any) -> tuple[Any, Any]:
    """Parameters and state after steps with gradients of these norms."""
    state = tx.init(params) if state is None else state
    for norm in norms:
        params, state = jitted(tx)(of_norm(norm), state, params, extra)
    return params, state


GUARD = optwrap.skip_spikes(optax.sgd(0.1, momentum=0.5))
CALM = [1.0 + 0.1 * (i % 3) for i in range(70)]
"""Norms after which the limit is three times the level."""


@functools.cache
def settled() -> tuple[Any, Any]:
    return train(GUARD, CALM)


def test_init_sees_no_norm() -> None:
    state = GUARD.init(PARAMS)
    assert (int(state.memory.seen), int(state.memory.steps), float(state.limit)) == (0, 0, np.inf)


@pytest.mark.parametrize("norm", [0.0, 50.0, np.nan, np.inf, -np.inf])
def test_a_norm_that_is_zero_large_or_not_finite_enters_no_statistic(norm: float) -> None:
    params, before = settled()
    _, after = train(GUARD, [norm], before, params)
    kept = ("level", "spread", "previous", "seen")
    assert [getattr(after.memory, name) for name in kept] == [getattr(before.memory, name) for name in kept]


def test_steps_are_counted_by_what_became_of_them() -> None:
    params, state = settled()
    after, state = train(GUARD, [50.0, np.nan, np.inf], state, params)
    assert (int(state.total_large), int(state.total_notfinite), bool(state.last_skipped)) == (1, 2, True)
    jax.tree.map(np.testing.assert_array_equal, after, params)
    _, state = train(GUARD, [1.0], state, params)
    assert (int(state.memory.steps), bool(state.last_skipped)) == (74, False)


def test_gradients_whose_squares_overflow_are_always_skipped() -> None:
    """Also among the first ten. The instrument tells them from gradients that are not finite."""
    tx = optwrap.instrument(GUARD)
    state, params = tx.init(PARAMS), PARAMS
    for norm, outcome in ((1e30, "skipped_large"), (np.nan, "skipped_not_finite"), (np.inf, "skipped_not_finite")):
        params, state = jitted(tx)(of_norm(norm), state, params, {})
        assert optwrap.unpack(np.asarray(optwrap.reading(state))).outcome == outcome
    assert (int(state.inner_state.total_large), int(state.inner_state.total_notfinite)) == (0, 3)
    assert int(state.inner_state.memory.seen) == 0


def test_a_mini_step_of_weight_0_enters_no_statistic() -> None:
    """The padding of an epoch's last window, whatever its norm."""
    tx = optwrap.skip_spikes(optwrap.MultiSteps(optax.sgd(0.1), 2, weighted=True).gradient_transformation())
    params, before = train(tx, CALM, weight=jnp.float32(3.0))
    _, after = train(tx, [50.0, 1e-6, 3.0], before, params, weight=jnp.float32(0.0))
    np.testing.assert_array_equal(after.statistics[:4], before.statistics[:4])
    assert int(after.memory.seen) == int(before.memory.seen)
    assert int(after.total_large) == 0
    _, after = train(tx, [50.0], before, params, weight=jnp.float32(3.0))
    assert int(after.total_large) == 1


def test_max_norm_holds_from_the_first_step_and_through_any_rebase() -> None:
    tx = optwrap.skip_spikes(optax.sgd(0.1), max_norm=10.0)
    _, state = train(tx, [20.0] * 5)
    assert (int(state.total_large), int(state.memory.seen), float(state.limit)) == (5, 0, 10.0)
    params, state = train(tx, CALM, state)
    _, state = train(tx, [20.0] * 40, state, params)
    assert (int(state.total_large), int(state.rebases)) == (45, 0)
    _, state = train(tx, [8.0] * 40, state, params)
    assert int(state.rebases) == 1


def test_settings_change_the_rule() -> None:
    """A lower ratio skips more, a shorter wait rebases sooner; all three may be traced."""
    tight = optwrap.skip_spikes(optax.sgd(0.1), spreads=1.0, min_ratio=1.5, rebase_after=3)

    def make(spreads: Any, min_ratio: Any, rebase_after: Any, max_norm: Any) -> Any:
        return optwrap.skip_spikes(
            optax.sgd(0.1), spreads=spreads, min_ratio=min_ratio, rebase_after=rebase_after, max_norm=max_norm
        )

    traced = optax.inject_hyperparams(make)(spreads=1.0, min_ratio=1.5, rebase_after=3, max_norm=100.0)
    for tx in (tight, traced):
        params, state = train(tx, CALM)
        _, state = train(tx, [1.8, 1.8, 1.8, 1.8], state, params)
        guard = state.inner_state if tx is traced else state
        assert (int(guard.total_large), int(guard.rebases)) == (2, 1)


def test_shadow_takes_every_finite_step_and_counts_the_others() -> None:
    """Parameters and inner state are those of the optimizer alone; the counts those of the guard."""
    norms = [*CALM, 50.0, 60.0, 1.0, *[40.0] * 33, 1.0]
    shadow = optwrap.skip_spikes(optax.sgd(0.1, momentum=0.5), shadow=True)
    params, state = train(shadow, norms)
    expected, expected_state = train(optax.sgd(0.1, momentum=0.5), norms)
    jax.tree.map(np.testing.assert_array_equal, (params, state.inner_state), (expected, expected_state))
    _, guarded = train(GUARD, norms)
    assert (int(state.would_skip), int(state.rebases)) == (int(guarded.total_large), int(guarded.rebases)) == (32, 1)
    assert int(state.total_large) == int(guarded.would_skip) == 0
    after, state = train(shadow, [np.nan], state, params)
    jax.tree.map(np.testing.assert_array_equal, after, params)
    assert int(state.total_notfinite) == 1


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_statistics_that_are_not_finite_begin_anew(place: int, value: float) -> None:
    """As from a damaged checkpoint: no step is lost, and 70 steps later a spike is found."""
    params, state = settled()
    damaged = state._replace(statistics=state.statistics.at[place].set(value))
    params, state = train(GUARD, CALM, damaged, params)
    assert int(state.total_large) == 0
    assert np.all(np.isfinite(state.statistics))
    _, state = train(GUARD, [10.0], state, params)
    assert int(state.total_large) == 1


def test_negative_counts_do_no_harm() -> None:
    params, state = settled()
    damaged = state._replace(counts=jnp.full_like(state.counts, -5))
    _, state = train(GUARD, CALM, damaged, params)
    assert (int(state.memory.seen), bool(state.last_skipped)) == (70, False)


def test_counts_saturate() -> None:
    params, state = settled()
    full = state._replace(counts=jnp.full_like(state.counts, 2**31 - 1).at[1].set(0))
    for norm in (1.0, 50.0, np.nan):
        _, after = train(GUARD, [norm], full, params)
        assert np.all(after.counts >= 0)
        assert int(after.memory.steps) == 2**31 - 1


@pytest.mark.parametrize("through", [through_orbax, through_flax])
def test_a_checkpoint_keeps_the_state(through: Callable[..., Any], tmp_path: pathlib.Path) -> None:
    params, state = settled()
    restored = through(state, GUARD.init(PARAMS), tmp_path)
    assert isinstance(restored, optwrap.SkipSpikesState)
    jax.tree.map(
        np.testing.assert_array_equal,
        train(GUARD, [50.0, 1.0], restored, params),
        train(GUARD, [50.0, 1.0], state, params),
    )


@settings(max_examples=40, deadline=None)
@given(
    norms=st.lists(
        st.floats(0, 2.0**99, width=32, allow_subnormal=False)
        | st.sampled_from([np.nan, np.inf, 0.0, 1e-30, 1e38, 1.0, 2.0, 100.0]),
        max_size=120,
    ),
    calm=st.integers(0, 80),
)
def test_any_norms_leave_finite_statistics_and_exact_counts(norms: list[float], calm: int) -> None:
    """Over any sequence: what is skipped, taken and counted adds up, as in the reference."""
    row = np.array(([1.0] * calm + norms + [1.0] * 200)[:200], np.float32)
    memory = jax.tree.map(np.asarray, spike_rule.replay(row, spike_rule.Settings()))
    for name in ("level", "spread", "previous", "pending"):
        assert np.all(np.isfinite(getattr(memory, name)))
    assert np.all(memory.spread >= 0)
    skipped = memory.skipped_large + memory.skipped_not_finite
    np.testing.assert_array_equal(np.diff(skipped, prepend=0) > 0, memory.decision != spike_rule.TAKEN)
    np.testing.assert_array_equal(memory.skipped_not_finite, np.cumsum(~np.isfinite(row)))
    reference = Reference()
    decisions = [reference.step(float(norm)) for norm in row]
    near = np.isclose(memory.limit, row, rtol=1e-4) & np.isfinite(row)
    if not near.any():
        np.testing.assert_array_equal(memory.decision == spike_rule.LARGE, [one == "large" for one in decisions])


def test_the_instrument_sees_the_outcome_the_limit_and_the_rebases() -> None:
    tx = optwrap.instrument(GUARD)
    seen = []
    params, state = PARAMS, tx.init(PARAMS)
    for norm in [*CALM, 50.0, np.nan, *[40.0] * 32, 40.0]:
        params, state = jitted(tx)(of_norm(norm), state, params, {})
        seen.append(optwrap.unpack(np.asarray(optwrap.reading(state))))
    assert [one.outcome for one in seen[:70]] == ["applied"] * 70
    assert "gradient_norm_limit" not in seen[9].gauges, "the first ten have no limit"
    assert 20 < seen[10].gauges["gradient_norm_limit"] < 24
    assert (seen[70].outcome, seen[71].outcome) == ("skipped_large", "skipped_not_finite")
    assert 3.2 < seen[70].gauges["gradient_norm_limit"] < 3.4
    assert [one.outcome for one in seen[72:]] == [*["skipped_large"] * 30, "applied", "applied", "applied"]
    assert [one.gauges["guard_rebases"] for one in seen[-4:]] == [0, 1, 1, 1]
    assert {one.gauges["guard_would_skip_steps"] for one in seen} == {0}
    assert seen[-1].gauges["gradient_norm_limit"] == pytest.approx(3 * 40, rel=0.05)


def test_the_instrument_counts_what_shadow_mode_would_skip() -> None:
    tx = optwrap.instrument(optwrap.skip_spikes(optax.sgd(0.1), shadow=True))
    _, state = train(tx, [*CALM, 50.0, 1.0])
    told = optwrap.unpack(np.asarray(optwrap.reading(state)))
    assert told.totals.outcomes["applied"] == 72
    assert told.gauges["guard_would_skip_steps"] == 1


@pytest.mark.parametrize(("norm", "outcome"), [(50.0, "skipped_large"), (np.nan, "skipped_not_finite")])
def test_the_outcome_inside_multi_steps_is_that_of_the_window(norm: float, outcome: str) -> None:
    tx = optwrap.instrument(optwrap.MultiSteps(GUARD, 2))
    outcomes, params, state = [], PARAMS, tx.init(PARAMS)
    for one in [*CALM, *CALM, norm, 1.0, 1.0, 1.0]:
        params, state = jitted(tx)(of_norm(one), state, params, {})
        outcomes.append(optwrap.unpack(np.asarray(optwrap.reading(state))).outcome)
    assert outcomes[-4:] == ["accumulated", outcome, "accumulated", "applied"]


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (lambda: optwrap.skip_spikes(optax.sgd), TypeError, r"skip_spikes: inner must be .*call it"),
        (
            lambda: optwrap.skip_spikes(GUARD, spreads=-1),
            ValueError,
            r"skip_spikes: spreads must be a number from 0, got",
        ),
        (
            lambda: optwrap.skip_spikes(GUARD, spreads="6"),  # type: ignore[arg-type]
            TypeError,
            r"skip_spikes: spreads must be .* got '6' \(str\)",
        ),
        (lambda: optwrap.skip_spikes(GUARD, min_ratio=0.5), ValueError, r"min_ratio must be a number from 1, got 0.5"),
        (lambda: optwrap.skip_spikes(GUARD, rebase_after=0), ValueError, r"rebase_after must be an integer from 1 to"),
        (lambda: optwrap.skip_spikes(GUARD, rebase_after=3.0), TypeError, r"rebase_after must be .* got 3.0"),
        (lambda: optwrap.skip_spikes(GUARD, max_norm=np.nan), ValueError, r"max_norm must be a number from 0, got nan"),
        (lambda: optwrap.skip_spikes(GUARD, shadow="yes"), TypeError, r"shadow must be True or False, got 'yes'"),  # type: ignore[arg-type]
        (lambda: optwrap.skip_spikes(GUARD, axis_name=3), TypeError, r"skip_spikes: axis_name must be the name of a"),  # type: ignore[arg-type]
        (
            lambda: GUARD.update(DIRECTION, optax.sgd(0.1).init(PARAMS)),
            TypeError,
            r"skip_spikes: state must be the SkipSpikesState that init returns",
        ),
    ],
)
def test_wrong_arguments_are_named_with_their_value_and_a_remedy(
    wrong: Callable[[], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        wrong()
