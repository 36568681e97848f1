"""Gradients with faults put in: which values of which step are replaced by what."""

from typing import Any

import jax
import numpy as np
from hypothesis import strategies as st

from tests.optwrap.transformations import FLOAT32, gradients

Faults = dict[int, list[tuple[tuple[int, int], float]]]
"""By step, the leaf and the place in it, and what stands there; infinite where it does not fit the dtype."""

STEPS = 8

VALUES_NOT_FINITE = st.sampled_from([np.nan, np.inf, -np.inf])
LARGEST = {dtype: float(np.finfo(dtype).max) for dtype in (np.float32, np.float16)}
"""The largest finite value: its square overflows the dtype, and so does its sum with itself."""
POSITIONS = st.integers(0, len(jax.tree.leaves(FLOAT32)) - 1).flatmap(
    lambda leaf: st.tuples(st.just(leaf), st.integers(0, jax.tree.leaves(FLOAT32)[leaf].size - 1))
)


def faults_of(values: st.SearchStrategy[float], positions: st.SearchStrategy[Any] = POSITIONS) -> Any:
    """Up to three values in each of up to five steps."""
    return st.dictionaries(
        st.integers(0, STEPS - 1), st.lists(st.tuples(positions, values), min_size=1, max_size=3), max_size=5
    )


def batches_with(faults: Faults, tree: Any = FLOAT32) -> list[Any]:
    """The gradients of every step for a tree with FLOAT32's shapes, faults put in."""
    batches = []
    for step in range(STEPS):
        leaves, structure = jax.tree.flatten(gradients(tree, step))
        for (leaf, position), value in faults.get(step, []):
            leaves[leaf].flat[position] = value
        batches.append(jax.tree.unflatten(structure, leaves))
    return batches


def is_finite(tree: Any) -> bool:
    return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))
