"""The fields of the wrapped state are attributes of an `InstrumentState`, and it stays the tuple that it is."""

import copy
import pickle
from pathlib import Path
from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import optwrap

PARAMS = {"w": np.ones(3, np.float32)}


def injected(name: str | None = None) -> Any:
    return optwrap.instrument(optax.inject_hyperparams(optax.sgd)(learning_rate=0.25), name=name)


def test_hyperparams_are_read_and_set_as_without_instrument() -> None:
    """The way in which programs change a learning rate."""
    tx = injected()
    state = tx.init(PARAMS)
    assert state.hyperparams["learning_rate"] == 0.25
    state.hyperparams["learning_rate"] = jnp.array(0.5)
    updates, state = jax.jit(tx.update)(PARAMS, state, PARAMS)
    np.testing.assert_array_equal(updates["w"], np.full(3, -0.5, np.float32))


def test_fields_are_found_through_several_instrumentations() -> None:
    state = optwrap.instrument(optwrap.instrument(optwrap.MultiSteps(optax.sgd(0.1), 2), name="a"), name="b").init(
        PARAMS
    )
    assert state.gradient_step == state.mini_step == 0
    assert list(state.counters) == ["b"]


@pytest.mark.parametrize(
    "name", ["learning_rate", "_secret", "__array__", "__jax_array__", "__getstate__x", "shape", "map"]
)
def test_what_the_inner_state_has_no_field_for_is_no_attribute(name: str) -> None:
    """Neither methods nor private names; the error lists the fields that there are."""
    state = injected().init(PARAMS)
    assert not hasattr(state, name)
    with pytest.raises(AttributeError, match=rf"no attribute '{name}'.*there are: inner_state, counters, count, hyper"):
        getattr(state, name)


def test_a_state_without_fields_has_none() -> None:
    """The state of a chain is a tuple; that of one array has a shape, which is not the InstrumentState's."""
    assert not hasattr(optwrap.instrument(optax.chain(optax.sgd(0.1))).init(PARAMS), "hyperparams")
    array = optwrap.InstrumentState(jnp.ones(3), {})
    assert not hasattr(array, "shape")
    assert not hasattr(array, "dtype")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_state_is_pickled_and_copied_as_a_tuple_is(protocol: int) -> None:
    state = injected().init(PARAMS)
    for other in (pickle.loads(pickle.dumps(state, protocol)), copy.copy(state), copy.deepcopy(state)):
        assert type(other) is optwrap.InstrumentState
        assert str(jax.tree.structure(other)) == str(jax.tree.structure(state))
        jax.tree.map(np.testing.assert_array_equal, other, state)


def test_tree_utilities_flax_and_orbax_see_the_same_tree(tmp_path: Path) -> None:
    """Two fields, of these paths."""
    state = injected("mine").init(PARAMS)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    assert paths[-1] == ".counters['mine']"
    assert all(path.startswith(".inner_state.") for path in paths[:-1])
    assert list(flax.serialization.to_state_dict(state)) == ["inner_state", "counters"]
    blank = jax.tree.map(jnp.zeros_like, state)
    restored = flax.serialization.from_bytes(blank, flax.serialization.to_bytes(state))
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", blank)
    assert type(restored) is optwrap.InstrumentState
    jax.tree.map(np.testing.assert_array_equal, restored, state)
