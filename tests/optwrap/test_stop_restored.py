"""A loop that restores an older state in the same process, as soon as `should_stop` says so."""

import jax
import jax.numpy as jnp
import optax
import pytest

import optwrap

STEPS, CLEAN = 40, 20


@pytest.mark.parametrize("lag", [0, 1, 8])
def test_one_trouble_is_one_stop_whatever_the_lag(lag: int) -> None:
    """The readings of the trouble that are still waiting after the rollback must not ask for another one."""
    with optwrap.Monitor(endpoint="off", stop=optwrap.StopPolicy(not_finite_streak=2, lag=lag)) as monitor:
        tx = optwrap.instrument(optwrap.apply_if_finite(optax.sgd(0.1), 99), monitor)

        @jax.jit
        def train_step(state: optwrap.InstrumentState, grad: jax.Array) -> tuple[optwrap.InstrumentState, jax.Array]:
            _, state = tx.update(grad, state)
            return state, optwrap.reading(state)

        state = saved = tx.init(jnp.ones(()))
        bad, step, stops = {23, 24, 25}, 0, []
        while step < STEPS:
            step += 1
            state, reading = train_step(state, jnp.asarray(jnp.nan if step in bad else 1.0))
            monitor.observe(reading)
            if step == CLEAN:
                saved = state
            if stop := monitor.should_stop():
                stops.append((stop.step, stop.last_clean_step))
                bad, step, state = set(), CLEAN, saved
        assert stops == [(24, 22)]
