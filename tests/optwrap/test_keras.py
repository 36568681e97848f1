"""`optwrap.keras.Optimizer` inside Keras: the same steps as the transformation alone, state saved with the model."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optwrap

pytestmark = pytest.mark.filterwarnings("default")
"""Keras warns of its own affairs."""

DATA = np.random.default_rng(0).normal(size=(24, 3)).astype(np.float32)
BAD = 4
"""A batch of 3 with a NaN, of 8."""
DATA[3 * BAD, 1] = np.nan
PATHS = ["line/a/kernel", "line/a/bias", "line/b/kernel", "line/b/bias"]


@pytest.fixture
def keras(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    import keras

    import optwrap.keras

    assert optwrap.keras
    with jax.numpy_rank_promotion("allow"):  # Keras relies on it
        yield keras


def tx(period: int = 2) -> Any:
    """State of several kinds: arrays of float and integer, a schedule, a guard, and the packed counters."""
    adam = optax.adam(optax.linear_schedule(0.1, 0.01, 10))
    return optwrap.instrument(optwrap.apply_if_finite(optwrap.MultiSteps(adam, period), 5))


def model(keras: Any, transformation: Any, **dense: Any) -> Any:
    keras.utils.set_random_seed(0)
    layers = [keras.Input((3,)), keras.layers.Dense(4, name="a", **dense), keras.layers.Dense(1, name="b")]
    made = keras.Sequential(layers, name="line")
    made.compile(optimizer=optwrap.keras.Optimizer(transformation), loss="mse")
    return made


def fit(made: Any, data: np.ndarray, **more: Any) -> None:
    made.fit(data, np.ones(len(data)), batch_size=3, shuffle=False, verbose=0, **more)


def values(made: Any) -> dict[str, np.ndarray]:
    return {variable.path: np.asarray(variable.value) for variable in made.trainable_variables}


def test_fit_takes_the_steps_of_the_transformation_alone(keras: Any) -> None:
    made, alone = model(keras, tx()), tx()
    params: Any = {path: jnp.asarray(value) for path, value in values(made).items()}

    def loss(params: Any, x: Any) -> Any:
        hidden = x @ params[PATHS[0]] + params[PATHS[1]]
        return jnp.mean((hidden @ params[PATHS[2]] + params[PATHS[3]] - 1) ** 2)

    state = alone.init(params)
    for x in DATA.reshape(8, 3, 3):
        updates, state = alone.update(jax.grad(loss)(params, x), state, params)
        params = optax.apply_updates(params, updates)
    fit(made, DATA)
    for path, value in values(made).items():
        np.testing.assert_allclose(value, params[path], rtol=2e-5, atol=1e-6)
    assert int(made.optimizer.iterations) == 8
    inside = [np.asarray(variable.value) for variable in made.optimizer.variables if "state" in variable.path]
    assert [leaf.dtype for leaf in inside] == [leaf.dtype for leaf in jax.tree.leaves(state)]
    totals = optwrap.unpack(optwrap.reading(state)).totals
    assert (totals.steps, totals.outcomes["skipped_not_finite"], totals.gradient_steps) == (8, 1, 3)


def test_the_state_is_saved_and_restored_with_the_weights(keras: Any, tmp_path: Path) -> None:
    """A training that is interrupted in the middle of a window ends as one that is not."""
    whole, first, second = model(keras, tx()), model(keras, tx()), model(keras, tx())
    fit(whole, DATA)
    fit(first, DATA[:9])
    first.save_weights(tmp_path / "saved.weights.h5")
    second.optimizer.build(second.trainable_variables)
    second.load_weights(tmp_path / "saved.weights.h5")
    fit(second, DATA[9:])
    for path, value in values(whole).items():
        np.testing.assert_allclose(values(second)[path], value, rtol=2e-5, atol=1e-6)
    assert int(second.optimizer.iterations) == 8


def test_a_saved_model_says_how_to_load_it(keras: Any, tmp_path: Path) -> None:
    made = model(keras, tx())
    fit(made, DATA)
    made.save(tmp_path / "saved.keras")
    with pytest.raises((ValueError, TypeError), match="compile=False"):
        keras.models.load_model(tmp_path / "saved.keras", custom_objects={"Optimizer": optwrap.keras.Optimizer})
    loaded = keras.models.load_model(tmp_path / "saved.keras", compile=False)
    np.testing.assert_equal([*values(loaded).values()], [*values(made).values()])


def test_a_loop_of_ones_own_may_pass_the_variables_in_any_order(keras: Any) -> None:
    made = model(keras, optax.sgd(1.0))
    before, variables = values(made), list(reversed(made.trainable_variables))
    grads = [np.full(variable.shape, i, np.float32) for i, variable in enumerate(variables)]
    made.optimizer.apply(grads, variables)
    for i, variable in enumerate(variables):
        np.testing.assert_allclose(values(made)[variable.path], before[variable.path] - i)
    with pytest.raises(ValueError, match="got 3 gradients for 3 variables; allowed: one for each of the 4 variables"):
        made.optimizer.apply(grads[1:], variables[1:])
    with pytest.raises(ValueError, match="got 3 gradients for 4 variables"):
        made.optimizer.apply(grads[1:])
    with pytest.raises(ValueError, match="got 1 gradients for 0 variables"):
        optwrap.keras.Optimizer(optax.sgd(1.0)).apply(grads[:1])


def test_constraints_of_variables_hold(keras: Any) -> None:
    made = model(keras, optax.sgd(1.0), kernel_constraint=keras.constraints.NonNeg())
    fit(made, DATA[:9])
    assert (values(made)["line/a/kernel"] >= 0).all()


def test_two_variables_of_one_path_are_an_error(keras: Any) -> None:
    one, other = (keras.Variable(np.ones(2), name="same") for _ in range(2))
    with pytest.raises(ValueError, match="two variables have the path 'same'"):
        optwrap.keras.Optimizer(optax.sgd(1.0)).build([one, other])


def test_another_backend_is_an_error() -> None:
    program = "import optax, optwrap.keras; optwrap.keras.Optimizer(optax.sgd(1.0))"
    ran = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "KERAS_BACKEND": "numpy"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "the backend of Keras is 'numpy'; allowed: 'jax'; set the variable KERAS_BACKEND=jax" in ran.stderr


def test_the_library_itself_does_not_import_keras() -> None:
    subprocess.run([sys.executable, "-c", "import sys, optwrap; sys.exit('keras' in sys.modules)"], check=True)
