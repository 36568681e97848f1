"""For tests: gradients that are good and bad, and a training of a few steps."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.optwrap.transformations import stepper

PARAMS = {"w": jnp.array([1.0, 2.0])}

GOOD = {"w": jnp.array([0.5, 0.25])}

BAD = {"w": jnp.array([0.5, jnp.nan])}


def train(transformation: Any, batches: list[Any], params: Any = PARAMS, jit: bool = True) -> list[Any]:
    """(params, state, updates) after each batch."""
    state = transformation.init(params)
    step = jax.jit(stepper(transformation)) if jit else stepper(transformation)
    trail = []
    for grads in batches:
        trail.append(step(grads, state, params))
        params, state, _ = trail[-1]
    return trail


def has_nan(tree: Any) -> bool:
    return any(np.isnan(leaf).any() for leaf in jax.tree.leaves(tree))
