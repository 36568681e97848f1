"""`apply_gradients` overwrites donated parameters and states in place, as XLA's own report says."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import optwrap
from tests.optwrap.fused import CHOSEN, instrumented
from tests.optwrap.transformations import Case, by_name, multi_steps


@pytest.mark.thin(3)
@by_name(CHOSEN)
def test_parameters_and_state_are_overwritten_in_place(case: Case) -> None:
    """XLA reuses the buffer of each donated array for a result of the step."""
    for transformation in (case.build(optwrap), *([] if len(case.wraps) > 1 else [instrumented(case)])):
        params = case.params({"layer": {"w": jnp.ones((64, 256))}, "b": jnp.ones(256)})
        state = jax.jit(transformation.init)(params)

        @functools.partial(jax.jit, donate_argnums=(0, 1), keep_unused=True)
        def step(params: Any, state: Any, grads: Any, tx: Any = transformation) -> tuple[Any, Any]:
            return optwrap.apply_gradients(tx, grads, state, params)

        like = params.fast if case.pairs else params
        compiled: Any = step.lower(params, state, like).compile()
        leaves = jax.tree.leaves((params, state))
        header = compiled.as_text().split("\n", 1)[0]
        aliased = {int(number) for number in re.findall(r"\}: \((\d+), \{\}", header)}
        assert aliased == set(range(len(leaves)))
        assert compiled.memory_analysis().alias_size_in_bytes == sum(leaf.nbytes for leaf in leaves)


@pytest.mark.parametrize("skip", [None, "not_finite", "large"])
def test_accumulation_takes_no_memory(skip: str | None) -> None:
    """XLA allocates nothing of the parameters' size: the window is filled and emptied in place."""
    params = {f"w{i}": jnp.ones((256, 256)) for i in range(8)}
    transformation = multi_steps(optwrap, optax.adamw(0.1), 4, skip=skip)
    state = transformation.init(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        return optwrap.apply_gradients(transformation, grads, state, params)

    memory: Any = step.lower(params, state, params).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 0.5 * sum(leaf.nbytes for leaf in jax.tree.leaves(params))
