"""`adopt`: a restored state of an optimizer that was not instrumented continues under the instrumented one."""

import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import optwrap
from optwrap._reading.unpack import Layout, unpack
from tests.optwrap.checkpoints import through_flax, through_orbax
from tests.optwrap.monitoring import StubExporter
from tests.optwrap.transformations import structure

PARAMS = {"a": np.ones((8, 4), np.float32), "b": np.full((4,), 2.0, np.float32)}
VALUES = (1.0, np.nan, 2.0, 0.5, np.inf, 1.0)

Wrap = Callable[[Any], Any]
"""What makes an instrumentation of a transformation, or leaves it as it is."""

OPTIMIZERS: dict[str, Callable[[Wrap], Any]] = {
    "around a guard": lambda wrap: wrap(optwrap.apply_if_finite(optax.adam(1e-3), 2)),
    "around a window": lambda wrap: wrap(
        optwrap.MultiSteps(optax.adam(1e-3), 2, should_skip_update_fn=optwrap.skip_not_finite)
    ),
    "inside a window": lambda wrap: optwrap.MultiSteps(wrap(optwrap.apply_if_finite(optax.adam(1e-3), 2)), 2),
    "in a chain": lambda wrap: optax.chain(optax.scale(0.5), wrap(optwrap.apply_if_finite(optax.adam(1e-3), 2))),
    "optax's own": lambda wrap: wrap(optax.apply_if_finite(optax.adamw(1e-3), 2)),
    "stateless": lambda wrap: wrap(optax.sgd(0.1)),
}


def gradients(value: float) -> Any:
    spoilt = PARAMS["a"].copy()
    spoilt[5, 2] = value
    return {**PARAMS, "a": spoilt}


def stepped(tx: Any) -> Callable[..., Any]:
    @jax.jit
    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


@pytest.mark.thin(3)
@pytest.mark.parametrize("through", [through_orbax, through_flax])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_adopted_checkpoint_continues_as_if_it_had_been_instrumented(
    name: str, through: Any, tmp_path: pathlib.Path
) -> None:
    """The remaining steps give the same bits; the structure is that of init; the counters count these steps."""
    plain = OPTIMIZERS[name](lambda tx: tx)
    watched = OPTIMIZERS[name](optwrap.instrument)
    params, state, step = PARAMS, plain.init(PARAMS), stepped(plain)
    for value in VALUES[:3]:
        params, state = step(params, state, gradients(value))
    old = through(state, jax.eval_shape(plain.init, PARAMS), tmp_path)

    adopted = optwrap.adopt(watched, old, params)
    assert structure(adopted) == structure(watched.init(PARAMS))
    before = unpack(np.asarray(optwrap.reading(adopted)))
    assert (before.step, before.outcome) == (0, None)
    watched_step, watched_params = stepped(watched), params
    for value in VALUES[3:]:
        params, state = step(params, state, gradients(value))
        watched_params, adopted = watched_step(watched_params, adopted, gradients(value))
        for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(watched_params), strict=True):
            np.testing.assert_array_equal(a, b)
    after = unpack(np.asarray(optwrap.reading(adopted)), Layout(("a", "b")))
    assert after.step == (2 if name == "inside a window" else 3), "in a window it is called when that is full"
    assert (after.totals.not_finite_steps, after.totals.parameters) == (1, {"a": 1})


def test_a_monitor_counts_from_the_adopted_state() -> None:
    """The adopted state is observed once before the loop: earlier steps are not counted, later ones all are."""
    stub = StubExporter()
    try:
        plain = optwrap.apply_if_finite(optax.adam(1e-3), 2)
        state, step = plain.init(PARAMS), stepped(plain)
        for _ in range(4):
            _, state = step(PARAMS, state, gradients(np.nan))
        with optwrap.Monitor("adopted", stub.endpoint, 0, interval=0.05) as monitor:
            tx = optwrap.instrument(plain, monitor)
            state = optwrap.adopt(tx, state, PARAMS)
            monitor.observe(optwrap.reading(state))
            watched = stepped(tx)
            for value in VALUES:
                _, state = watched(PARAMS, state, gradients(value))
                monitor.observe(optwrap.reading(state))
            assert monitor.flush(30)
        assert stub.books.totals() == {
            "applied": 4,
            "skipped_not_finite": 2,
            "not_finite_steps": 2,
            "parameter a": 2,
        }
        assert sorted(step for _, step in stub.books.steps()) == [1, 2, 3, 4, 5, 6]
    finally:
        stub.close()


def test_adopted_arrays_keep_their_shardings_and_counters_get_those_of_a_jitted_init() -> None:
    mesh = jax.make_mesh((4,), ("x",))
    sharding = NamedSharding(mesh, P("x"))
    with jax.set_mesh(mesh):
        params = jax.device_put({"a": PARAMS["a"]}, sharding)
        plain = optwrap.apply_if_finite(optax.adam(1e-3), 2)
        old = jax.jit(plain.init)(params)
        tx = optwrap.instrument(plain)
        adopted, made = optwrap.adopt(tx, old, params), jax.jit(tx.init)(params)
        for got, expected in zip(jax.tree.leaves(adopted), jax.tree.leaves(made), strict=True):
            assert got.sharding.is_equivalent_to(expected.sharding, got.ndim)
        assert adopted.inner_state is not None
        for got, taken in zip(jax.tree.leaves(adopted.inner_state), jax.tree.leaves(old), strict=True):
            assert got is taken, "taken over, not copied"
        step = stepped(tx)
        _, stepped_on = step(params, adopted, params)
        assert unpack(np.asarray(optwrap.reading(stepped_on))).outcome == "applied"


def test_an_instrumented_state_is_returned_unchanged() -> None:
    """Even if only the outer one of two instrumentations is new."""
    inner = optwrap.instrument(optwrap.apply_if_finite(optax.adam(1e-3), 2), name="inner")
    _, state = stepped(inner)(PARAMS, inner.init(PARAMS), gradients(np.nan))
    again = optwrap.adopt(inner, state, PARAMS)
    assert structure(again) == structure(state)
    assert all(a is b for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(state), strict=True))
    both = optwrap.adopt(optwrap.instrument(inner, name="outer"), state, PARAMS)
    assert unpack(np.asarray(optwrap.reading(both, "outer"))).step == 0
    assert unpack(np.asarray(optwrap.reading(both, "inner"))).totals.not_finite_steps == 1


def test_a_state_stacked_for_pmap_is_adopted_row_by_row() -> None:
    """Each device has its own state."""
    plain = optwrap.apply_if_finite(optax.adam(1e-3), 2)
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), (plain.init(PARAMS), PARAMS))
    tx = optwrap.instrument(plain)
    with pytest.raises(ValueError, match=r"expected int32\[\], got an array int32\[2\].*jax\.vmap"):
        optwrap.adopt(tx, *stacked)
    adopted = jax.vmap(functools.partial(optwrap.adopt, tx))(*stacked)
    alike = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), optwrap.adopt(tx, plain.init(PARAMS), PARAMS))
    assert structure(adopted) == structure(alike)
    for ours, one_by_one in zip(jax.tree.leaves(adopted), jax.tree.leaves(alike), strict=True):
        np.testing.assert_array_equal(ours, one_by_one)


GUARDED = optwrap.instrument(optwrap.apply_if_finite(optax.adam(1e-3), 2))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (optax.adam(1e-3).init(PARAMS), r"opt_state\.inner_state: expected the state of the same optimizer"),
        (optwrap.MultiSteps(optax.adam(1e-3), 2).init(PARAMS), r"got a MultiStepsState of another structure"),
        (None, "opt_state"),
        ({"count": np.zeros([])}, "restore the checkpoint into the state that the optimizer had then"),
        (
            optwrap.apply_if_finite(optax.adam(1e-3), 2).init({**PARAMS, "a": jnp.zeros(3)}),
            r"\['a'\]: expected float32\[8, 4\], got .*other parameters",
        ),
        (
            optwrap.instrument(optwrap.apply_if_finite(optax.adam(1e-3), 2), name="other").init(PARAMS),
            "expected the instrumentation 'instrument', got 'other'",
        ),
    ],
    ids=["no guard", "another wrapper", "nothing", "a restored dict", "other parameters", "another name"],
)
def test_a_state_of_another_optimizer_is_refused(state: Any, message: str) -> None:
    """The error has the path of the first difference, and the remedy."""
    with pytest.raises(ValueError, match=message):
        optwrap.adopt(GUARDED, state, PARAMS)


def test_the_error_about_a_structure_has_no_values() -> None:
    """The message of a large model must not print its parameters."""
    with pytest.raises(ValueError, match="expected the state of the same optimizer") as raised:
        optwrap.adopt(GUARDED, optax.adam(1e-3).init(PARAMS), PARAMS)
    assert "Array(" not in str(raised.value)
    assert len(str(raised.value)) < 700


def test_counters_of_another_layout_version_are_rejected() -> None:
    """They would be updated as if they had this layout. Adopting the inner state starts them at zero."""
    state = GUARDED.init(PARAMS)
    words = state.counters["instrument"]
    old = state._replace(counters={"instrument": words.at[0].add(-1)})
    with pytest.raises(ValueError, match=r"counters\['instrument'\].*layout version 0x.*adopt the inner_state"):
        optwrap.adopt(GUARDED, old, PARAMS)
    assert optwrap.unpack(np.asarray(optwrap.reading(optwrap.adopt(GUARDED, old.inner_state, PARAMS)))).step == 0


CHANGED: dict[str, Callable[[], Any]] = {
    "guard": lambda: optwrap.apply_if_finite(optax.adam(1e-3), 2),
    "window": lambda: optwrap.MultiSteps(optax.adam(1e-3), 2),
    "bare": lambda: optax.adam(1e-3),
    "chain": lambda: optax.chain(optwrap.apply_if_finite(optax.adam(1e-3), 2), optax.scale(1.0)),
    "another inner": lambda: optax.apply_if_finite(optax.sgd(0.1), 2),
}


@pytest.mark.parametrize("after", CHANGED)
@pytest.mark.parametrize("before", CHANGED)
def test_wrappers_that_changed_since_the_checkpoint_are_refused(before: str, after: str) -> None:
    """Instrumented before or not; equal wrappers are accepted."""
    tx = optwrap.instrument(CHANGED[after]())
    for state in (CHANGED[before]().init(PARAMS), optwrap.instrument(CHANGED[before]()).init(PARAMS)):
        if before == after:
            assert structure(optwrap.adopt(tx, state, PARAMS)) == structure(tx.init(PARAMS))
        else:
            with pytest.raises(ValueError, match=r"^opt_state.*: expected the state of the same optimizer"):
                optwrap.adopt(tx, state, PARAMS)
