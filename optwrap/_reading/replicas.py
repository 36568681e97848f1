"""Which process and devices a replica of data-parallel training is.

The step gives a replica's index along the mesh's axes. Which devices that is only the mesh knows: the mesh in the
reading's sharding, or the one that was passed to `replica_flags`. Without a mesh the index alone is reported. This runs
on the host.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import jax
import numpy as np

_MAX_RANGES: Final = 8
"""Devices, or ranges of devices, in the name of a replica."""


class Replica(NamedTuple):
    """One replica, as far as it is known."""

    number: int | None
    """Its index along the axes of the replicas, row-major; None for all replicas that are counted together."""
    process: int | None
    """`process_index` of its first device."""
    device: str | None
    """Its devices by platform and id, as JAX numbers them: `tpu:5`, or for several `tpu:4-7`, `cpu:1,5`."""


OTHERS: Final = Replica(None, None, None)
"""All replicas that are counted together."""


class Brought(NamedTuple):
    """The replicas with non-finite gradients in a step; there is at least one."""

    first: Replica
    """The one with the lowest index."""
    replicas: int
    """How many there were."""
    of: int | None
    """How many replicas there are; None if unknown."""


@dataclasses.dataclass(frozen=True)
class Replicas:
    """The replicas of a step, as known when it is traced."""

    count: int
    """How many there are."""
    axes: tuple[str, ...] | None = None
    """The mesh axes along which they lie, the slowest first; None if unknown."""
    mesh: jax.sharding.Mesh | None = None
    """The mesh that these are axes of; None if unknown."""


def brought(index: int, count: int, replicas: Replicas | None, observed: object) -> Brought:
    """The replicas with non-finite gradients in a step, with process and device where they are known.

    Args:
      index: of the first of them.
      count: how many they are.
      replicas: the replicas of the step that was traced last; None if it had no flags.
      observed: the reading as it was observed: an array whose sharding may say which mesh the step ran on.
    """
    mesh_of_reading = getattr(getattr(observed, "sharding", None), "mesh", None)
    if (
        replicas is None
        or index + count > replicas.count
        or _size(mesh_of_reading, replicas) not in {None, replicas.count}
    ):
        # The step that was traced last is another one, with other replicas.
        return Brought(Replica(index, None, None), count, None)
    for mesh in (mesh_of_reading, replicas.mesh):
        if _size(mesh, replicas) == replicas.count:
            return Brought(Replica(index, *named(_devices(mesh, replicas)[index])), count, replicas.count)
    return Brought(Replica(index, None, None), count, replicas.count)


def named(devices: Sequence[Any]) -> tuple[int, str]:
    """Process and name of a replica with these devices."""
    first = devices[0]
    return int(first.process_index), f"{first.platform}:{_ranges(sorted(int(device.id) for device in devices))}"


def _size(mesh: object, replicas: Replicas) -> int | None:
    """The product of a mesh's sizes along the axes of the replicas; None if it is no mesh, or has no such axes."""
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
