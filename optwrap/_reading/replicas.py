"""Where a replica of data-parallel training is: its index along the mesh's axes, made a process and a device.

On the host, in the Monitor's thread. The step tells an index; what devices that is only a mesh knows, and which mesh a
step ran on its results say. Where nothing says it, the index is all that is told.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import jax
import numpy as np

_MOST_PIECES: Final = 8
"""Devices, or ranges of them, that a name lists."""


class Replica(NamedTuple):
    """One replica, as far as it is known where it is."""

    number: int | None
    """Its place along the axes of the replicas, row-major; None for all that are not told apart."""
    process: int | None
    """`process_index` of its first device."""
    device: str | None
    """Its devices by platform and id, as JAX numbers them: `tpu:5`; of several `tpu:4-7`, `cpu:1,5`."""


OTHERS: Final = Replica(None, None, None)
"""All replicas that are not told apart."""


class Brought(NamedTuple):
    """Which replicas' own gradients were not finite in a step: at least one's."""

    first: Replica
    """The one with the lowest index."""
    replicas: int
    """How many were."""
    of: int | None
    """How many there are, where that is known."""


@dataclasses.dataclass(frozen=True, eq=False)
class Replicas:
    """What is known of the replicas when a step is traced."""

    count: int
    """How many there are."""
    axes: tuple[str, ...] | None = None
    """The axes along which they lie, the slowest first; None where the flags do not say where they come from."""
    mesh: jax.sharding.Mesh | None = None
    """The mesh that these are axes of, where somebody has told it."""


def brought(index: int, count: int, replicas: Replicas | None, observed: object) -> Brought:
    """What is told of a step in which replicas were not finite.

    Args:
      index: of the first of them.
      count: how many they were.
      replicas: what was known when the step was traced.
      observed: the step's reading as it was observed: where it lies says which mesh the step ran on.
    """
    ran_on = getattr(getattr(observed, "sharding", None), "mesh", None)
    if replicas is None or index + count > replicas.count or _along(ran_on, replicas) not in {None, replicas.count}:
        # The last step that was traced is another than this one, where a program has two, with other replicas.
        return Brought(Replica(index, None, None), count, None)
    for mesh in (ran_on, replicas.mesh):
        if _along(mesh, replicas) == replicas.count:
            return Brought(Replica(index, *named(_devices(mesh, replicas)[index])), count, replicas.count)
    return Brought(Replica(index, None, None), count, replicas.count)


def _along(mesh: object, replicas: Replicas) -> int | None:
    """How many devices a mesh has along the axes of the replicas; None where it has no such axes, or is none."""
    axes = replicas.axes
    if not isinstance(mesh, jax.sharding.Mesh) or axes is None or not set(axes) <= set(mesh.axis_names):
        return None
    return int(np.prod([mesh.shape[axis] for axis in axes]))


def _devices(mesh: Any, replicas: Replicas) -> Any:
    """The devices of each replica, [replicas, devices]."""
    places = [mesh.axis_names.index(axis) for axis in replicas.axes or ()]
    return np.moveaxis(mesh.devices, places, range(len(places))).reshape(replicas.count, -1)


def named(devices: Sequence[Any]) -> tuple[int, str]:
    """Process and name of the devices of one replica."""
    first = devices[0]
    return int(first.process_index), f"{first.platform}:{_ranges(sorted(int(device.id) for device in devices))}"


def _ranges(ids: Sequence[int]) -> str:
    """`[1, 2, 3, 7]` as `1-3,7`."""
    pieces: list[list[int]] = []
    for number in ids:
        if pieces and number == pieces[-1][-1] + 1:
            pieces[-1][1:] = [number]
        else:
            pieces.append([number])
    named = ["-".join(map(str, piece)) for piece in pieces[:_MOST_PIECES]]
    return ",".join([*named, *(["..."] if len(pieces) > _MOST_PIECES else [])])
