"""Measures the time from the end of a bad step on the device to its event in the exporter's answer.

    python benchmarks/bench_latency.py [--steps N]

A real Monitor observes a training with a step every --pace milliseconds, and reports to an exporter process with its
store on disk. A client polls `GET /v1/runs/{run}/events` as fast as it is answered. At random moments a step has a NaN
gradient; the time is measured from when that step's reading is ready on the device until an answer has its event.
Prints the median, the 90th percentile and the maximum.
"""

import argparse
import random
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import jax
import jax.numpy as jnp
import optax

import optwrap
from examples.demo.exporter import Exporter


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100, metavar="N", help="bad steps to wait for")
    parser.add_argument("--pace", type=float, default=20.0, metavar="MS", help="milliseconds a step")
    options = parser.parse_args()

    with (
        tempfile.TemporaryDirectory() as directory,
        Exporter("127.0.0.1:0", Path(directory)) as exporter,
        optwrap.Monitor(run="latency", endpoint=exporter.endpoint) as monitor,
        httpx.Client(base_url=exporter.endpoint) as client,
    ):
        seconds = sorted(delays(monitor, client, options.steps, options.pace / 1e3))
    print(
        f"from a bad step's end to its event, {options.steps} times: median {statistics.median(seconds):.3f} s, "
        f"90th percentile {seconds[int(0.9 * len(seconds))]:.3f} s, maximum {seconds[-1]:.3f} s\n"
        f"jax {version('jax')}, {jax.devices()[0].platform}, a step every {options.pace:g} ms, reports every second"
    )


def delays(monitor: Any, client: httpx.Client, times: int, pace: float) -> list[float]:
    """Seconds from the end of each bad step to its event."""
    tx = optwrap.instrument(optwrap.apply_if_finite(optax.adamw(1e-3), 5), monitor)
    params = {"w": jnp.ones((64, 64))}
    state = tx.init(params)

    @jax.jit
    def step(params: Any, state: Any, grads: Any) -> Any:
        params, state = optwrap.apply_gradients(tx, grads, state, params)
        return params, state, optwrap.reading(state)

    bad = {"w": params["w"].at[3, 5].set(jnp.nan)}
    number, seconds = 0, []
    for event in range(times):
        for _ in range(random.randrange(10, 100)):
            number += 1
            params, state, reading = step(params, state, params)
            monitor.observe(reading)
            time.sleep(pace)
        number += 1
        params, state, reading = step(params, state, bad)
        monitor.observe(reading)
        reading.block_until_ready()
        ended = time.perf_counter()
        while True:
            answer = client.get("/v1/runs/latency/events", params={"kind": "skipped", "limit": 1})
            if answer.status_code == 200 and any(item["step"] == number for item in answer.json()["items"]):
                break
            if time.perf_counter() - ended > 60:
                sys.exit(f"step {number} has no event after a minute: {answer.text}")
        seconds.append(time.perf_counter() - ended)
        print(f"\r{event + 1} of {times}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return seconds


if __name__ == "__main__":
    main()
