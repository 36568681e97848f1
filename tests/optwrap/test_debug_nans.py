"""`jax_debug_nans` and `jax_debug_infs`: finite steps do not raise, and non-finite ones raise as documented."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import optax
import pytest

import optwrap
from tests.optwrap.transformations import FLOAT32, SINGLES, WRAPPERS, Case, gradients, stepper

FLAGS = {"jax_debug_nans": np.nan, "jax_debug_infs": np.inf}


@pytest.fixture(params=FLAGS)
def flag(request: pytest.FixtureRequest) -> Iterator[str]:
    """One of the two flags, switched on."""
    jax.config.update(request.param, True)
    yield request.param
    jax.config.update(request.param, False)


def outcomes(transformation: Any, params: Any, values: list[float]) -> list[str]:
    """Whether each step is "taken" or has "raised". Its gradients contain one of `values`.

    Use one step only for a non-finite value: JAX always checks the results of the first call of a jitted function.
    """
    step = jax.jit(stepper(transformation))
    state = transformation.init(params)
    came = []
    for i, value in enumerate(values):
        grads = gradients(FLOAT32, i)
        grads["layer"]["w"][1, 1] = value
        try:
            after = step(grads, state, params)
        except FloatingPointError:
            came.append("raised")
        else:
            params, state = after.params, after.state
            came.append("taken")
    return came


@pytest.mark.parametrize("case", [case for case in SINGLES if case.name in WRAPPERS], ids=lambda case: case.name)
def test_a_finite_training_does_not_raise(case: Case, flag: str) -> None:
    """No state and no counter is NaN or infinite if the gradients are finite."""
    del flag
    transformation = optwrap.instrument(case.build(optwrap))
    assert outcomes(transformation, case.params(FLOAT32), [1.0, 2.0, 3.0]) == ["taken"] * 3


@pytest.mark.parametrize(
    ("transformation", "came"),
    [
        (optwrap.apply_if_finite(optax.sgd(0.1), 5), "taken"),
        (optwrap.MultiSteps(optax.sgd(0.1), 1, should_skip_update_fn=optwrap.skip_not_finite), "taken"),
        (optwrap.MultiSteps(optax.sgd(0.1), 1), "raised"),
        (optwrap.apply_if_finite(optax.sgd(0.1), 0), "raised"),
        (optwrap.instrument(optwrap.apply_if_finite(optax.sgd(0.1), 5)), "taken"),
        (optwrap.instrument(optax.sgd(0.1)), "raised"),
    ],
    ids=["apply_if_finite", "skip_not_finite", "no guard", "guard that gives up", "instrumented", "only instrumented"],
)
def test_a_jitted_step_raises_if_it_returns_non_finite_values(transformation: Any, came: str, flag: str) -> None:
    """A skipped step returns finite arrays, and the reading has the norm as bits of an integer."""
    assert outcomes(transformation, FLOAT32, [FLAGS[flag]]) == [came]
