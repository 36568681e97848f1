"""A transformation around a guard may return values that the guard skipped: the outcome follows the updates."""

import functools
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
from optwrap._reading.state import reading
from optwrap._reading.unpack import Layout, Reading, unpack
from optwrap._step.instrument import instrument

pytestmark = pytest.mark.thin(3)

PARAMS = {"a": np.full((4, 3), 0.5, np.float32), "b": np.ones((3,), np.float32)}
LAYOUT = Layout(("a", "b"))
STEPS = 6

AROUND: dict[str, Callable[[Any], Any]] = {
    "mechanize": optax.contrib.mechanize,
    "sam, guarded": lambda guarded: optax.contrib.sam(guarded, optax.sgd(0.05), sync_period=2),
    "sam, adversary guarded": lambda guarded: optax.contrib.sam(
        optax.sgd(0.01), guarded, sync_period=2, reset_state=False
    ),
    "sam, opaque": lambda guarded: optax.contrib.sam(guarded, optax.sgd(0.05), opaque_mode=True),
    "schedule_free": lambda guarded: optax.contrib.schedule_free(guarded, 0.01),
    "split_real_and_imaginary": optax.contrib.split_real_and_imaginary,
    "scale_by_galore": lambda guarded: optax.contrib.scale_by_galore(
        rank=2, base_optimizer=optax.chain(guarded, optax.identity())
    ),
    "conditionally_mask": lambda guarded: optax.conditionally_mask(guarded, lambda step, **_: step % 3 != 1),
    "conditionally_transform": lambda guarded: optax.conditionally_transform(guarded, lambda step, **_: step % 3 != 1),
    "masked": lambda guarded: optax.masked(guarded, {"a": True, "b": False}),
    "selective_transform": lambda guarded: optax.selective_transform(guarded, freeze_mask={"a": False, "b": True}),
    "a norm before": lambda guarded: optax.chain(optax.clip_by_global_norm(1.0), guarded),
    "a trace of the gradients after": lambda guarded: optax.chain(guarded, optax.add_decayed_weights(1e-3)),
}
"""Every wrapper of optax.contrib that takes an optimizer, and those of optax that decide or mix themselves."""

GUARDS: dict[str, Callable[[Any], Any]] = {
    "optwrap's guard": lambda inner: optwrap.apply_if_finite(inner, 1000),
    "optax's guard": lambda inner: optax.apply_if_finite(inner, 1000),
    "a window that skips": lambda inner: optwrap.MultiSteps(
        inner, 1, should_skip_update_fn=optwrap.skip_not_finite
    ).gradient_transformation(),
}


@functools.cache
def stepping(around: str, guard: str) -> tuple[Any, Any]:
    inner = optax.scale_by_adam() if around == "scale_by_galore" else optax.sgd(0.01, momentum=0.5)
    tx = instrument(AROUND[around](GUARDS[guard](inner)))

    @jax.jit
    def step(grads: Any, state: Any, params: Any) -> Any:
        extra = {"grad_fn": lambda *_: grads} if around == "sam, opaque" else {}
        updates, state = tx.update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state, updates, reading(state)

    return jax.jit(tx.init), step


CASES = [(around, "optwrap's guard") for around in AROUND] + [
    (around, guard) for around in ("mechanize", "sam, guarded", "masked") for guard in list(GUARDS)[1:]
]


def finite(tree: Any) -> bool:
    return all(bool(np.isfinite(leaf).all()) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(("around", "guard"), CASES)
@settings(max_examples=6, deadline=None)
@given(
    faults=st.lists(st.sampled_from([1.0, np.nan, np.inf]), min_size=STEPS, max_size=STEPS),
    where=st.sampled_from("ab"),
)
def test_a_step_is_accepted_if_its_updates_are_non_finite(
    around: str, guard: str, faults: list[float], where: str
) -> None:
    """No guard gives up here, so only then."""
    init, step = stepping(around, guard)
    params: Any = jax.tree.map(jnp.asarray, PARAMS)
    state = init(params)
    spoilt = False
    for fault in faults:
        grads = jax.tree.map(lambda leaf: 0.1 * leaf, PARAMS)
        # scale_by_galore decomposes matrices, which LAPACK may never end where they hold NaN.
        grads["b" if around == "scale_by_galore" else where][0] *= np.float32(fault)
        params, state, updates, words = step(grads, state, params)
        got: Reading = unpack(np.asarray(words), LAYOUT)
        spoilt |= got.outcome == "accepted_not_finite"
        if got.outcome != "applied":
            assert (got.outcome == "accepted_not_finite") == (not finite(updates)), (got.outcome, updates)
        else:
            # Finite gradients, or what was not finite was mended; what NaN there is then is from an earlier call.
            assert finite(updates) or (spoilt and finite(grads)), updates
        assert finite(params) or spoilt


def test_the_updates_of_an_outermost_guard_are_not_read() -> None:
    """Those of a skipped step are zero, so reading them would cost time and memory for nothing."""

    def looks(tx: Any) -> int:
        tx = instrument(tx)
        jaxpr = jax.make_jaxpr(tx.update)(PARAMS, tx.init(PARAMS), PARAMS)
        return str(jaxpr).count("cond[")

    guarded = optwrap.apply_if_finite(optax.sgd(0.1), 3)
    window = optwrap.MultiSteps(guarded, 2).gradient_transformation()
    for tx in (guarded, window):
        assert looks(optax.chain(tx, optax.identity())) == looks(tx) + 1
