"""Steps that wait on the device: told once each, whatever becomes of the state in which they wait."""

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
from optwrap._reading.unpack import Layout, by_step, reading, unpack
from optwrap._step.instrument import instrument
from tests.optwrap.monitoring import StubExporter

PARAMS = {"a": np.ones((3,), np.float32), "b": np.ones((2, 2), np.float32)}
EVERY = 4


class Relay:
    """What is compiled once reports to the Monitor of the day."""

    def __init__(self) -> None:
        self.monitor: Any = None
        self.layout: Layout | None = None

    def describe(self, layout: Layout, *, stepping: bool = False) -> None:
        self.layout = layout
        if self.monitor is not None:
            self.monitor.describe(layout, stepping=stepping)

    def observe(self, reading: Any) -> None:
        self.monitor.observe(reading)

    def begin(self, stub: StubExporter) -> None:
        """A life with a Monitor of its own; the step is compiled already, as from a cache."""
        self.monitor = optwrap.Monitor("waiting", stub.endpoint, process=0, attempt="1", interval=0.01)
        assert self.layout is not None
        self.monitor.describe(self.layout, stepping=True)


@functools.cache
def program() -> tuple[Relay, Any, Any]:
    tx = instrument(optwrap.apply_if_finite(optax.sgd(0.5), 1), relay := Relay(), emit="callback", callback_every=EVERY)
    step = jax.jit(lambda scale, state: tx.update(jax.tree.map(lambda leaf: scale * leaf, PARAMS), state)[1])
    return relay, step, tx.init(PARAMS)


OPERATIONS = st.one_of(
    st.floats(0.5, 2.0, width=32), st.sampled_from([1.0, np.nan, "look", "save", "roll back", "restart"])
)


@settings(max_examples=25, deadline=None)
@given(operations=st.lists(OPERATIONS, min_size=4, max_size=30))
def test_each_step_is_counted_once_through_checkpoints_rollbacks_and_restarts(operations: list[Any]) -> None:
    """All but those that waited when their state was thrown away: who looks before a checkpoint loses none there."""
    relay, step, fresh = program()
    stub = StubExporter()
    try:
        relay.begin(stub)
        state = saved = fresh
        waiting = saved_waiting = untold = told = bad = 0

        def look(**how: Any) -> None:
            relay.monitor.observe(reading(jax.block_until_ready(state)), **how)

        for operation in operations:
            if isinstance(operation, float):
                state = step(np.float32(operation), state)
                waiting, untold = waiting + 1, untold + 1
                if waiting >= EVERY or np.isnan(operation):
                    told, waiting, untold = told + untold, 0, 0
                bad += np.isnan(operation)
            elif operation in ("look", "save"):
                look()
                told, untold = told + untold, 0
                if operation == "save":
                    saved, saved_waiting = state, waiting
            else:
                jax.block_until_ready(state)
                if operation == "restart":
                    relay.monitor.close("failed")
                    relay.begin(stub)
                state, waiting, untold = saved, saved_waiting, 0
                look(restored=True)
        look()
        told += untold
        assert relay.monitor.flush(20)
        relay.monitor.close()
        totals = stub.books.totals()
        assert sum(totals.get(outcome, 0) for outcome in optwrap._reading.counters.OUTCOMES) == told
        assert totals.get("not_finite_steps", 0) == bad
        records = stub.books.steps()
        assert len(records) == len(set(records)) == told
        assert stub.books.dropped() == {"steps": 0, "bad_steps": 0}
    finally:
        stub.close()


@pytest.mark.parametrize("every", [1, 8])
def test_under_vmap_replicas_are_one_and_members_are_refused(
    every: int, caplog: pytest.LogCaptureFixture, stub: StubExporter
) -> None:
    """Equal members are told as one. Different ones are optimizers of their own, and a Monitor is for one."""

    def scaled(by: Any) -> Any:
        return {**PARAMS, "a": by * PARAMS["a"]}

    with optwrap.Monitor("vmapped", stub.endpoint, process=0) as monitor:
        tx = instrument(optwrap.apply_if_finite(optax.sgd(0.5), 1), monitor, emit="callback", callback_every=every)
        step = jax.jit(jax.vmap(lambda scale, state: tx.update(scaled(scale), state)[1]))
        states = jax.vmap(lambda _: tx.init(PARAMS))(jnp.arange(3))
        for value in (1.0, np.nan, 2.0):
            states = step(np.full(3, value, np.float32), states)
        monitor.observe(reading(jax.block_until_ready(states)))
        assert monitor.flush(20)
        assert [number for _, number in stub.books.steps()] == [1, 2, 3]
        with caplog.at_level(logging.WARNING, logger="optwrap"):
            for _ in range(2):
                states = step(np.array([1, np.nan, 2], np.float32), states)
            jax.block_until_ready(states)
            assert monitor.flush(20)
        assert [number for _, number in stub.books.steps()] == [1, 2, 3]
        (refused,) = [record.getMessage() for record in caplog.records if "passed over" in record.getMessage()]
        assert "3 rows of the steps 4, 4, 4" in refused


def test_a_state_that_went_without_callbacks_goes_on_with_them() -> None:
    """And the other way round: the same optimizer with the other `emit`."""
    plain = instrument(optax.sgd(0.5))
    relay, _, _ = program()
    telling = instrument(optax.sgd(0.5), relay, emit="callback", callback_every=EVERY)
    state = jax.jit(plain.update)(PARAMS, plain.init(PARAMS))[1]
    for number in (2, 3, 4):
        state = jax.jit(telling.update)(PARAMS, state)[1]
        assert [unpack(row).step for row in by_step(np.asarray(reading(state)))] == list(range(2, number + 1))
    state = jax.jit(plain.update)(PARAMS, state)[1]
    assert unpack(np.asarray(reading(state))).step == 5
    for tx in (plain, telling):  # where a checkpoint has to have the shapes of the state that goes on
        adopted = optwrap.adopt(tx, state, PARAMS)
        assert jax.tree.map(jnp.shape, adopted) == jax.tree.map(jnp.shape, tx.init(PARAMS))
        assert unpack(np.asarray(reading(adopted))).step == 5


@pytest.mark.parametrize(
    ("every", "error", "says"),
    [
        (0, ValueError, "callback_every must be a Python integer from 1 to 32, got 0"),
        (33, ValueError, "callback_every must be a Python integer from 1 to 32, got 33"),
        (2.0, TypeError, r"callback_every must be a Python integer from 1 to 32, got 2.0 \(float\)"),
        (True, TypeError, r"got True \(bool\)"),
    ],
)
def test_how_many_are_handed_over_at_once_is_checked(every: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        instrument(optax.sgd(0.5), program()[0], emit="callback", callback_every=every)
