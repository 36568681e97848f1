"""Measures the cost of `replica_flags` in a data-parallel step.

Runs the same instrumented step under `shard_map`, with `replica_flags` and without, in turns. Also prints XLA's figures
for both programs, which are the same in every run. The devices are simulated on a CPU.
"""

import argparse
import functools
import random
import statistics
import time
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

import optwrap

# JAX leaves these untyped.
P: Any = jax.sharding.PartitionSpec
pmean: Any = jax.lax.pmean
finished: Any = jax.block_until_ready
configure: Any = jax.config.update

STEPS: Final = 5
"""Steps at a time."""
CASES: Final = {2: (4_000_000, 64), 8: (1_000_000, 50)}
"""Parameters and leaves, by number of devices."""


def stepped(tx: Any, mesh: Mesh, *, asking: bool) -> Any:
    """The step, with state and parameters donated. Its gradients are the parameters times the replica's index."""

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(P(), P(), P("data")), out_specs=P())
    def step(params: Any, state: Any, own: Any) -> Any:
        grads = jax.tree.map(lambda leaf: leaf * own[0], jax.lax.pcast(params, "data", to="varying"))
        extra = {"replica_flags": optwrap.replica_flags(grads, "data")} if asking else {}
        grads = pmean(grads, "data")
        params, state = optwrap.apply_gradients(tx, grads, state, params, **extra)
        return params, state, optwrap.reading(state)

    return step


def measure(devices: int, size: int, leaves: int, rounds: int) -> None:
    """Print the figures of one case."""
    mesh = Mesh(np.array(jax.devices()[:devices]), ("data",))
    tx = optwrap.instrument(optwrap.apply_if_finite(optax.adamw(1e-3), 5))
    own = jax.device_put(np.linspace(0.5, 1, devices, dtype=np.float32), NamedSharding(mesh, P("data")))
    steps: dict[bool, Any] = {}
    carries: dict[bool, Any] = {}
    for asking in (False, True):
        params = {f"layer_{i}": jnp.ones(size // leaves) for i in range(leaves)}
        carry: Any = jax.device_put((params, tx.init(params)), NamedSharding(mesh, P()))
        compiled = stepped(tx, mesh, asking=asking).lower(*carry, own).compile()
        cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
        print(
            f"  {'asking' if asking else 'not   '}  bytes accessed {cost['bytes accessed'] / 1e6:.0f} MB,"
            f" temporaries {memory.temp_size_in_bytes / 2**20:.2f} MiB"
        )
        *carry, words = compiled(*carry, own)
        steps[asking], carries[asking] = compiled, finished(carry)
    ratios, bare = [], []
    for _ in range(rounds):
        took = {}
        for asking in random.sample([False, True], 2):
            carry, began = carries[asking], time.perf_counter()
            for _ in range(STEPS):
                *carry, words = steps[asking](*carry, own)
                finished(words)  # simulated devices have few threads
            carries[asking] = finished(carry)
            took[asking] = (time.perf_counter() - began) / STEPS
        ratios.append(took[True] / took[False])
        bare.append(1e3 * took[False])
    low, median, high = statistics.quantiles(ratios, n=4)
    print(f"  {statistics.median(bare):.1f} ms without; asking {median:.2f} of it ({low:.2f} to {high:.2f})")


def main() -> None:
    """Measure every case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=31, help="of each case")
    rounds = parser.parse_args().rounds
    configure("jax_num_cpu_devices", max(CASES))
    for devices, (size, leaves) in CASES.items():
        print(f"{devices} devices, {size:,} parameters in {leaves} leaves:")
        measure(devices, size, leaves, rounds)


if __name__ == "__main__":
    main()
