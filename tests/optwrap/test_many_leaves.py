"""A step with many parameters compiles in a time that grows with their number, not with its square."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

import optwrap
from tests.compiling import AS_USERS
from tests.optwrap.fused import CHOSEN, instrumented
from tests.optwrap.transformations import Case, by_name


def instructions(case: Case, transformation: Any, leaves: int) -> int:
    """The number of instructions in the compiled step, those inside of fusions included."""
    params = case.params({f"layer_{i}": jnp.ones(300) for i in range(leaves)})

    def step(params: Any, state: Any, grads: Any) -> Any:
        return optwrap.apply_gradients(transformation, grads, state, params)

    donating = jax.jit(step, donate_argnums=(0, 1), compiler_options=AS_USERS)
    grads = params.fast if case.pairs else params
    compiled = donating.lower(params, jax.eval_shape(transformation.init, params), grads).compile()
    text = compiled.as_text()
    assert text is not None
    return text.count(" = ")


@pytest.mark.thin(3)
@pytest.mark.parametrize("watched", [False, True], ids=["bare", "instrumented"])
@by_name(CHOSEN)
def test_a_compiled_step_grows_with_its_leaves(case: Case, watched: bool) -> None:
    """XLA repeats what it fuses: a sum over all leaves must not become a part of the update of each leaf."""
    transformation = instrumented(case) if watched else case.build(optwrap)
    few, some, many = (instructions(case, transformation, leaves) for leaves in (20, 40, 60))
    assert many - some < 1.1 * (some - few)
