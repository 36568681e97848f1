"""Under `jax.checking_leaks` no wrapper and no instrumentation keeps a tracer beyond its trace."""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optwrap

PARAMS = {"a": jnp.ones(3)}


def injected(make: Callable[[Any], Any], value: Any) -> Any:
    """The transformation with one hyperparameter, as `inject_hyperparams` traces it."""
    return optax.inject_hyperparams(lambda value: make(value))(value=value)  # noqa: PLW0108  # by this argument's name


def large(limit: Any) -> Any:
    return functools.partial(optwrap.skip_large_updates, max_squared_norm=limit)


CASES: dict[str, tuple[Callable[[], Any], dict[str, float]]] = {
    "window": (lambda: optwrap.MultiSteps(optax.adam(0.1), 2), {"every_k": 2}),
    "scheduled window": (
        lambda: optwrap.MultiSteps(optax.adam(0.1), lambda step: jnp.where(step < 1, 1, 3)),
        {"every_k": 3},
    ),
    "injected window": (lambda: injected(lambda k: optwrap.MultiSteps(optax.adam(0.1), k), 2), {"every_k": 2}),
    "injected and scheduled window": (
        lambda: injected(lambda k: optwrap.MultiSteps(optax.adam(0.1), k), lambda step: jnp.where(step < 1, 1, 3)),
        {"every_k": 3},
    ),
    "injected window of optax": (lambda: injected(lambda k: optax.MultiSteps(optax.adam(0.1), lambda _: k), 2), {}),
    "injected guard": (
        lambda: injected(lambda limit: optwrap.apply_if_finite(optax.adam(0.1), limit), 4),
        {"guard_not_finite_limit": 4},
    ),
    "injected limit": (
        lambda: injected(lambda limit: optwrap.skip_if(optax.adam(0.1), large(limit)), 16.0),
        {"gradient_norm_limit": 4.0},
    ),
    "limit in an injected window": (
        lambda: injected(
            lambda limit: optwrap.MultiSteps(optax.adam(0.1), 2, should_skip_update_fn=large(limit)), 16.0
        ),
        {"gradient_norm_limit": 4.0, "every_k": 2},
    ),
}


@pytest.mark.thin(5)
@pytest.mark.parametrize("way", ["update", "apply_gradients", "scan"])
@pytest.mark.parametrize("case", CASES)
def test_limits_and_schedules_are_read_without_a_leak(case: str, way: str) -> None:
    """The gauges are there, and nothing warns that `init` could not be traced."""
    make, gauges = CASES[case]
    tx = optwrap.instrument(make())

    def step(state: Any) -> Any:
        if way == "apply_gradients":
            return optwrap.apply_gradients(tx, PARAMS, state, PARAMS)[1]
        return tx.update(PARAMS, state, PARAMS)[1]

    def steps(state: Any) -> Any:
        return jax.lax.scan(lambda state, _: (step(state), None), state, None, length=2)[0]

    with jax.checking_leaks(), warnings.catch_warnings():
        warnings.simplefilter("error")
        state = jax.jit(tx.init)(PARAMS)
        run = jax.jit(steps if way == "scan" else step)
        for _ in range(2):
            state = run(state)
    got = optwrap.unpack(np.asarray(optwrap.reading(state)))
    assert gauges.items() <= got.gauges.items()
    assert ("every_k" in got.gauges) == ("every_k" in gauges)


def test_a_callback_leaks_nothing() -> None:
    """The observer gets arrays of numpy, while the step is run under leak checking."""

    class Keeping:
        def __init__(self) -> None:
            self.kept: list[Any] = []

        def describe(self, layout: optwrap.Layout, *, stepping: bool = False) -> None:
            del stepping
            self.layout = layout

        def observe(self, reading: Any) -> None:
            self.kept.append(reading)

    tx = optwrap.instrument(optax.sgd(0.1), keeping := Keeping(), emit="callback")
    with jax.checking_leaks():
        state = jax.jit(tx.init)(PARAMS)
        jax.block_until_ready(jax.jit(tx.update)(PARAMS, state, PARAMS))
    assert [optwrap.unpack(words, keeping.layout).step for words in keeping.kept] == [1]
