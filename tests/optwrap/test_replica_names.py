"""The name of a replica, from the mesh of the reading or of the step."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from optwrap._reading.replicas import NonfiniteReplicas, Replica, Replicas, named, nonfinite_replicas
from tests.optwrap.replicas import WAYS, Way, truth

pytestmark = pytest.mark.thin(3)


@dataclasses.dataclass
class FakeDevice:
    id: int
    process_index: int
    platform: str = "tpu"


@pytest.mark.parametrize("way", WAYS.values(), ids=list(WAYS))
def test_the_sharding_of_the_reading_names_the_devices(way: Way) -> None:
    """The mesh of the reading overrides the mesh given to replica_flags."""
    words = jax.device_put(np.zeros(3, np.uint32), NamedSharding(way.mesh, P()))
    axes = (way.replicas,) if isinstance(way.replicas, str) else way.replicas
    known = Replicas(
        int(np.prod([way.shape[axis] for axis in axes])), axes, Mesh(way.mesh.devices[::-1], tuple(way.shape))
    )
    for row in filter(None, truth(way)):
        assert nonfinite_replicas(row[0], row[3], known, words) == NonfiniteReplicas(Replica(*row[:3]), *row[3:])


def test_a_replica_of_many_devices_has_a_short_name() -> None:
    """Ranges, and no more than a few of them."""
    devices: Any = np.empty(256, object)
    devices[:] = [FakeDevice(number, number // 64) for number in range(256)]
    grid = devices.reshape(2, 128)
    names = [named(grid[0])[1], named(grid[1])[1], named(grid[:, 3])[1], named(grid[1, ::2])[1]]
    assert names == ["tpu:0-127", "tpu:128-255", "tpu:3,131", "tpu:128,130,132,134,136,138,140,142,..."]
    assert [named(grid[row])[0] for row in (0, 1)] == [0, 2]


def test_another_mesh_names_no_device() -> None:
    """A mesh without these axes or with other sizes, and no mesh."""
    mesh = WAYS["one axis"].mesh
    for known in (None, Replicas(8), Replicas(8, ("x",), mesh), Replicas(4, ("data",), mesh)):
        of = known.count if known else None
        assert nonfinite_replicas(1, 2, known, np.zeros(3)) == NonfiniteReplicas(Replica(1, None, None), 2, of)
    assert nonfinite_replicas(3, 2, Replicas(8, ("data",), mesh), None) == NonfiniteReplicas(
        Replica(3, 0, "cpu:3"), 2, 8
    )
