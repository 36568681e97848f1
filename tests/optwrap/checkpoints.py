"""Saves and restores a tree with the checkpoint libraries of JAX."""

import pathlib
from typing import Any

import flax.serialization
import jax
import numpy as np
import orbax.checkpoint as ocp


def through_orbax(saved: Any, like: Any, directory: pathlib.Path) -> Any:
    """Written to a directory, and restored into the types of another tree."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(directory / "checkpoint", saved)
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(directory / "checkpoint", like)


def through_flax(saved: Any, like: Any, directory: pathlib.Path) -> Any:
    """Written to bytes, and read into another tree."""
    del directory
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
    return flax.serialization.from_bytes(zeros, flax.serialization.to_bytes(saved))
