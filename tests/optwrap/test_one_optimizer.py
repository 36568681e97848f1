"""One Monitor belongs to one optimizer; a notebook's cell can be run again."""

import textwrap
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import optwrap
from optwrap._monitor.monitor import Monitor
from tests.optwrap.monitoring import StubExporter, log_lines

PARAMS = {"w": jnp.ones(2), "b": jnp.ones(())}
FEWER = {"w": jnp.ones(2)}


def step(tx: Any, params: Any) -> Any:
    return jax.eval_shape(tx.update, params, tx.init(params), params)


@pytest.mark.parametrize("endpoint", ["exporter", "off"])
@pytest.mark.parametrize("params", [PARAMS, FEWER], ids=["the same parameters", "other parameters"])
def test_a_second_optimizer_is_an_error_when_it_is_traced(
    make: Callable[..., Monitor], endpoint: str, params: Any
) -> None:
    """Also if nothing is reported: the program must not depend on that."""
    monitor = make(**({"endpoint": "off"} if endpoint == "off" else {}))
    first, second = (optwrap.instrument(optax.sgd(0.1), monitor) for _ in range(2))
    step(first, PARAMS)
    second.init(params)
    with pytest.raises(ValueError, match=r"is given to a second optimizer.*give each optimizer its own, Mon"):
        step(second, params)
    step(first, PARAMS)


def test_an_optimizer_that_is_traced_again_or_made_later_is_no_second_one(make: Callable[..., Monitor]) -> None:
    monitor = make()
    made = []
    for _ in range(3):
        made.append(optwrap.instrument(optax.sgd(0.1), monitor))
        for _ in range(2):
            step(made[-1], PARAMS)


def test_two_instrumentations_of_one_optimizer_need_two_monitors(make: Callable[..., Monitor]) -> None:
    monitor = make()
    inner = optwrap.instrument(optax.sgd(0.1), monitor, name="inner")
    with pytest.raises(ValueError, match="second optimizer"):
        step(optwrap.instrument(inner, monitor), PARAMS)


def test_an_optimizer_that_is_only_initialised_changes_nothing(
    stub: StubExporter, make: Callable[..., Monitor]
) -> None:
    """The readings of the one that steps keep their names."""
    monitor = make()
    first, second = (optwrap.instrument(optax.sgd(0.1), monitor) for _ in range(2))
    state = first.init(PARAMS)
    _, state = jax.jit(first.update)({**PARAMS, "b": jnp.nan}, state, PARAMS)
    jax.eval_shape(second.init, FEWER)
    monitor.observe(optwrap.reading(state))
    assert monitor.flush()
    assert stub.books.totals() == {"accepted_not_finite": 1, "not_finite_steps": 1, "parameter b": 1}


CELL = textwrap.dedent("""
    {monitor}
    tx = optwrap.instrument(optax.sgd(0.1), monitor)
    params = {{"w": jnp.ones(2), "b": jnp.ones(())}}
    state = TrainState.create(apply_fn=None, params=params, tx=tx)

    @jax.jit
    def train_step(state):
        state = state.apply_gradients(grads=state.params)
        return state, optwrap.reading(state.opt_state)

    for _ in range(5):
        state, reading = train_step(state)
        monitor.observe(reading)
""")


@pytest.mark.parametrize("own", [False, True], ids=["the Monitor of another cell", "a new Monitor of the same run"])
def test_a_cell_can_be_run_again(
    stub: StubExporter, make: Callable[..., Monitor], caplog: pytest.LogCaptureFixture, own: bool
) -> None:
    """Without an error or a line, with the steps of all its runs, and with at most one Monitor open at a time."""
    from flax.training.train_state import TrainState

    scope: dict[str, Any] = dict(jax=jax, jnp=jnp, optax=optax, optwrap=optwrap, TrainState=TrainState, make=make)
    exec("monitor = make()", scope)
    for _ in range(3):
        exec(CELL.format(monitor="monitor = make()" if own else ""), scope)
    assert scope["monitor"].flush()
    assert stub.books.totals() == {"applied": 15}
    assert log_lines(caplog) == []
    # Every Monitor but the last has ended before the next one began.
    order = [(report["attempt"], report["state"]) for report in stub.books.order]
    attempts = list(dict.fromkeys(attempt for attempt, _ in order))
    assert len(attempts) == (4 if own else 1)
    assert [attempt for attempt, _ in order] == sorted((attempt for attempt, _ in order), key=attempts.index)
    for attempt in attempts[:-1]:
        assert [state for name, state in order if name == attempt][-1] == "finished"
