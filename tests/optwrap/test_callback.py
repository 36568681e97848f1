"""emit="callback": the step reports the same reading that it would have returned, once per step."""

import functools
import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import optwrap
from optwrap._reading.counters import HEAD
from optwrap._reading.state import reading
from optwrap._reading.unpack import Layout, unpack
from optwrap._step.instrument import instrument
from tests.optwrap.compilations import traces

PARAMS = {"a": np.ones((3,), np.float32), "b": np.ones((2, 2), np.float32)}


class Listening:
    """A monitor that keeps every reading."""

    def __init__(self) -> None:
        self.layout: Layout | None = None
        self.words: list[Any] = []

    def describe(self, layout: Layout, *, stepping: bool = False) -> None:
        self.layout, self.stepping = layout, stepping

    def observe(self, reading: Any) -> None:
        assert type(reading) is np.ndarray
        self.words += list(np.atleast_2d(reading))

    @property
    def steps(self) -> list[int]:
        return [unpack(words, self.layout).step for words in self.words]


def gradients(value: float) -> Any:
    return {**PARAMS, "a": np.array([1, value, 1], np.float32)}


def optimizer() -> Any:
    return optwrap.apply_if_finite(optwrap.MultiSteps(optax.adam(1e-3), 2), 1)


@functools.cache
def both() -> tuple[Any, Listening, Any]:
    """A step that returns its reading, and one that reports through the callback, each compiled once."""
    listening = Listening()
    txs = instrument(optimizer()), instrument(optimizer(), listening, emit="callback")

    def compile(tx: Any) -> Any:
        @functools.partial(jax.jit, donate_argnums=(0, 1))
        def step(params: Any, state: Any, grads: Any) -> Any:
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state, reading(state)

        return tx.init, step

    return compile(txs[0]), listening, compile(txs[1])


@settings(max_examples=12, deadline=None)
@given(st.lists(st.sampled_from([1.0, 2.0, 1e30, np.nan, np.inf]), min_size=1, max_size=10))
def test_callbacks_get_the_same_readings_as_returned_ones(values: list[float]) -> None:
    """One for each step, in order, with donated states; the training is the same."""
    one, listening, other = both()
    listening.words.clear()
    ends: list[Any] = []
    words: list[list[Any]] = []
    for init, step in (one, other):
        params = jax.tree.map(jnp.array, PARAMS)
        state = init(params)
        words.append([])
        for value in values:
            params, state, now = step(params, state, gradients(value))
            words[-1].append(np.asarray(now))
        ends.append((params, state))
    jax.block_until_ready(ends)
    np.testing.assert_array_equal(words[1], words[0])
    np.testing.assert_array_equal(listening.words, words[0])
    for a, b in zip(*map(jax.tree.leaves, ends), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_step_with_a_callback_has_no_effect_and_is_traced_once() -> None:
    """Effects would take the program off jit's fast path."""
    listening = Listening()
    tx = instrument(optimizer(), listening, emit="callback")
    state = tx.init(PARAMS)
    step = jax.jit(tx.update)
    assert not jax.make_jaxpr(tx.update)(PARAMS, state, PARAMS).effects
    for _ in range(5):
        _, state = step(gradients(1.0), state, PARAMS)
    jax.block_until_ready(state)
    assert traces(step) == 1
    assert listening.steps == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("unroll", [1, 4])
def test_a_scan_over_steps_reports_each_of_them_in_order(unroll: int) -> None:
    listening = Listening()
    tx = instrument(optimizer(), listening, emit="callback")

    @jax.jit
    def run(state: Any, values: Any) -> Any:
        def step(state: Any, value: Any) -> Any:
            _, state = tx.update({**PARAMS, "a": jnp.stack([value] * 3)}, state, PARAMS)
            return state, reading(state)

        return jax.lax.scan(step, state, values, unroll=unroll)

    state, words = run(tx.init(PARAMS), jnp.where(jnp.arange(24) % 7 == 3, jnp.nan, 1.0))
    state, more = run(state, jnp.ones(24))
    jax.block_until_ready(state)
    assert listening.steps == list(range(1, 49))
    np.testing.assert_array_equal(listening.words, np.concatenate([words, more]))


def test_an_observer_that_raises_stops_no_step(caplog: pytest.LogCaptureFixture) -> None:
    class Raising(Listening):
        def observe(self, reading: Any) -> None:
            super().observe(reading)
            raise RuntimeError("the disk is full")

    tx = instrument(optax.sgd(0.5), raising := Raising(), emit="callback")
    step = jax.jit(tx.update, donate_argnums=1)
    state = tx.init(PARAMS)
    with caplog.at_level(logging.ERROR, logger="optwrap"):
        for _ in range(3):
            updates, state = step(PARAMS, state, PARAMS)
        jax.block_until_ready(state)
    np.testing.assert_array_equal(updates["a"], -0.5 * PARAMS["a"])
    assert raising.steps == [1, 2, 3]
    assert len(caplog.records) == 1  # one line, not one per step
    assert "the disk is full" in caplog.text


def test_a_keyboard_interrupt_in_the_observer_ends_the_step() -> None:
    """It is not swallowed: JAX raises its own error, as documented."""

    class Interrupted(Listening):
        def observe(self, reading: Any) -> None:
            super().observe(reading)
            raise KeyboardInterrupt

    tx = instrument(optax.sgd(0.5), Interrupted(), emit="callback")
    with pytest.raises(jax.errors.JaxRuntimeError, match="KeyboardInterrupt"):
        jax.block_until_ready(jax.jit(tx.update)(PARAMS, tx.init(PARAMS), PARAMS))


@pytest.mark.parametrize("inner", [lambda step: step, jax.jit], ids=["update", "a jitted update"])
def test_a_vmap_of_a_callback_is_refused_when_it_is_traced(inner: Any) -> None:
    """The message says what to do instead."""
    tx = instrument(optax.sgd(0.5), listening := Listening(), emit="callback")
    states = jax.vmap(lambda _: tx.init(PARAMS))(jnp.arange(3))
    step = inner(lambda grads, state: tx.update(grads, state, PARAMS))
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), PARAMS)
    with pytest.raises(NotImplementedError, match=r"Monitor\(members=n\)"):
        jax.eval_shape(jax.vmap(step), stacked, states)
    assert listening.words == []


def test_a_vmap_in_which_the_optimizer_is_not_mapped_reports_once() -> None:
    tx = instrument(optax.sgd(0.5), listening := Listening(), emit="callback")
    state = tx.init(PARAMS)
    _, state = jax.jit(jax.vmap(lambda _: tx.update(PARAMS, state, PARAMS), axis_size=3, out_axes=None))(jnp.ones(3))
    jax.block_until_ready(state)
    assert listening.steps == [1]


def test_an_eager_update_reports_too() -> None:
    tx = instrument(optax.sgd(0.5), listening := Listening(), emit="callback")
    _, state = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    tx.update(PARAMS, state, PARAMS)
    assert listening.steps == [1, 2]


def test_a_step_with_a_callback_can_be_differentiated() -> None:
    def outcome(rate: Any, **how: Any) -> Any:
        tx = instrument(optax.sgd(rate), **how)
        state, params = tx.init(PARAMS), PARAMS
        for _ in range(2):
            updates, state = tx.update(jax.tree.map(jnp.sin, params), state, params)
            params = optax.apply_updates(params, updates)
        return optax.tree.sum(params)

    listening = Listening()
    got = jax.jit(jax.grad(functools.partial(outcome, monitor=listening, emit="callback")))(0.1)
    np.testing.assert_allclose(got, jax.jit(jax.grad(outcome))(0.1), rtol=1e-6)


def test_a_reading_of_many_parameters_arrives_whole() -> None:
    """Some backends transfer large operands differently from small ones."""
    params = {f"p{i:05}": np.float32(i) for i in range(400)}
    wide = {"w": jnp.zeros(3), "more": params}
    tx = instrument(optax.identity(), listening := Listening(), emit="callback")
    _, state = jax.jit(tx.update)({"w": jnp.full(3, jnp.nan), "more": params}, tx.init(wide), wide)
    jax.block_until_ready(state)
    (words,) = listening.words
    np.testing.assert_array_equal(words, reading(state))
    assert words.shape == (HEAD + 2 * 401,)


def test_on_a_mesh_the_step_reports_once() -> None:
    """Not once for each device."""
    mesh = jax.make_mesh((4,), ("x",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    params = jax.device_put({"w": np.ones((8, 2), np.float32)}, sharding)
    tx = instrument(optax.adam(1e-3), listening := Listening(), emit="callback")
    with jax.set_mesh(mesh):
        state = jax.jit(tx.init)(params)
        step = jax.jit(tx.update)
        for _ in range(4):
            _, state = step(params, state, params)
        jax.block_until_ready(state)
    assert listening.steps == [1, 2, 3, 4]
