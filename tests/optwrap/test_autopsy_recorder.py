"""The Recorder keeps the arguments of the first bad step."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optwrap

TX = optwrap.instrument(optwrap.apply_if_finite(optax.sgd(0.1), 5))


@jax.jit
def step(params: jax.Array, state: Any, batch: jax.Array) -> Any:
    updates, state = TX.update(params * batch, state, params)
    return optax.apply_updates(params, updates), state, optwrap.reading(state)


donating = jax.jit(step, donate_argnums=(0, 1))


def train(recorder: optwrap.Recorder, bad: set[int], steps: int = 6, *, train_step: Any = step) -> Any:
    """The parameters after the steps, of which the batches `bad` are NaN."""
    params = jnp.ones(2)
    state = TX.init(params)
    for number in range(1, steps + 1):
        batch = np.full(2, np.nan if number in bad else number, np.float32)
        recorder.hold(params, batch=batch)
        params, state, reading = train_step(params, state, batch)
        recorder.observe(reading)
    return params


@pytest.mark.parametrize("keep", [1, 2, 50])
def test_the_first_bad_step_is_kept(keep: int) -> None:
    recorder = optwrap.Recorder(keep)
    train(recorder, {3, 5})
    held = recorder.bad_step()
    assert held is not None
    assert held.step == 3
    assert np.isnan(held.kwargs["batch"]).all()
    findings = optwrap.autopsy(lambda params, batch: params * batch, *held.args, **held.kwargs)
    assert findings.faults[0].cause.path == "batch"
    assert recorder.bad_step() is held


def test_none_without_a_bad_step_and_the_rest_is_let_go() -> None:
    recorder = optwrap.Recorder(keep=2)
    train(recorder, set())
    assert len(recorder._held) == 2
    assert recorder.bad_step() is None


def test_donated_parameters_are_copied_when_asked() -> None:
    recorder = optwrap.Recorder(copy=(0,))
    train(recorder, {4}, train_step=donating)
    held = recorder.bad_step()
    assert held is not None
    assert held.step == 4
    assert np.isfinite(held.args[0]).all()
    plain = optwrap.Recorder()
    train(plain, {4}, train_step=donating)
    held = plain.bad_step()
    assert held is not None
    with pytest.raises(ValueError, match=r"params was donated or deleted.*Recorder\(copy="):
        optwrap.autopsy(lambda params, batch: params * batch, *held.args, **held.kwargs)


def test_models_and_arrays_that_are_changed_in_place_are_copied_when_asked() -> None:
    recorder = optwrap.Recorder(copy=(0, 1))
    model, batch = nnx.Linear(1, 1, rngs=nnx.Rngs(0)), np.full(2, np.nan, np.float32)
    kernel = model.kernel[...]
    recorder.hold(model, batch)
    _, _, reading = step(jnp.ones(2), TX.init(jnp.ones(2)), jnp.array(batch))
    model.kernel[...] = kernel + 1
    batch[:] = 0
    recorder.observe(reading)
    held = recorder.bad_step()
    assert held is not None
    np.testing.assert_array_equal(held.args[0].kernel[...], kernel)
    assert np.isnan(held.args[1]).all()


def test_a_reading_with_axes_is_bad_if_a_row_is() -> None:
    def scanned(params: jax.Array, state: Any, batches: jax.Array) -> Any:
        def body(carry: Any, batch: jax.Array) -> Any:
            params, state, reading = step(*carry, batch)
            return (params, state), reading

        return jax.lax.scan(body, (params, state), batches)[1]

    recorder = optwrap.Recorder()
    params = jnp.ones(2)
    batches = jnp.array([[1.0, 1], [2, 2], [jnp.nan, 3]])
    recorder.hold(batches)
    recorder.observe(scanned(params, TX.init(params), batches))
    held = recorder.bad_step()
    assert held is not None
    assert held.step == 3


def test_wrong_use_is_refused() -> None:
    with pytest.raises(ValueError, match="Recorder: keep must be an integer from 1"):
        optwrap.Recorder(keep=0)
    with pytest.raises(ValueError, match="Recorder: copy must be an integer from 0"):
        optwrap.Recorder(copy=(-1,))
    with pytest.raises(TypeError, match="Recorder: copy must be a tuple, got 0"):
        optwrap.Recorder(copy=0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="copy has position 1, and hold got 1 positional"):
        optwrap.Recorder(copy=(1,)).hold(np.zeros(2))
    recorder = optwrap.Recorder()
    with pytest.raises(ValueError, match="call hold before each step"):
        recorder.observe(np.zeros(3, np.uint32))
