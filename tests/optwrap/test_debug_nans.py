"""`jax_debug_nans` and `jax_debug_infs`: a finite training runs as ever, and what raises is what is documented."""

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
    """One of the two, switched on."""
    jax.config.update(request.param, True)
    yield request.param
    jax.config.update(request.param, False)


def outcomes(transformation: Any, params: Any, values: list[float]) -> list[str]:
    """What comes of each step, of gradients with one value of their own: "taken", or "raised".

    Of a jitted function JAX is sure to look at what its first call returns.
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
    """Nothing in a state, or in the telemetry, is NaN or infinite of its own."""
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
        (optwrap.instrument(optwrap.apply_if_finite(optax.sgd(0.1), 5)), "raised"),
    ],
    ids=["apply_if_finite", "skip_not_finite", "no guard", "guard that gives up", "instrumented"],
)
def test_a_jitted_step_raises_if_what_is_not_finite_comes_out_of_it(transformation: Any, came: str, flag: str) -> None:
    """A step that a guard left out hands nothing on. The instrumentation hands on the norm, which is what it is."""
    assert outcomes(transformation, FLOAT32, [FLAGS[flag]]) == [came]
