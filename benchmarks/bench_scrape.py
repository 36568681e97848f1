"""Measures what it costs to read an exporter that has the processes of a pod.

    python -m benchmarks.bench_scrape [--processes N] [--minutes N] [--prometheus-alone] [--quick]

The exporter is a real process, and has one run of that many processes. Five tables:
1. scrapes of /metrics, with the processor seconds of the exporter, and pushgateway with as many groups as the peer;
2. how long a report takes, with and without scrapes every 5 s;
3. what 50 streams of the run cost at 100 reports a second;
4. a real Prometheus with the shipped configuration, for --minutes: whether `up` was ever 0;
5. how long each of its rules, and each query of the dashboards, takes by its own clock.
Prometheus and pushgateway are those on the PATH; without them their tables are left out. It needs nobody to attend; the
exit status is 1 if a scrape of Prometheus failed.
"""

import argparse
import asyncio
import contextlib
import http.client
import json
import os
import shutil
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from benchmarks.servers import Server, exporter, prometheus, pushgateway
from benchmarks.watched import observe, print_panels, print_rules

RUN: Final = "pod"
STEPS: Final = 10
"""Steps in a report."""
RATE: Final = 100.0
"""Reports a second."""
_OUTCOMES: Final = (
    "applied",
    "accumulated",
    "skipped_not_finite",
    "skipped_large",
    "skipped_other",
    "accepted_not_finite",
)
_FORMATS: Final = {
    "text": {"Accept-Encoding": "identity"},
    "text, gzip": {"Accept-Encoding": "gzip"},
    "OpenMetrics, gzip": {"Accept": "application/openmetrics-text;version=1.0.0", "Accept-Encoding": "gzip"},
}


def counters(steps: int, bad: int) -> dict[str, Any]:
    """The wire's totals after `steps` calls, `bad` of them skipped."""
    return {
        "steps": steps,
        "gradient_steps": steps - bad,
        "not_finite_steps": bad,
        "outcomes": dict.fromkeys(_OUTCOMES, 0) | {"applied": steps - bad, "skipped_not_finite": bad},
        "parameters": {"decoder/layer_3/mlp/w": bad} if bad else {},
    }


class Pod:
    """The processes of a run: each report has ten more steps of the next process, now and then with a bad one."""

    def __init__(self, port: int, processes: int) -> None:
        self.port = port
        self.processes = processes
        self._sent = [0] * processes
        self._lock = threading.Lock()
        self._next = 0

    def report(self) -> bytes:
        """The next report."""
        with self._lock:
            process = self._next % self.processes
            self._next += 1
            self._sent[process] += 1
            seq = self._sent[process]
        now = time.time()
        last = seq * STEPS
        bad, worse = seq // 8, seq % 8 == 0  # the same in every process
        body = {
            "run": RUN,
            "process": process,
            "incarnation": f"incarnation-{process}",
            "attempt": "first",
            "seq": seq,
            "oldest_held": seq,
            "interval": 60.0,
            "sent_at": now,
            "state": "running",
            "source": {
                "host": f"node-{process:04}.example.com",
                "platform": "tpu",
                "device_kind": "TPU v5",
                "device_count": 4,
                "process_count": self.processes,
                "jax_version": "0.10.2",
                "optwrap_version": "0.1.0",
            },
            "totals": counters(last, bad),
            "at_start": counters(0, 0),
            "gauges": {
                "not_finite_streak": int(worse),
                "not_finite_streak_peak": int(worse),
                "guard_not_finite_count": int(worse),
                "guard_not_finite_limit": 5,
                "gradient_norm": "NaN" if worse else 0.8123456789,
            },
            "steps": {
                "step": list(range(last - STEPS + 1, last + 1)),
                "time": [now] * STEPS,
                "outcome": ["applied"] * (STEPS - 1) + ["skipped_not_finite" if worse else "applied"],
                "finite": [True] * (STEPS - 1) + [not worse],
                "norm": [0.8123456789] * (STEPS - 1) + ["NaN" if worse else 0.8123456789],
                "mini_step": [None] * STEPS,
            },
            "offenders": [{"step": last, "parameter": "decoder/layer_3/mlp/w", "not_finite": 262_144}] if worse else [],
            "dropped": {"steps": 0, "bad_steps": 0},
        }
        return json.dumps(body, separators=(",", ":")).encode()

    def send(self, connection: http.client.HTTPConnection) -> float:
        """Send the next report; returns how long that took in seconds."""
        body = self.report()
        begun = time.perf_counter()
        while True:
            connection.request("POST", "/v1/reports", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            body = answer.read()
            if answer.status == 200:
                return time.perf_counter() - begun
            if answer.status != 429:
                raise RuntimeError(f"POST /v1/reports answered {answer.status}: {body!r}")
            time.sleep(0.05)

    def fill(self) -> None:
        """Send one report of every process, as fast as possible."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        for _ in range(self.processes):
            self.send(connection)
        connection.close()

    @contextlib.contextmanager
    def reporting(self, rate: float = RATE, clients: int = 8) -> Iterator[list[float]]:
        """Reports arrive at this rate during the block. Yields the list of what each took, in seconds."""
        taken: list[float] = []
        over = threading.Event()

        def client(number: int) -> None:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
            due = time.perf_counter() + number / rate
            while not over.wait(max(0.0, due - time.perf_counter())):
                taken.append(self.send(connection))
                due += clients / rate
            connection.close()

        threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
        for thread in threads:
            thread.start()
        try:
            yield taken
        finally:
            over.set()
            for thread in threads:
                thread.join()


def percentile(values: list[float], share: float) -> float:
    """The value below which this share of the values lies."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def scrapes(name: str, server: Server, formats: dict[str, dict[str, str]], rounds: int) -> None:
    """Print a row for each format."""
    for label, headers in formats.items():
        seconds: list[float] = []
        begun = server.cpu_seconds()
        for _ in range(rounds):
            started = time.perf_counter()
            size = len(server.get("/metrics", headers))
            seconds.append(time.perf_counter() - started)
        cpu = (server.cpu_seconds() - begun) / rounds
        print(
            f"| {name}, {label} | {size / 1e6:.2f} | {cpu:.3f} | {statistics.median(seconds):.2f} "
            f"| {server.megabytes():.0f} ({server.most_megabytes():.0f}) |"
        )


def push(server: Server, groups: int) -> None:
    """Push as many series as the exporter has of a process, for each group."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    for group in range(groups):
        body = "\n".join(f'optwrap_pushed_{number}{{kind="a"}} {number * group}' for number in range(27))
        connection.request("PUT", f"/metrics/job/{RUN}/process/{group}", body + "\n")
        answer = connection.getresponse()
        received = answer.read()
        if answer.status not in {200, 202}:
            raise RuntimeError(f"pushgateway answered {answer.status}: {received!r}")
    connection.close()


def scraped(pod: Pod, server: Server, seconds: float) -> None:
    """Print how long a report takes, without and with scrapes."""
    print(f"\n{RATE:g} reports a second\n\n| | p50 ms | p99 ms | worst ms | exporter, cores |\n|---|---|---|---|---|")
    for label, every in (("no scrapes", 0.0), ("a scrape every 5 s", 5.0)):
        with pod.reporting() as taken:
            time.sleep(2)
            taken.clear()
            cpu, begun = server.cpu_seconds(), time.perf_counter()
            while (left := begun + seconds - time.perf_counter()) > 0:
                if every:
                    server.get("/metrics", _FORMATS["OpenMetrics, gzip"])
                time.sleep(min(every or left, left))
            cores = (server.cpu_seconds() - cpu) / (time.perf_counter() - begun)
            found = [1000 * one for one in taken]
        print(
            f"| {label} | {statistics.median(found):.1f} | {percentile(found, 0.99):.1f} | {max(found):.1f} "
            f"| {cores:.2f} |"
        )


async def watch(port: int, count: int, seconds: float) -> int:
    """Read that many streams of the run; returns how many bytes came."""
    received = 0

    async def one() -> None:
        nonlocal received
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET /v1/stream?run={RUN} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while data := await reader.read(1 << 16):
                    received += len(data)
        writer.close()

    await asyncio.gather(*(one() for _ in range(count)))
    return received


def watchers(pod: Pod, server: Server, count: int, seconds: float) -> None:
    """Print what streams cost."""
    print(f"\n{RATE:g} reports a second\n\n| streams | exporter, cores | MB a second | memory, MB |\n|---|---|---|---|")
    with pod.reporting():
        for streams in (0, count):
            received = 0

            def read(streams: int = streams) -> None:
                nonlocal received
                received = asyncio.run(watch(server.port, streams, seconds + 8))

            reader = threading.Thread(target=read)
            reader.start()
            time.sleep(6)  # the first message of each stream has every process
            cpu, begun = server.cpu_seconds(), time.perf_counter()
            time.sleep(seconds)
            cores = (server.cpu_seconds() - cpu) / (time.perf_counter() - begun)
            memory = server.megabytes()
            reader.join()
            print(f"| {streams} | {cores:.2f} | {received / 1e6 / (seconds + 8):.2f} | {memory:.0f} |")


def followed(pod: Pod, server: Server, program: str, minutes: float) -> bool:
    """Print what a real Prometheus saw, and how long its rules and the dashboards' queries took.

    Returns:
      Whether every scrape succeeded.
    """
    print(f"\nPrometheus with the shipped configuration, {minutes:g} minutes, {RATE:g} reports a second\n")
    with prometheus(program, server.port) as watching, pod.reporting():
        begun, cpu = time.time(), server.cpu_seconds()
        seen, rules = observe(watching, minutes)
        cores = (server.cpu_seconds() - cpu) / (time.time() - begun)
        print("| | |\n|---|---|")
        print(f"| scrapes | {seen.scrapes} |")
        print(f"| after which `up` was 0 | {seen.failed} |")
        print(f"| longest scrape, s | {seen.longest:.2f} |")
        print(f"| series of a scrape | {seen.series:,} |")
        print(f"| exporter, cores | {cores:.2f} |")
        print(f"| exporter's memory, MB, now (most) | {server.megabytes():.0f} ({server.most_megabytes():.0f}) |")
        print(f"| Prometheus' memory, MB | {watching.megabytes():.0f} |")
        print_rules(rules)
        print_panels(watching, RUN)
    return seen.scrapes > 0 and not seen.failed


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=4096)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long Prometheus watches")
    parser.add_argument("--seconds", type=float, default=30.0, help="how long each other measurement takes")
    parser.add_argument("--prometheus-alone", action="store_true", help="only the tables of Prometheus")
    parser.add_argument("--quick", action="store_true", help="64 processes, a few seconds: shows that it works")
    given = parser.parse_args()
    if given.quick:
        given.processes, given.minutes, given.seconds = 64, 0.5, 3.0
    rounds = 1 if given.quick else 10
    programs: dict[str, Callable[[], str | None]] = {
        "prometheus": lambda: shutil.which("prometheus"),
        "pushgateway": lambda: shutil.which("pushgateway") or shutil.which("prometheus-pushgateway"),
    }
    sound = True
    with exporter() as server:
        pod = Pod(server.port, given.processes)
        begun = time.perf_counter()
        pod.fill()
        pod.fill()
        rate = 2 * given.processes / (time.perf_counter() - begun)
        print(
            f"{given.processes:,} processes; {rate:.0f} reports a second over one connection; {os.cpu_count()} CPU "
            f"cores, load {os.getloadavg()[0]:.1f}"
        )
        if not given.prometheus_alone:
            print(f"GET /v1/runs/{RUN}: {len(server.get(f'/v1/runs/{RUN}')) / 1e6:.2f} MB")
            print("\n| scrape | MB | CPU s | s, median | memory, MB, now (most) |\n|---|---|---|---|---|")
            scrapes("exporter", server, _FORMATS, rounds)
            if peer := programs["pushgateway"]():
                with pushgateway(peer) as other:
                    push(other, given.processes)
                    scrapes("pushgateway", other, {name: _FORMATS[name] for name in ("text", "text, gzip")}, rounds)
            scraped(pod, server, given.seconds)
            watchers(pod, server, 50, given.seconds)
        if program := programs["prometheus"]():
            sound = followed(pod, server, program, given.minutes)
        print(f"\nload at the end {os.getloadavg()[0]:.1f}")
    sys.exit(0 if sound else "Prometheus could not scrape the exporter all the time")


if __name__ == "__main__":
    main()
