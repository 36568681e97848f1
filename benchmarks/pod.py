"""Reports to an exporter as a pod of many processes does: imitated Monitors in one process, or real ones in a few.

An imitated Monitor is a connection that sends a report of a Monitor's form every interval, follows the interval that
the answers ask for, with jitter, keeps a refused report, and sends it again after Retry-After. All of them begin within
a few seconds. The exporter is a process of its own, pinned to the first CPU core.

    python -m benchmarks.pod --processes 4096 --seconds 120
    python -m benchmarks.pod --real --processes 200 --hosts 4 --seconds 60
"""

import argparse
import asyncio
import collections
import contextlib
import dataclasses
import json
import multiprocessing
import random
import re
import statistics
import time
from collections.abc import Iterator
from typing import Any, Final

from benchmarks.traffic import Server, body, exporter, pin, request

STEP_SECONDS: Final = 0.5
"""Seconds that a step of the imitated training takes."""


@dataclasses.dataclass
class Figures:
    """What the imitated Monitors saw."""

    began: float = dataclasses.field(default_factory=time.monotonic)
    accepted: list[tuple[float, float]] = dataclasses.field(default_factory=list)
    """Of each accepted report, when it was answered, in seconds from the beginning, and its latency in seconds."""
    refused: list[float] = dataclasses.field(default_factory=list)
    """When each 429 came."""
    lost: int = 0
    """Connections that broke."""
    intervals: dict[int, float] = dataclasses.field(default_factory=dict)
    """By process, the interval that it was asked for last."""
    others: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)
    """Answers of any other status."""

    def now(self) -> float:
        """Seconds from the beginning."""
        return time.monotonic() - self.began

    def line(self, since: float, until: float) -> str:
        """The figures of some seconds."""
        latencies = [1e3 * latency for at, latency in self.accepted if since <= at < until]
        refused = sum(since <= at < until for at in self.refused)
        asked = statistics.median(self.intervals.values()) if self.intervals else 0.0
        p50, p99 = (statistics.quantiles(latencies, n=100)[n] for n in (49, 98)) if len(latencies) > 1 else (0.0, 0.0)
        return (
            f"{since:5.0f} to {until:4.0f} s: {len(latencies) / (until - since):7,.0f} reports/s, {refused:6,} refused"
            f", interval {asked:5.2f} s, p50 {p50:6.1f} ms, p99 {p99:6.1f} ms, {self.lost} connections lost"
        )


class Imitated(asyncio.Protocol):
    """One Monitor, over one connection."""

    def __init__(self, figures: Figures, run: str, process: int, processes: int, interval: float) -> None:
        self._figures = figures
        self._run, self._process, self._processes = run, process, processes
        self._own = self._interval = interval
        self._seq = 0
        self._held: bytes | None = None
        self._received = b""
        self._sent = 0.0
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.closing = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the hello."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        """Count the loss."""
        del exc
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()
        self._figures.lost += not self.closing

    def data_received(self, data: bytes) -> None:
        """Take the answer, and plan the next report."""
        self._received += data
        head, end, rest = self._received.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        if not end or length is None or len(rest) < int(length[1]):
            return
        self._received = b""
        status = int(head[9:12])
        figures = self._figures
        if status == 200:
            self._held = None
            figures.accepted.append((figures.now(), figures.now() - self._sent))
            answer: dict[str, Any] = json.loads(rest)
            self._interval = max(answer.get("interval", self._own), self._own)
            figures.intervals[self._process] = self._interval
            wait = self._interval
            if self._interval > self._own:
                wait *= random.uniform(0.75, 1.25)
        elif status == 429:
            figures.refused.append(figures.now())
            after = re.search(rb"(?i)\r\nretry-after: *(\d+)", head)
            wait = float(after[1] if after else 1) + random.random()
        else:
            figures.others[status] += 1
            wait = 1.0
        self._timer = asyncio.get_running_loop().call_later(max(0.0, self._sent + wait - figures.now()), self._send)

    def close(self) -> None:
        """Hang up."""
        self.closing = True
        if self._transport is not None:
            self._transport.close()

    def _send(self) -> None:
        if self._held is None:
            steps = 0 if self._seq == 0 else max(1, round(self._interval / STEP_SECONDS))
            self._seq += 1
            content = body(
                self._run,
                self._seq,
                steps,
                process=self._process,
                processes=self._processes,
                interval=self._own,
                taken=self._taken,
            )
            self._taken += steps
            self._held = request(content)
        self._sent = self._figures.now()
        if self._transport is not None:
            self._transport.write(self._held)

    _taken = 0
    """Steps in all reports so far."""


async def imitate(
    port: int,
    processes: int,
    seconds: float,
    *,
    run: str = "pod",
    interval: float = 1.0,
    start_seconds: float = 5.0,
    print_every: float | None = None,
) -> Figures:
    """Let imitated Monitors report.

    Args:
      port: of the exporter on 127.0.0.1.
      processes: how many Monitors.
      seconds: for how long.
      run: the name of their run.
      interval: the interval that they are set to.
      start_seconds: within how many seconds all of them begin.
      print_every: seconds from one line of figures to the next; None prints nothing.
    """
    loop, figures = asyncio.get_running_loop(), Figures()
    monitors = [Imitated(figures, run, process, processes, interval) for process in range(processes)]

    async def begin(monitor: Imitated) -> None:
        await asyncio.sleep(random.uniform(0, start_seconds))
        await loop.create_connection(lambda: monitor, "127.0.0.1", port)

    async with asyncio.TaskGroup() as group:
        for monitor in monitors:
            group.create_task(begin(monitor))
        printed = 0.0
        while figures.now() < seconds:
            await asyncio.sleep(min(print_every or seconds, seconds - figures.now() + 0.01))
            if print_every is not None:
                print(figures.line(printed, figures.now()), flush=True)
                printed = figures.now()
    for monitor in monitors:
        monitor.close()
    await asyncio.sleep(0)
    return figures


def healths(server: Server, run: str = "pod") -> collections.Counter[str]:
    """The number of processes of a run by health, as the exporter shows them."""
    detail = json.loads(server.get(f"/v1/runs/{run}"))
    return collections.Counter(process["health"] for process in detail["processes"])


def stale_events(server: Server, run: str = "pod") -> int:
    """How often a process of the run turned stale, as far as one page of events shows it."""
    return len(json.loads(server.get(f"/v1/runs/{run}/events?kind=stale&limit=1000"))["items"])


def real_monitors(port: int, first: int, count: int, seconds: float, run: str) -> None:
    """The work of one host: `count` real Monitors that observe the same small training."""
    import jax  # noqa: PLC0415  # only where real Monitors run
    import jax.numpy as jnp  # noqa: PLC0415
    import optax  # noqa: PLC0415

    import optwrap  # noqa: PLC0415

    with contextlib.ExitStack() as stack:
        monitors = [
            stack.enter_context(optwrap.Monitor(run=run, endpoint=f"http://127.0.0.1:{port}", process=first + number))
            for number in range(count)
        ]
        tx = optwrap.instrument(optax.sgd(0.1))
        params = {"w": jnp.ones(4)}
        state = tx.init(params)
        update = jax.jit(tx.update)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            _, state = update(params, state, params)
            reading = optwrap.reading(state)
            for monitor in monitors:
                monitor.observe(reading)
            time.sleep(STEP_SECONDS)


@contextlib.contextmanager
def hosts(port: int, processes: int, number: int, seconds: float, *, run: str = "pod") -> Iterator[None]:
    """Runs `processes` real Monitors in `number` operating system processes; the block ends when they have ended."""
    context = multiprocessing.get_context("spawn")
    share = -(-processes // number)
    started = [
        context.Process(target=real_monitors, args=(port, first, min(share, processes - first), seconds, run))
        for first in range(0, processes, share)
    ]
    for process in started:
        process.start()
    try:
        yield
    finally:
        for process in started:
            process.join(seconds + 120)
            if process.is_alive():
                process.terminate()


def main() -> None:
    """Report, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=4096, help="how many Monitors (default 4096)")
    parser.add_argument("--seconds", type=float, default=120.0, help="for how long (default 120)")
    parser.add_argument("--interval", type=float, default=1.0, help="the interval the Monitors are set to (default 1)")
    parser.add_argument("--start-seconds", type=float, default=5.0, help="within how many seconds they begin")
    parser.add_argument("--real", action="store_true", help="real Monitors")
    parser.add_argument("--hosts", type=int, default=4, help="real Monitors are spread over so many processes")
    arguments = parser.parse_args()
    with exporter(pinned=True) as server:
        began, cpu = time.monotonic(), server.cpu_seconds()
        if arguments.real:
            with hosts(server.port, arguments.processes, arguments.hosts, arguments.seconds):
                pass
        else:
            pin(0, 1)
            figures = asyncio.run(
                imitate(
                    server.port,
                    arguments.processes,
                    arguments.seconds,
                    interval=arguments.interval,
                    start_seconds=arguments.start_seconds,
                    print_every=10.0,
                )
            )
            half = arguments.seconds / 2
            print(f"second half: {figures.line(half, arguments.seconds)}; other answers: {dict(figures.others)}")
        used = (server.cpu_seconds() - cpu) / (time.monotonic() - began)
        outcomes = re.findall(r'reports_total\{outcome="(\w+)"\} (\S+)', server.get("/metrics").decode())
        print(f"exporter: {used:.2f} of a core, at most {server.memory_mib():.0f} MiB; health {dict(healths(server))}")
        print("reports:", {name: round(float(count)) for name, count in outcomes if float(count)})
        print(f"processes that turned stale on the way: {stale_events(server)}")


if __name__ == "__main__":
    main()
