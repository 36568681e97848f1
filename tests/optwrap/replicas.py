"""For tests: meshes whose replicas get non-finite gradients, and what a report must say of each step."""

import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from optwrap_exporter.wire import requests as wire

import optwrap
from optwrap._monitor.monitor import Monitor
from tests.optwrap.monitoring import Books

N = 8

SPOILT = np.array(
    [
        *np.eye(N, dtype=bool),
        np.zeros(N, bool),
        np.isin(np.arange(N), [2, 5]),
        np.isin(np.arange(N), [1, 6, 7]),
        np.ones(N, bool),
        np.zeros(N, bool),
    ]
)
"""bool[steps, N]: which rows of the batch, one for each device, spoil the gradients: each alone, some, all, none."""


class Way(NamedTuple):
    """A mesh, and the axes along which the replicas lie."""

    order: Callable[[list[Any]], list[Any]]
    shape: dict[str, int]
    replicas: str | tuple[str, ...]
    check_vma: bool = True

    @property
    def mesh(self) -> Mesh:
        devices = self.order(jax.devices()[:N])
        return Mesh(np.array(devices).reshape(list(self.shape.values())), tuple(self.shape))


def in_order(devices: list[Any]) -> list[Any]:
    return devices


def reverse(devices: list[Any]) -> list[Any]:
    return devices[::-1]


WAYS = {
    "one axis": Way(in_order, {"data": 8}, "data"),
    "without types": Way(in_order, {"data": 8}, "data", check_vma=False),
    "reversed": Way(reverse, {"data": 8}, "data"),
    "first of two": Way(in_order, {"data": 4, "model": 2}, "data"),
    "second of two": Way(reverse, {"model": 2, "data": 4}, "data"),
    "second of two without types": Way(in_order, {"model": 2, "data": 4}, "data", check_vma=False),
    "two axes": Way(reverse, {"a": 2, "b": 4}, ("b", "a")),
}

COLLECTIVES = [
    f"{kind}{start}"
    for kind in ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")
    for start in ("", "-start")
]


def truth(way: Way) -> list[tuple[int, int, str, int, int] | None]:
    """Replica, process, device, count and number of replicas of each step, from the mesh's own grid."""
    mesh, axes = way.mesh, (way.replicas,) if isinstance(way.replicas, str) else way.replicas
    rows: dict[int, list[int]] = {}
    ids: dict[int, list[int]] = {}
    for row, place in enumerate(itertools.product(*map(range, way.shape.values()))):
        at = dict(zip(way.shape, place, strict=True))
        replica = 0
        for axis in axes:
            replica = replica * way.shape[axis] + at[axis]
        rows.setdefault(replica, []).append(row)
        ids.setdefault(replica, []).append(mesh.devices[place].id)
    found: list[tuple[int, int, str, int, int] | None] = []
    for spoilt in SPOILT:
        bad = [replica for replica in sorted(rows) if spoilt[rows[replica]].any()]
        found.append((bad[0], 0, name(ids[bad[0]]), len(bad), len(rows)) if bad else None)
    return found


def name(ids: list[int]) -> str:
    ids = sorted(ids)
    return f"cpu:{ids[0]}" if len(ids) == 1 else f"cpu:{ids[0]}{'-' if ids[1] == ids[0] + 1 else ','}{ids[1]}"


def batches() -> np.ndarray[Any, Any]:
    """float32[steps, N, 3]: NaN, Inf and what overflows, in another value each time."""
    rows = np.ones([*SPOILT.shape, 3], np.float32)
    for place, (step, row) in enumerate(np.argwhere(SPOILT)):
        rows[step, row, place % 3] = (np.nan, np.inf, -np.inf)[place % 3]
    return rows


def loss(params: Any, row: Any) -> Any:
    return jnp.sum(params["w"] * row) + jnp.sum(params["b"])


def stepped(
    tx: Any, axes: Any, every: Any, *, pcast: bool, mesh: Mesh | None = None, name: str | None = None
) -> Callable[..., Any]:
    """One step on one device: its own gradients, their flags, and the optimizer on the mean."""

    def step(params: Any, state: Any, row: Any) -> Any:
        own = jax.lax.pcast(params, every, to="varying") if pcast else params
        grads = jax.grad(loss)(own, row)
        flags = optwrap.replica_flags(grads, axes, mesh=mesh)
        params, state = optwrap.apply_gradients(tx, jax.lax.pmean(grads, every), state, params, replica_flags=flags)
        return params, state, optwrap.reading(state, name)

    return step


def mapped(way: Way, step: Callable[..., Any]) -> Callable[..., Any]:
    """The step on every device of the mesh, each with its row of the batch."""
    every = tuple(way.shape)
    return jax.shard_map(
        lambda params, state, rows: step(params, state, rows[0]),
        mesh=way.mesh,
        in_specs=(P(), P(), P(every)),
        out_specs=(P(), P(), P()),
        check_vma=way.check_vma,
    )


def start(monitor: Monitor | None, **options: Any) -> tuple[Any, Any, Any]:
    tx = optwrap.instrument(optwrap.apply_if_finite(optax.sgd(0.1), 100), monitor, **options)
    params = {"b": jnp.ones([]), "w": jnp.ones(3)}
    return tx, params, tx.init(params)


def told(books: Books) -> list[tuple[Any, ...] | None]:
    """The reported replicas of each step; checks that the totals equal the sum of the records."""
    rows: dict[int, tuple[Any, ...]] = {}
    totals: Counter[tuple[Any, ...]] = Counter()
    for reports in books.incarnations().values():
        for report in reports:
            wire.Report.model_validate(report, strict=False)
            assert "replicas" not in report["at_start"]
            for one in report.get("replicas", ()):
                assert one["step"] not in rows, "each step once"
                assert one["step"] in report["steps"]["step"]
                rows[one["step"]] = tuple(one[key] for key in ("replica", "process", "device", "count", "of"))
        totals.update(
            {(one["replica"], one["process"], one["device"]): one["steps"] for one in reports[-1]["totals"]["replicas"]}
        )
    assert totals == Counter(row[:3] for row in rows.values())
    return [rows.get(step) for step in range(1, len(SPOILT) + 1)]
