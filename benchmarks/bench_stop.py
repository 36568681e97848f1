"""Measures what a stop policy costs: a loop that observes every step and asks `should_stop`, with a policy and without.

    python benchmarks/bench_stop.py [--rounds N]

No exporter, so that nothing but the decision differs. The step is tiny, adamw on 10 or 200 leaves of 8 values, so that
the loop is as fast as loops get. Prints the CPU time of all threads for one step, and the difference to no policy.
"""

import argparse
import functools
from typing import Any, Final

import jax
import jax.numpy as jnp
import optax

import optwrap
from benchmarks.timing import Times, take_turns

STEPS: Final = 200
"""Steps in a round."""
POLICIES: Final = {
    "no policy": None,
    "policy, lag 8": optwrap.StopPolicy(not_finite_streak=20, accepted_not_finite=1, skipped=(50, 1000)),
    "policy, lag 0": optwrap.StopPolicy(not_finite_streak=20, accepted_not_finite=1, skipped=(50, 1000), lag=0),
}


def loop(policy: optwrap.StopPolicy | None, leaves: int, times: Times) -> Any:
    """A function that trains for STEPS steps, and measures them."""
    monitor = optwrap.Monitor(endpoint="off", stop=policy)
    guarded = optwrap.apply_if_finite(optax.adamw(1e-3), max_consecutive_errors=5)
    tx = optwrap.instrument(guarded, monitor)
    params = {f"leaf_{i}": jnp.ones(8) for i in range(leaves)}
    grads = jax.tree.map(jnp.ones_like, params)

    @functools.partial(jax.jit, donate_argnums=(1, 2))
    def step(grads: Any, params: Any, state: Any) -> Any:
        params, state = optwrap.apply_gradients(tx, grads, state, params)
        return params, state, optwrap.reading(state)

    carry = [params, tx.init(params)]

    def train() -> None:
        with times.round(STEPS):
            for _ in range(STEPS):
                *carry[:], reading = step(grads, *carry)
                monitor.observe(reading)
                assert monitor.should_stop() is None
            jax.block_until_ready(reading)  # type: ignore[no-untyped-call]  # jax gives it no types

    return train


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    for leaves in (10, 200):
        times = {name: Times() for name in POLICIES}
        forms = {name: loop(policy, leaves, times[name]) for name, policy in POLICIES.items()}
        take_turns(forms, lambda done: done == 2)
        for one in times.values():
            one.clear()
        take_turns(forms, lambda done: done == rounds)
        without = times["no policy"].cpu_ms
        for name, one in times.items():
            more = one.cpu_ms - without
            print(f"{leaves} leaves, {name}: {one.ms:.3f} ms, CPU {one.cpu_ms:.3f} ms, {more * 1e3:+.0f} us of CPU")


if __name__ == "__main__":
    main()
