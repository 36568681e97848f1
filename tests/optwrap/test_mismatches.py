"""Gradients, parameters and states that do not belong together: refused when traced, before anything is broadcast."""

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optwrap

PARAMS = {"w": jnp.ones((2, 3)), "b": jnp.ones(4)}
PAIR = optax.LookaheadParams.init_synced(PARAMS)
SGD = optax.sgd(0.1)

GUARD = optwrap.apply_if_finite(SGD, 3)
WINDOW = optwrap.MultiSteps(SGD, 2)
AHEAD = optwrap.lookahead(SGD, 2, 0.5)
MASKED = optwrap.masked(SGD, True)
FLAT = optwrap.flatten(SGD)


def updating(transformation: Any, gradients: Any = PARAMS, state: Any = None, params: Any = PARAMS) -> Any:
    """One update, or one step of apply_gradients, traced only: nothing reaches XLA."""

    def update(apply: bool = False) -> Any:
        state = jax.eval_shape(transformation.init, params) if given is None else given
        if apply:
            step = functools.partial(optwrap.apply_gradients, transformation)
            return jax.eval_shape(step, gradients, state, params)
        return jax.eval_shape(transformation.update, gradients, state, params)

    given = state
    return update


WRONG: dict[str, tuple[Callable[[bool], Any], type[Exception], str]] = {
    # states
    "MultiSteps with a state of adam": (
        updating(WINDOW, state=optax.scale_by_adam().init(PARAMS)),
        TypeError,
        r"MultiSteps: state must be the MultiStepsState that init returns, got .* \(ScaleByAdamState\): pass the state",
    ),
    "MultiSteps with a guard's state": (updating(WINDOW, state=GUARD.init(PARAMS)), TypeError, r"\(ApplyIfFiniteState"),
    "MultiSteps with a restored dict": (
        updating(WINDOW, state=WINDOW.init(PARAMS)._asdict()),
        TypeError,
        r"got .* \(dict\): .* restore a checkpoint into a state made by init",
    ),
    "apply_if_finite with a state of its inner": (
        updating(GUARD, state=SGD.init(PARAMS)),
        TypeError,
        r"apply_if_finite: state must be the ApplyIfFiniteState that init returns, .* \(tuple\)",
    ),
    "lookahead with no state": (
        updating(AHEAD, state=(), params=PAIR),
        TypeError,
        r"lookahead: state must be the LookaheadState that init returns, got \(\) \(tuple\)",
    ),
    "masked with a state of lookahead": (
        updating(MASKED, state=AHEAD.init(PAIR)),
        TypeError,
        r"masked: state must be the MaskedState that init returns, .* \(LookaheadState\)",
    ),
    # gradients
    "MultiSteps, a shape that would be broadcast": (
        updating(WINDOW, {"w": PARAMS["w"], "b": jnp.ones((3, 1))}),
        ValueError,
        r"MultiSteps: updates\['b'\] must have the shape of the accumulator, \(4,\), got \(3, 1\): pass the",
    ),
    "MultiSteps, a scalar for a vector": (
        updating(WINDOW, {"w": PARAMS["w"], "b": jnp.ones(())}),
        ValueError,
        r"updates\['b'\] must have the shape of the accumulator, \(4,\), got \(\)",
    ),
    "MultiSteps, a vector for a scalar": (
        updating(WINDOW, jnp.ones(2), params=jnp.ones(())),
        ValueError,
        r"MultiSteps: updates must have the shape of the accumulator, \(\), got \(2,\)",
    ),
    "MultiSteps, a leaf missing": (
        updating(WINDOW, {"w": PARAMS["w"]}),
        ValueError,
        r"MultiSteps: updates must have the leaves of the accumulator: \['b'\] is missing: pass the gradients",
    ),
    "MultiSteps, no gradient of a parameter": (
        updating(WINDOW, {"w": PARAMS["w"], "b": None}),
        ValueError,
        r"leaves of the accumulator: \['b'\] is missing",
    ),
    "MultiSteps, a leaf too many": (
        updating(WINDOW, {**PARAMS, "c": jnp.ones(1)}),
        ValueError,
        r"leaves of the accumulator: \['c'\] is unexpected",
    ),
    "MultiSteps, a tree of other leaves": (
        updating(WINDOW, {f"x{i}": jnp.ones(1) for i in range(9)}),
        ValueError,
        r"\['b'\] is missing; \['w'\] is missing; \['x0'\] is unexpected; .*; \.\.\.: pass",
    ),
    "MultiSteps, another container": (
        updating(WINDOW, (PARAMS["b"],), params=[PARAMS["b"]]),
        ValueError,
        r"leaves of the accumulator: got the structure PyTreeDef\(\(\*,\)\), expected PyTreeDef\(\[\*\]\): pass",
    ),
    "lookahead, gradients of the pair": (
        updating(AHEAD, PAIR, params=PAIR),
        ValueError,
        r"lookahead: updates must have the leaves of params.fast: .* take gradients with respect to its `fast`"
        r"|apply_gradients: updates must have the leaves of params: \['b'\] is missing; .* pass the gradients of these",
    ),
    "lookahead, a shape that would be broadcast": (
        updating(AHEAD, {"w": PARAMS["w"], "b": jnp.ones((4, 1))}, params=PAIR),
        ValueError,
        r"(lookahead|apply_gradients): updates\['b'\] must have the shape of .*, \(4,\), .*got \(4, 1\): ",
    ),
    "lookahead, two that are no pair": (
        updating(AHEAD, params=optax.LookaheadParams(PARAMS, {**PARAMS, "b": jnp.ones(())})),
        ValueError,
        r"lookahead: params.slow\['b'\] must have the shape of params.fast, \(4,\), got \(\)",
    ),
    "flatten, shapes of the same size": (
        updating(FLAT, {"w": jnp.ones((3, 2)), "b": PARAMS["b"]}),
        ValueError,
        r"flatten: updates\['w'\] must have the shape of its parameter, \(2, 3\), got \(3, 2\): pass the gradients of",
    ),
}


UNFIT = {"too few": (3,), "broadcast": (3, 1), "a scalar": (), "axes behind": (4, 2)}
"""Shapes for the gradient of a vector of 4."""


@pytest.mark.parametrize(
    ("wrong", "error", "message", "apply"),
    [
        pytest.param(*wrong, apply, id=f"{name}-{'apply_gradients' if apply else 'update'}")
        for name, wrong in WRONG.items()
        for apply in (False, True)
    ],
)
def test_a_mismatch_is_named_with_its_path(
    wrong: Callable[[bool], Any], error: type[Exception], message: str, apply: bool
) -> None:
    """In `update` and in `apply_gradients`: wrapper, path, received, expected and what to do."""
    with pytest.raises(error, match=message):
        wrong(apply)


@pytest.mark.parametrize("shape", UNFIT.values(), ids=UNFIT)
@pytest.mark.parametrize("apply", [False, True], ids=["update", "apply_gradients"])
@pytest.mark.parametrize("wrapper", ["apply_if_finite", "skip_if", "masked", "instrument"])
def test_gradients_of_another_shape_are_named(wrapper: str, apply: bool, shape: tuple[int, ...]) -> None:
    """Shapes that an optimizer would broadcast, or for which it would raise an unclear error."""
    transformation = {
        "apply_if_finite": GUARD,
        "skip_if": optwrap.skip_if(SGD, optwrap.skip_not_finite),
        "masked": optwrap.masked(SGD, {"w": True, "b": False}),
        "instrument": optwrap.instrument(optax.adam(0.1)),
    }[wrapper]
    message = rf"{wrapper}: updates\['b'\] must have the shape of its parameter, \(4,\), or .*"
    with pytest.raises(ValueError, match=message + rf" got {re.escape(str(shape))}: pass the gradients"):
        updating(transformation, {"w": PARAMS["w"], "b": jnp.ones(shape)})(apply)


def test_apply_gradients_adds_no_update_of_another_shape() -> None:
    """Through any transformation of optax, and for leaves that `masked` leaves out."""

    def adds(transformation: Any, gradients: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            updating(transformation, gradients)(True)

    samples = {"w": PARAMS["w"], "b": jnp.ones((2, 4))}
    adds(SGD, {"w": PARAMS["w"], "b": jnp.ones(())}, r"apply_gradients: updates\['b'\] must have the shape of its para")
    for transformation in (SGD, optax.chain(SGD), GUARD, optwrap.masked(SGD, False), optwrap.instrument(SGD)):
        adds(
            transformation,
            samples,
            r"apply_gradients: updates\['b'\] must have the shape of params, \(4,\), got \(2, 4",
        )
        adds(transformation, {"w": PARAMS["w"], "b": None}, r"must have the leaves of params: \['b'\] is missing: pass")

    partly = {**PARAMS, "b": None}  # as optax: an update of what is no parameter is let go
    assert updating(SGD, PARAMS, params=partly)(True)[0]["b"] is None


def test_the_right_leaves_are_accepted_in_any_container() -> None:
    """Arrays of numpy, narrower dtypes, and for flatten, which sees only vectors, another container."""
    narrow = jax.tree.map(lambda leaf: np.asarray(leaf, np.float16), PARAMS)
    expected = jax.tree.map(jnp.shape, PARAMS)
    for transformation in (GUARD, WINDOW, MASKED, FLAT):
        assert jax.tree.map(jnp.shape, updating(transformation, narrow)()[0]) == expected
    assert jax.tree.map(jnp.shape, updating(AHEAD, narrow, params=PAIR)()[0].fast) == expected
    assert len(updating(FLAT, (PARAMS["b"], PARAMS["w"]))()[0]) == 2


@pytest.mark.parametrize("taken", [2, 3, 7])
def test_a_restored_window_beyond_k_ends_with_the_next_mini_step(taken: int) -> None:
    """A checkpoint made with a larger k loses nothing: the mean is over all mini-steps taken."""
    gradients = np.random.default_rng(taken).normal(size=(taken + 3, 4)).astype(np.float32)
    state = optwrap.MultiSteps(optax.identity(), 100).init(jnp.ones(4))
    for gradient in gradients[:taken]:
        _, state = optwrap.MultiSteps(optax.identity(), 100).update(gradient, state)
    update = jax.jit(optwrap.MultiSteps(optax.identity(), 2).update)
    updates, state = update(gradients[taken], state)
    np.testing.assert_allclose(updates, gradients[: taken + 1].mean(axis=0), rtol=1e-5, atol=1e-6)
    assert (int(state.mini_step), int(state.gradient_step)) == (0, 1)
    _, state = update(gradients[taken + 1], state)
    updates, _ = update(gradients[taken + 2], state)
    np.testing.assert_allclose(updates, gradients[taken + 1 :].mean(axis=0), rtol=1e-5, atol=1e-6)
