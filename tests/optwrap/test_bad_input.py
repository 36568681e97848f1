"""Wrong arguments: raised when the wrapper is made or first traced, with the argument, its value and what to do."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optwrap

PARAMS = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
SGD = optax.sgd(0.1)


def skipping(returned: Any) -> Callable[..., Any]:
    """Calls init of MultiSteps with a skip function that returns this."""
    return lambda: optwrap.MultiSteps(SGD, 2, should_skip_update_fn=lambda *_: returned).init(PARAMS)


def updated(transformation: Any, params: Any = PARAMS) -> Any:
    """Traces the first update. Nothing is compiled."""
    state = jax.eval_shape(transformation.init, params)
    return jax.eval_shape(transformation.update, PARAMS, state, params)


def large(limit: Any) -> Any:
    return functools.partial(optwrap.skip_large_updates, max_squared_norm=limit)


WRONG: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    # the transformation to wrap
    "apply_if_finite a function": (
        lambda: optwrap.apply_if_finite(optax.sgd, 3),
        TypeError,
        r"apply_if_finite: inner must be an optax.GradientTransformation, got <function sgd .*call it",
    ),
    "MultiSteps nothing": (lambda: optwrap.MultiSteps(None, 2), TypeError, r"MultiSteps: opt must be .* got None"),
    "masked a tuple": (lambda: optwrap.masked((1, 2), True), TypeError, r"masked: inner must be .* got \(1, 2\)"),
    "flatten a number": (lambda: optwrap.flatten(0.1), TypeError, r"flatten: inner must be .* got 0.1 \(float\)"),
    "lookahead a string": (
        lambda: optwrap.lookahead("sgd", 2, 0.5),
        TypeError,
        r"lookahead: fast_optimizer must be .* got 'sgd' \(str\)",
    ),
    # limits and periods
    "negative limit": (
        lambda: optwrap.apply_if_finite(SGD, -1),
        ValueError,
        r"apply_if_finite: max_consecutive_errors must be an integer from 0 to 2147483647, got -1: pass the number",
    ),
    "limit beyond int32": (
        lambda: optwrap.apply_if_finite(SGD, 2**31),
        ValueError,
        r"max_consecutive_errors .* got 2147483648: .*2\*\*31 - 1 never gives up",
    ),
    "limit a float": (
        lambda: optwrap.apply_if_finite(SGD, 3.0),
        TypeError,
        r"max_consecutive_errors must be an integer from 0 .* got 3.0 \(float\)",
    ),
    "limit a bool": (lambda: optwrap.apply_if_finite(SGD, True), TypeError, r"max_consecutive_errors .* got True"),
    "limit a vector": (
        lambda: optwrap.apply_if_finite(SGD, jnp.arange(2)),
        TypeError,
        r"max_consecutive_errors .* got an array int32\[2\]",
    ),
    "limit traced as a float": (
        lambda: jax.eval_shape(lambda n: optwrap.apply_if_finite(SGD, n).init(PARAMS), jnp.float32(3)),
        TypeError,
        r"max_consecutive_errors .* got an array float32\[\]",
    ),
    "on_limit another word": (
        lambda: optwrap.apply_if_finite(SGD, 3, on_limit="skip"),  # type: ignore[arg-type]
        ValueError,
        r"apply_if_finite: on_limit must be 'accept' or 'reject', got 'skip' \(str\): pass 'accept' or 'reject'",
    ),
    "on_limit a bool": (lambda: optwrap.apply_if_finite(SGD, 3, on_limit=True), ValueError, r"on_limit .* got True"),  # type: ignore[arg-type]
    "k zero": (
        lambda: optwrap.MultiSteps(SGD, 0),
        ValueError,
        r"MultiSteps: every_k_schedule must be an integer from 1 to 2147483647, got 0: pass the number of mini-steps",
    ),
    "k negative, numpy": (lambda: optwrap.MultiSteps(SGD, np.int64(-4)), ValueError, r"every_k_schedule .* got -4"),
    "k a float": (lambda: optwrap.MultiSteps(SGD, 4.0), TypeError, r"every_k_schedule .* got 4.0 \(float\)"),
    "k a bool": (lambda: optwrap.MultiSteps(SGD, True), TypeError, r"every_k_schedule .* got True \(bool\)"),
    "k a numpy bool": (lambda: optwrap.MultiSteps(SGD, np.True_), TypeError, r"every_k_schedule .* got np.True_"),
    "k nothing": (lambda: optwrap.MultiSteps(SGD, None), TypeError, r"every_k_schedule .* got None"),  # type: ignore[arg-type]
    "schedule of floats": (
        lambda: updated(optwrap.MultiSteps(SGD, optax.linear_schedule(2, 4, 10))),
        TypeError,
        r"MultiSteps: the result of every_k_schedule must be an integer scalar, got an array float32\[\]",
    ),
    "schedule of vectors": (
        lambda: updated(optwrap.MultiSteps(SGD, lambda _: jnp.array([2, 3]))),
        TypeError,
        r"the result of every_k_schedule must be an integer scalar, got an array int32\[2\]",
    ),
    "schedule of bools": (
        lambda: updated(optwrap.MultiSteps(SGD, lambda _: True)),
        TypeError,
        r"the result of every_k_schedule must be an integer from 1 .*, got True",
    ),
    "period zero": (
        lambda: optwrap.lookahead(SGD, 0, 0.5),
        ValueError,
        r"lookahead: sync_period must be an integer from 1 to 2147483647, got 0",
    ),
    "period a float": (lambda: optwrap.lookahead(SGD, 5.0, 0.5), TypeError, r"sync_period .* got 5.0"),
    "slow step beyond": (
        lambda: optwrap.lookahead(SGD, 5, 1.5),
        ValueError,
        r"lookahead: slow_step_size must be a number from 0 to 1, got 1.5",
    ),
    "slow step negative": (lambda: optwrap.lookahead(SGD, 5, jnp.float32(-0.5)), ValueError, r"slow_step_size .*-0.5"),
    "slow step not a number": (lambda: optwrap.lookahead(SGD, 5, float("nan")), ValueError, r"slow_step_size .* nan"),
    "slow step a string": (lambda: optwrap.lookahead(SGD, 5, "0.5"), TypeError, r"slow_step_size .* got '0.5' \(str\)"),  # type: ignore[arg-type]
    "a schedule of zeros": (
        lambda: updated(optwrap.MultiSteps(SGD, lambda _: 0)),
        ValueError,
        r"the result of every_k_schedule must be an integer from 1 to 2147483647, got 0: pass the number of mini-steps",
    ),
    "a schedule of negative numpy integers": (
        lambda: updated(optwrap.MultiSteps(SGD, lambda _: np.int64(-1))),
        ValueError,
        r"the result of every_k_schedule must be an integer from 1 .* got -1",
    ),
    # switches
    "use_grad_mean a string": (
        lambda: optwrap.MultiSteps(SGD, 2, use_grad_mean="no"),  # type: ignore[arg-type]
        TypeError,
        r"MultiSteps: use_grad_mean must be True or False, got 'no' \(str\): True for the mean of the window",
    ),
    "use_grad_mean a number": (
        lambda: optwrap.MultiSteps(SGD, 2, use_grad_mean=2),  # type: ignore[arg-type]
        TypeError,
        r"use_grad_mean must be True or False, got 2 \(int\)",
    ),
    "use_grad_mean traced": (
        lambda: jax.eval_shape(lambda mean: optwrap.MultiSteps(SGD, 2, use_grad_mean=mean).init(PARAMS), True),
        TypeError,
        r"use_grad_mean must be True or False, got an array bool\[\]",
    ),
    "reset_state a string": (
        lambda: optwrap.lookahead(SGD, 2, 0.5, reset_state="x"),  # type: ignore[arg-type]
        TypeError,
        r"lookahead: reset_state must be True or False, got 'x' \(str\): pass whether",
    ),
    "mask_compatible_extra_args nothing": (
        lambda: optwrap.masked(SGD, True, mask_compatible_extra_args=None),  # type: ignore[arg-type]
        TypeError,
        r"masked: mask_compatible_extra_args must be True or False, got None",
    ),
    # the accumulator
    "accumulator of integers": (
        lambda: optwrap.MultiSteps(SGD, 2, accumulator_dtype=jnp.int32),
        TypeError,
        r"MultiSteps: accumulator_dtype must be floating or complex, got int32: pass jnp.float32",
    ),
    "accumulator no dtype": (
        lambda: optwrap.MultiSteps(SGD, 2, accumulator_dtype="float33"),
        TypeError,
        r"accumulator_dtype must be a dtype, got 'float33'",
    ),
    # the skip function
    "skip no function": (
        lambda: optwrap.MultiSteps(SGD, 2, should_skip_update_fn=True),  # type: ignore[arg-type]
        TypeError,
        r"MultiSteps: should_skip_update_fn must be a function, got True",
    ),
    "skip without its limit": (
        lambda: optwrap.MultiSteps(SGD, 2, should_skip_update_fn=optwrap.skip_large_updates),  # type: ignore[arg-type]
        TypeError,
        r"skip_large_updates needs its limit, got keywords \[\], expected max_squared_norm",
    ),
    "norm negative": (
        lambda: optwrap.MultiSteps(SGD, 2, should_skip_update_fn=large(-1.0)),
        ValueError,
        r"skip_large_updates: max_squared_norm must be a number from 0, got -1.0",
    ),
    "norm not a number": (
        lambda: optwrap.skip_large_updates(PARAMS, 0, None, float("nan")),
        ValueError,
        r"max_squared_norm must be a number from 0, got nan",
    ),
    "norm a vector": (
        lambda: optwrap.MultiSteps(SGD, 2, should_skip_update_fn=large(np.ones(2))),
        TypeError,
        r"max_squared_norm .* got an array float64\[2\]",
    ),
    "norm beyond floats": (
        lambda: optwrap.skip_large_updates(PARAMS, 0, None, 10**400),
        ValueError,
        r"max_squared_norm must be a number from 0, got an integer too large for a float: give",
    ),
    "norm a bool": (lambda: optwrap.skip_large_updates(PARAMS, 0, None, True), TypeError, r"max_squared_norm .* True"),
    "skip returns a Python bool": (
        skipping((True, ())),
        TypeError,
        r"should_skip_update_fn returned True \(bool\) as its first value, not an array: return \(skip, skip_state\)",
    ),
    "skip returns an integer": (
        skipping((jnp.int32(1), ())),
        ValueError,
        r"should_skip_update_fn returned an array int32\[\] as its first value, expected bool\[\]",
    ),
    "skip returns a vector": (
        skipping((jnp.ones(2, bool), ())),
        ValueError,
        r"an array bool\[2\] .* expected bool\[\]",
    ),
    "skip returns no pair": (skipping(jnp.array(True)), TypeError, r"should_skip_update_fn returned .*, not a pair"),
    # masks
    "mask of another tree": (
        lambda: optwrap.masked(SGD, {"w": True, "c": False}).init(PARAMS),
        ValueError,
        r"masked: mask does not fit params: it has no bool for \['b'\]; \['c'\] is in the mask only; it has the "
        r".*'c'.*'w'.* give a bool for every parameter",
    ),
    "mask with a missing key": (
        lambda: optwrap.masked(SGD, {"w": True}).init(PARAMS),
        ValueError,
        r"mask does not fit params: it has no bool for \['b'\]; it has the structure",
    ),
    "mask for a deeper tree": (
        lambda: optwrap.masked(SGD, {"w": {"x": True}, "b": False}).init(PARAMS),
        ValueError,
        r"mask does not fit params: it has no bool for \['w'\]; \['w'\]\['x'\] is in the mask only",
    ),
    "called mask of another tree": (
        lambda: updated(optwrap.masked(SGD, lambda _: {"w": True})),
        ValueError,
        r"mask does not fit params",
    ),
    "mask around a pair": (
        lambda: updated(
            optwrap.masked(optwrap.lookahead(SGD, 2, 0.5), {"w": True, "b": False}),
            optax.LookaheadParams.init_synced(PARAMS),
        ),
        ValueError,
        r"mask does not fit params",
    ),
    "mask of arrays": (
        lambda: optwrap.masked(SGD, {"w": jnp.ones((2, 3), bool), "b": True}),
        TypeError,
        r"masked: mask\['w'\] must be True or False, got an array bool\[2, 3\] .*: a mask chooses whole parameters",
    ),
    "mask of labels": (
        lambda: optwrap.masked(SGD, {"w": "decay", "b": "none"}),
        TypeError,
        r"mask\['b'\] must be True or False, got 'none' \(str\)",
    ),
    "mask that is traced": (
        lambda: jax.eval_shape(lambda m: optwrap.masked(SGD, m).init(PARAMS), jnp.array(True)),
        TypeError,
        r"masked: mask must be True or False, got an array bool\[\] .*before the step is compiled",
    ),
    "mask of values": (
        lambda: updated(optwrap.masked(SGD, lambda tree: jax.tree.map(lambda x: jnp.all(x > 0), tree))),
        TypeError,
        r"mask\['b'\] must be True or False, got an array bool\[\]",
    ),
    # parameters
    "lookahead without the pair": (
        lambda: updated(optwrap.lookahead(SGD, 2, 0.5)),
        TypeError,
        r"lookahead: params of update must be LookaheadParams, got dict: keep the pair",
    ),
    "lookahead without parameters": (
        lambda: optwrap.lookahead(SGD, 2, 0.5).update(PARAMS, None),
        TypeError,
        r"lookahead: params of update must be LookaheadParams, got NoneType",
    ),
    "flatten gradients of others": (
        lambda: optwrap.flatten(SGD).update({"w": PARAMS["w"]}, SGD.init(PARAMS), PARAMS),
        ValueError,
        r"flatten: updates have 1 arrays, params 2: pass the gradients of these parameters",
    ),
    # states that a skipped step could not keep
    "a state that grows": (
        lambda: updated(optwrap.apply_if_finite(changing(jnp.zeros(2), jnp.zeros(3)), 1)),
        TypeError,
        r"apply_if_finite: .* returned state\['s'\] with shape \(3,\), expected \(2,\): a skipped step keeps",
    ),
    "a state with another structure": (
        lambda: updated(optwrap.MultiSteps(changing(None, jnp.zeros(3)), 2)),
        TypeError,
        r"MultiSteps: .* returned a state with another structure than its input",
    ),
}


def changing(before: Any, after: Any) -> optax.GradientTransformation:
    """A transformation whose update returns a state unlike its init's."""
    return optax.GradientTransformation(
        lambda _: {"s": before}, lambda updates, _state, _params=None: (updates, {"s": after})
    )


@pytest.mark.parametrize(("wrong", "error", "message"), WRONG.values(), ids=WRONG)
def test_wrong_arguments_are_named_with_their_value_and_a_remedy(
    wrong: Callable[[], Any], error: type[Exception], message: str
) -> None:
    """At construction, or at the latest when traced: nothing is compiled or run."""
    with pytest.raises(error, match=message):
        wrong()


def test_the_ends_of_every_range_are_allowed() -> None:
    """0 and 2**31 - 1 errors, k and period 1, slow steps 0 and 1, an infinite norm limit and one of 0."""
    pair = optax.LookaheadParams.init_synced(PARAMS)
    allowed = [
        *((optwrap.apply_if_finite(SGD, limit), PARAMS) for limit in (0, 2**31 - 1, np.int64(7), jnp.int32(7))),
        *(
            (optwrap.lookahead(SGD, period, size), pair)
            for period, size in (
                (1, 0),
                (2**31 - 1, 1),
                (np.int32(3), np.float64(0.5)),
                (jnp.int32(3), jnp.float32(1)),
            )
        ),
        *(
            (optwrap.MultiSteps(SGD, 2**31 - 1, should_skip_update_fn=large(norm)), PARAMS)
            for norm in (0, np.inf, jnp.float32(2), np.float64(2))
        ),
        *((optwrap.MultiSteps(SGD, 2, use_grad_mean=mean), PARAMS) for mean in (True, np.False_, 0, 1)),  # type: ignore[arg-type]
        *(
            (optwrap.masked(SGD, mask), PARAMS)
            for mask in (True, np.False_, {"w": 1, "b": np.True_}, {"w": jnp.array(True), "b": 0})
        ),
    ]
    for transformation, params in allowed:
        updates, _ = updated(transformation, params)
        assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, params)


def test_traced_values_are_brought_into_range() -> None:
    """A traced k or period below 1 counts as 1, a negative limit as 0, because the device cannot raise."""

    def counts(n: Any) -> Any:
        gradients = {"w": jnp.full((2, 3), jnp.nan), "b": jnp.ones(3)}
        guard = optwrap.apply_if_finite(SGD, n)
        steps = optwrap.MultiSteps(SGD, lambda _: n)
        ahead = optwrap.lookahead(SGD, n, 0.5)
        pair = optax.LookaheadParams.init_synced(PARAMS)
        accepted, _ = guard.update(gradients, guard.init(PARAMS), PARAMS)
        _, state = steps.update(gradients, steps.init(PARAMS), PARAMS)
        _, synced = ahead.update(gradients, ahead.init(pair), pair)
        return jnp.isnan(accepted["w"]).all(), state.gradient_step, synced.steps_since_sync

    assert [int(value) for value in jax.jit(counts)(jnp.int8(-5))] == [1, 1, 0]
    assert [int(value) for value in jax.jit(counts)(jnp.uint32(2**32 - 1))] == [0, 0, 1]


@pytest.mark.parametrize("limit", [10**12, np.int64(10**10), np.uint64(2**63)])
def test_a_norm_limit_may_be_any_integer(limit: Any) -> None:
    """Even one too large for every integer dtype of JAX."""
    skip = functools.partial(optwrap.skip_large_updates, max_squared_norm=limit)
    for norm_squared, skipped in ((0.9 * float(limit), False), (1.1 * float(limit), True)):
        updates = jnp.full(1, norm_squared**0.5)
        assert bool(jax.jit(skip)(updates, 0, None)[0]) is skipped
