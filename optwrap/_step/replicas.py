"""`replica_flags`: which replicas of data-parallel training have non-finite gradients.

It must be called before the mean over the replicas, because after it every replica has the same NaN.
"""

import dataclasses
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax import lax

from optwrap._core.checks import shown
from optwrap._core.collectives import Axes, AxisName, Together, varying
from optwrap._core.finite import all_finite, is_inexact
from optwrap._reading.counters import ABSENT
from optwrap._reading.replicas import Replicas

_REMEDY: Final = (
    "compute the gradients inside jax.shard_map or jax.pmap over such an axis, and call replica_flags there, before "
    "their mean; under plain jit gradients are already summed over the devices"
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ReplicaFlags:
    """Which replicas have non-finite gradients, and where the replicas are. A pytree with one leaf, the flags.

    It can be returned from `shard_map`, `pmap` and `jit`. Combine the flags of two micro-batches with
    `jax.tree.map(jnp.logical_or, flags, more)`.
    """

    flags: jax.Array
    """bool[R]: for each replica whether a value of its own gradients is non-finite."""
    replicas: Replicas = dataclasses.field(metadata={"static": True})
    """Number of replicas, and their axes and mesh."""


def replica_flags(grads: Any, axis_name: AxisName, *, mesh: jax.sharding.Mesh | None = None) -> ReplicaFlags:
    """Which replicas' own gradients hold a non-finite value. Call it before their mean, and pass the result on.

    For example::

        grads = jax.grad(loss)(jax.lax.pcast(params, "data", to="varying"), batch)
        flags = optwrap.replica_flags(grads, "data")
        grads = jax.lax.pmean(grads, "data")
        params, state = optwrap.apply_gradients(tx, grads, state, params, replica_flags=flags)

    An `instrument` in `tx` takes the flags (from `tx.update(..., replica_flags=flags)` too). For every step with such
    replicas, its `Monitor` then reports the first of them with its process and device, and how many there were. Other
    transformations get the flags as one more extra argument.

    The cost is one more pass over the gradients and a sum of R integers over the devices.

    Args:
      grads: the replica's own gradients, before `pmean` or `psum`; any tree. If gradients are accumulated over
        micro-batches, the accumulated ones.
      axis_name: the axes of the `shard_map`, `pmap` or `vmap` along which the replicas lie, a name or a tuple of names.
        Along any other axis of the `shard_map` a replica's devices hold parts of its gradients.
      mesh: the mesh with these axes. It is needed only with emit="callback", to name the process and device: a
        returned reading has the mesh in its sharding.

    Returns:
      A `ReplicaFlags`. Its `flags` are bool[R], with R the number of replicas, row-major in the order of `axis_name`;
      they are the same on each device.

    Raises:
      TypeError: `axis_name` is neither a name nor a tuple of names, or `mesh` is not a `jax.sharding.Mesh`.
      ValueError: the function is not traced under such an axis, as under plain jit; or the gradients are already the
        same along it; or `mesh` has no such axes, or axes of other sizes.
    """
    axes = Axes("replica_flags: axis_name", axis_name, every_typed=True, called="replica_flags", remedy=_REMEDY)
    if not axes.names:
        raise ValueError(
            f"replica_flags: axis_name must be the axis along which the replicas lie, or a tuple of them, got "
            f"{shown(axis_name)}: {_REMEDY}"
        )
    together = Together(None, axes.here().untyped | _untyped_axes())
    _check_differ(grads, axes.names, together.untyped)
    index, count = lax.axis_index(axes.names), int(lax.axis_size(axes.names))
    _check_mesh(mesh, axes.names)
    # Each replica adds its own row to a sum. JAX knows that a psum is equal on all devices; for an all-gather it does
    # not know that.
    row = (jnp.arange(count, dtype=jnp.int32) == index) & ~all_finite(grads)
    flags = together.total_count(row.astype(jnp.int32), 1) > 0
    return ReplicaFlags(flags, Replicas(count, axes.names, mesh))


def flags_and_replicas(given: Any) -> tuple[Any, Replicas | None]:
    """The flags, bool[R], and their replicas; None for both if there are no flags.

    Args:
      given: the extra argument `replica_flags`: a `ReplicaFlags`, a bool[R], or None.

    Raises:
      TypeError: it is not one of these.
    """
    if given is None:
        return None, None
    flags = given.flags if isinstance(given, ReplicaFlags) else given
    dtype, shape = getattr(flags, "dtype", None), getattr(flags, "shape", None)
    if dtype != jnp.bool_ or shape is None or len(shape) != 1 or not shape[0]:
        got = f"{dtype}{list(shape)}" if dtype is not None and shape is not None else shown(flags)
        raise TypeError(
            f"replica_flags must be bool[replicas], got {got}: pass what optwrap.replica_flags(grads, axis_name) "
            "returned, unchanged"
        )
    return flags, given.replicas if isinstance(given, ReplicaFlags) else Replicas(int(shape[0]))


def first_and_count(flags: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Index of the first flagged replica (ABSENT if none) and their number, each int32[]; ABSENT without flags."""
    if flags is None:
        return jnp.array(ABSENT, jnp.int32), jnp.array(ABSENT, jnp.int32)
    flags = Together(None, frozenset()).largest(jnp.asarray(flags))
    count = jnp.sum(flags, dtype=jnp.int32)
    return jnp.where(count > 0, jnp.argmax(flags).astype(jnp.int32), ABSENT), count


def _untyped_axes() -> frozenset[str]:
    """The axes of the shard_map along which a value's type does not show whether it varies."""
    every = jax.sharding.get_abstract_mesh().manual_axes
    return frozenset(axis for axis in every if not varying(jax.typeof(lax.axis_index(axis))))


def _check_differ(grads: Any, names: tuple[str, ...], untyped: frozenset[str]) -> None:
    """Check that the gradients differ along these axes, if their types show that."""
    differ = frozenset[str]().union(*(varying(jax.typeof(leaf)) for leaf in jax.tree.leaves(grads) if is_inexact(leaf)))
    for name in names:
        if name not in untyped and name not in differ and any(map(is_inexact, jax.tree.leaves(grads))):
            raise ValueError(
                f"replica_flags: grads must be each replica's own, got gradients that are the same along {name!r}: "
                "call it before their mean. With check_vma jax.grad already sums the gradients of replicated "
                f'parameters: differentiate jax.lax.pcast(params, {name!r}, to="varying") instead'
            )


def _check_mesh(mesh: Any, names: tuple[str, ...]) -> None:
    if mesh is None:
        return
    if not isinstance(mesh, jax.sharding.Mesh):
        raise TypeError(
            f"replica_flags: mesh must be the jax.sharding.Mesh of the step, or None, got {shown(mesh)} "
            f"({type(mesh).__name__}): leave it out, or pass the mesh that shard_map is given"
        )
    sizes = {name: int(lax.axis_size(name)) for name in names}
    if {name: mesh.shape.get(name) for name in names} != sizes:
        raise ValueError(
            f"replica_flags: mesh must have the axes {sizes}, got one with {dict(mesh.shape)}: pass the mesh that "
            "shard_map is given"
        )
