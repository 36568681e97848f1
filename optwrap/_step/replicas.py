"""In the step, before the mean: which replicas of data-parallel training have gradients that are not finite.

After the mean every replica has the same NaN, and nothing says whose it was.
"""

import weakref
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax import lax

from optwrap._core.checks import shown
from optwrap._core.collectives import Axes, AxisName, Together, varying
from optwrap._core.trees import all_finite, is_inexact
from optwrap._reading.counters import ABSENT
from optwrap._reading.replicas import Replicas

_REMEDY: Final = (
    "compute the gradients inside jax.shard_map or jax.pmap over such an axis, and ask there, before their mean; under "
    "plain jit they are already summed over the devices, and nobody can tell which brought a value that is not finite"
)


def replica_flags(grads: Any, axis_name: AxisName, *, mesh: jax.sharding.Mesh | None = None) -> jax.Array:
    """Which replicas' own gradients hold a value that is not finite: ask before their mean, and pass the answer on.

        grads = jax.grad(loss)(jax.lax.pcast(params, "data", to="varying"), batch)
        flags = optwrap.replica_flags(grads, "data")
        grads = jax.lax.pmean(grads, "data")
        params, state = optwrap.apply_gradients(tx, grads, state, params, replica_flags=flags)

    An `instrument` in `tx` takes them (`tx.update(..., replica_flags=flags)` does too) and its `Monitor` tells, for
    every step in which there were any, the first such replica with its process and device, and how many there were. To
    other transformations it is one more extra argument.

    It is a pass over the gradients and a sum of R integers over the devices. The norm of the optimizer's own check is
    that of the mean, another one, so there are two passes then (docs/performance.md says what that costs).

    Args:
      grads: the replica's own gradients, before `pmean` or `psum`; any tree. With gradients accumulated over
        micro-batches, those that are accumulated.
      axis_name: the axes, a name or a tuple of names, of the `shard_map`, `pmap` or `vmap` along which the replicas
        lie. Along the others, those of `shard_map` at least, a replica's devices have parts of its gradients.
      mesh: the mesh that these are axes of. Only with emit="callback", and only where no `jax.set_mesh` tells it:
        what a callback is given does not say where it comes from.

    Returns:
      bool[R], R the number of replicas, row-major in the order of `axis_name`; the same on each device.

    Raises:
      TypeError: `axis_name` is no name and no tuple of names, or `mesh` no `jax.sharding.Mesh`.
      ValueError: there is no such axis here, as under plain jit; or the gradients are the same along it already; or
        `mesh` has no such axes, or of other sizes.
    """
    axes = Axes("replica_flags: axis_name", axis_name, every_told=True, called="replica_flags", remedy=_REMEDY)
    if not axes.names:
        raise ValueError(
            f"replica_flags: axis_name must be the axis along which the replicas lie, or a tuple of them, got "
            f"{shown(axis_name)}: {_REMEDY}"
        )
    together = Together(None, axes.here().untold | _untold())
    _check_differ(grads, axes.names, together.untold)
    index, count = lax.axis_index(axes.names), int(lax.axis_size(axes.names))
    known = Replicas(count, axes.names, _checked_mesh(mesh, axes.names) or _mesh_that_is_set())
    # One row for each replica, added up: unlike gathered ones, the types say of them that they are the same everywhere.
    row = (jnp.arange(count, dtype=jnp.int32) == index) & ~all_finite(grads)
    flags = together.total_count(row.astype(jnp.int32), 1) > 0
    _remember(flags, known)
    return flags


def described(flags: Any, axes: tuple[str, ...] = ()) -> Replicas | None:
    """What is known of the replicas that these flags are of; None where there are no flags.

    Args:
      flags: what an optimizer was given.
      axes: those along which the replicas lie, where the flags do not say it themselves.

    Raises:
      TypeError: they are no flags.
    """
    if flags is None:
        return None
    dtype, shape = getattr(flags, "dtype", None), getattr(flags, "shape", None)
    if dtype != jnp.bool_ or shape is None or len(shape) != 1 or not shape[0]:
        got = f"{dtype}{list(shape)}" if dtype is not None and shape is not None else shown(flags)
        raise TypeError(
            f"replica_flags must be bool[replicas], got {got}: pass what optwrap.replica_flags(grads, axis_name) "
            "returned, as it is"
        )
    made, known = _known.get(id(flags), (None, None))
    if made is not None and made() is flags:
        return known
    return Replicas(int(shape[0]), axes or None, _mesh_that_is_set())


def figures(flags: jax.Array | None) -> jax.Array:
    """int32[2], in the order of OF_REPLICAS."""
    if flags is None:
        return jnp.full([2], ABSENT, jnp.int32)
    flags = Together(None, frozenset()).largest(jnp.asarray(flags))
    count = jnp.sum(flags, dtype=jnp.int32)
    return jnp.stack([jnp.where(count > 0, jnp.argmax(flags).astype(jnp.int32), ABSENT), count])


_known: dict[int, tuple[weakref.ref[Any], Replicas]] = {}
"""By the identity of flags, for as long as they live, what is known of their replicas: an array has no room for it."""


def _remember(flags: Any, known: Replicas) -> None:
    key = id(flags)
    _known[key] = weakref.ref(flags, lambda _: _known.pop(key, None)), known


def _untold() -> frozenset[str]:
    """The axes of shard_map of which types do not say what varies along them."""
    every = jax.sharding.get_abstract_mesh().manual_axes
    return frozenset(axis for axis in every if not varying(jax.typeof(lax.axis_index(axis))))


def _check_differ(grads: Any, names: tuple[str, ...], untold: frozenset[str]) -> None:
    """That the gradients differ along these axes, where types say whether they do."""
    differ = frozenset[str]().union(*(varying(jax.typeof(leaf)) for leaf in jax.tree.leaves(grads) if is_inexact(leaf)))
    for name in names:
        if name not in untold and name not in differ and any(map(is_inexact, jax.tree.leaves(grads))):
            raise ValueError(
                f"replica_flags: grads must be each replica's own, got gradients that are the same along {name!r}: ask "
                "before their mean. With check_vma jax.grad adds up gradients of replicated parameters by itself: take "
                f'those of jax.lax.pcast(params, {name!r}, to="varying")'
            )


def _checked_mesh(mesh: Any, names: tuple[str, ...]) -> jax.sharding.Mesh | None:
    if mesh is None:
        return None
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
    return mesh


def _mesh_that_is_set() -> jax.sharding.Mesh | None:
    """The mesh of `jax.set_mesh`; JAX tells it to nobody who asks while a step is traced, but by a private way."""
    try:
        from jax._src.mesh import get_concrete_mesh  # noqa: PLC0415  # private: may be gone one day
    except ImportError:
        return None
    mesh = get_concrete_mesh()
    return mesh if isinstance(mesh, jax.sharding.Mesh) and not mesh.empty else None
