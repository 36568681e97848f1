"""The process and devices of a replica of data-parallel training. Runs on the host.

The step reports the index of a replica along the mesh's axes. Its devices are looked up in the mesh of the reading's
sharding, or else in the mesh that was passed to `replica_flags`. Without a mesh only the index is reported.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import jax
import numpy as np

_MAX_RANGES: Final = 8
"""Devices, or ranges of devices, in the name of a replica."""


class Replica(NamedTuple):
    """One replica. Fields that are unknown are None."""

    number: int | None
    """Its index along the axes of the replicas, row-major. None in the entry of `Totals.replicas` that stands for all
    replicas without an entry of their own."""
    process: int | None
    """JAX's `process_index` of its first device."""
    device: str | None
    """Its devices by platform and JAX's device id: `tpu:5`, or for several `tpu:4-7`, `cpu:1,5`."""


OTHERS: Final = Replica(None, None, None)
"""Stands for all replicas that are not listed separately."""


class NonfiniteReplicas(NamedTuple):
    """The replicas with non-finite gradients in a step; there is at least one."""

    first: Replica
    """The one with the lowest index."""
    affected: int
    """Number of replicas with non-finite gradients."""
    total: int | None
    """Number of all replicas; None if unknown."""


@dataclasses.dataclass(frozen=True)
class Replicas:
    """The number and placement of a step's replicas, known when the step is traced."""

    count: int
    """Number of replicas."""
    axes: tuple[str, ...] | None = None
    """The mesh axes along which the replicas lie, the slowest first; None if unknown."""
    mesh: jax.sharding.Mesh | None = None
    """The mesh with these axes; None if unknown."""


def nonfinite_replicas(index: int, count: int, replicas: Replicas | None, observed: object) -> NonfiniteReplicas:
    """The replicas with non-finite gradients in a step, with process and device where they are known.

    Args:
      index: index of the first of them.
      count: number of them.
      replicas: the replicas of the step that was traced last; None if it had no flags.
      observed: the observed reading. If it is a JAX array, its sharding may have the mesh of the step.
    """
    mesh_of_reading = getattr(getattr(observed, "sharding", None), "mesh", None)
    if (
        replicas is None
        or index + count > replicas.count
        or _size(mesh_of_reading, replicas) not in {None, replicas.count}
    ):
        # The reading is from another step than the one traced last, with other replicas.
        return NonfiniteReplicas(Replica(index, None, None), count, None)
    for mesh in (mesh_of_reading, replicas.mesh):
        if _size(mesh, replicas) == replicas.count:
            return NonfiniteReplicas(Replica(index, *named(_devices(mesh, replicas)[index])), count, replicas.count)
    return NonfiniteReplicas(Replica(index, None, None), count, replicas.count)


def named(devices: Sequence[Any]) -> tuple[int, str]:
    """The process and the device text of a replica with these devices."""
    first = devices[0]
    return int(first.process_index), f"{first.platform}:{_ranges(sorted(int(device.id) for device in devices))}"


def _size(mesh: object, replicas: Replicas) -> int | None:
    """The product of a mesh's sizes along the axes of the replicas; None if it is not a mesh, or has no such axes."""
    axes = replicas.axes
    if not isinstance(mesh, jax.sharding.Mesh) or axes is None or not set(axes) <= set(mesh.axis_names):
        return None
    return int(np.prod([mesh.shape[axis] for axis in axes]))


def _devices(mesh: Any, replicas: Replicas) -> Any:
    """The devices of each replica, [replicas, devices]."""
    positions = [mesh.axis_names.index(axis) for axis in replicas.axes or ()]
    return np.moveaxis(mesh.devices, positions, range(len(positions))).reshape(replicas.count, -1)


def _ranges(ids: Sequence[int]) -> str:
    """`[1, 2, 3, 7]` as `1-3,7`."""
    ranges: list[list[int]] = []
    for number in ids:
        if ranges and number == ranges[-1][-1] + 1:
            ranges[-1][1:] = [number]
        else:
            ranges.append([number])
    texts = ["-".join(map(str, ends)) for ends in ranges[:_MAX_RANGES]]
    return ",".join([*texts, *(["..."] if len(ranges) > _MAX_RANGES else [])])
