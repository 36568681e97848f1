"""What the benchmarks of the exporter share: a pinned exporter, reports in a Monitor's form, and cheap clients.

A client is a connection that is kept open. All clients of a benchmark are in one process, without an HTTP library, so
that they cost little beside the exporter.
"""

import collections
import contextlib
import dataclasses
import http.client
import json
import os
import re
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

_OUTCOMES: Final = (
    "applied",
    "accumulated",
    "skipped_not_finite",
    "skipped_large",
    "skipped_other",
    "accepted_not_finite",
)
_SKIPPED: Final = "skipped_not_finite"
_TICKS: Final = os.sysconf("SC_CLK_TCK")


def counters(steps: int, bad: int) -> dict[str, Any]:
    """The wire's totals after `steps` calls, `bad` of them skipped."""
    return {
        "steps": steps,
        "gradient_steps": steps - bad,
        "not_finite_steps": bad,
        "outcomes": dict.fromkeys(_OUTCOMES, 0) | {"applied": steps - bad, _SKIPPED: bad},
        "parameters": {"decoder/layer_3/mlp/w": bad} if bad else {},
    }


def body(
    run: str,
    seq: int,
    steps: int,
    *,
    process: int = 0,
    processes: int = 1,
    bad: bool = False,
    interval: float = 1.0,
    taken: int | None = None,
) -> bytes:
    """Report `seq` of a process, in the form in which a Monitor sends it.

    Args:
      run: the run.
      seq: its number, from 1.
      steps: step records in it.
      process: the index of the process.
      processes: the number of processes of the run.
      bad: whether the last step is bad, in this report and in all before it.
      interval: seconds between two reports, as the Monitor is set.
      taken: steps in the reports before it; None if they had as many as this one.
    """
    taken = (seq - 1) * steps if taken is None else taken
    first, now, good = taken + 1, time.time(), steps - bad
    report = {
        "run": run,
        "process": process,
        "incarnation": f"{run}-{process}",
        "attempt": "bench",
        "seq": seq,
        "oldest_held": seq,
        "interval": interval,
        "sent_at": now,
        "state": "running" if taken + steps else "starting",
        "source": {
            "host": f"host-{process}",
            "platform": "gpu",
            "device_kind": "NVIDIA H100 80GB HBM3",
            "device_count": 8,
            "process_count": processes,
            "jax_version": "0.10.2",
            "optwrap_version": "0.1.0",
        },
        "totals": counters(taken + steps, seq * bad),
        "at_start": counters(0, 0),
        "gauges": {
            "not_finite_streak": int(bad),
            "not_finite_streak_peak": int(bad),
            "gradient_norm": "NaN" if bad else 0.8125,
        },
        "steps": {
            "step": list(range(first, first + steps)),
            "time": [now] * steps,
            "outcome": ["applied"] * good + [_SKIPPED] * bad,
            "finite": [True] * good + [False] * bad,
            "norm": [0.8125 + 0.001 * (step % 50) for step in range(good)] + ["NaN"] * bad,
            "mini_step": [None] * steps,
        },
        "offenders": [{"step": first + steps - 1, "parameter": "decoder/layer_3/mlp/w", "not_finite": 262_144}] * bad,
        "dropped": {"steps": 0, "bad_steps": 0},
    }
    return json.dumps(report, separators=(",", ":")).encode()


def request(content: bytes, path: str = "/v1/reports", method: str = "POST") -> bytes:
    """An HTTP request with the headers that a Monitor sends."""
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept-Encoding: identity\r\n"
        f"Content-Length: {len(content)}\r\nContent-Type: application/json\r\nAccept: application/json\r\n\r\n"
    )
    return head.encode() + content


@dataclasses.dataclass
class Sent:
    """What became of some requests."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    """CPU seconds of the server, user and system."""
    statuses: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)
    latencies: list[float] = dataclasses.field(default_factory=list)
    """Seconds from when an accepted request was due to its answer."""

    @property
    def accepted(self) -> int:
        """Answers of 200 and 202."""
        return self.statuses[200] + self.statuses[202]

    def percentile(self, percent: int) -> float:
        """A percentile of the latencies in ms."""
        return 1e3 * statistics.quantiles(self.latencies, n=100, method="inclusive")[percent - 1]


class _Client:
    """One connection, with at most one request under way."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.received = b""
        self.due = 0.0

    def send(self, content: bytes, due: float) -> None:
        self.due = due
        sent = 0
        while sent < len(content):
            try:
                sent += self.socket.send(content[sent:])
            except BlockingIOError:
                time.sleep(0.0005)

    def receive(self) -> int | None:
        """The status, once the answer is whole."""
        part = self.socket.recv(65_536)
        if not part:
            raise ConnectionError("the server closed the connection")
        self.received += part
        head, end, rest = self.received.partition(b"\r\n\r\n")
        found = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        if not end or len(rest) < (int(found[1]) if found else 0):
            return None
        self.received = b""
        return int(head[9:12])


def drive(server: "Server", requests: Sequence[Sequence[bytes]], *, rate: float | None = None) -> Sent:
    """Send requests, those of each client in order, one at a time.

    Args:
      server: where to.
      requests: by client, its requests.
      rate: requests per second in all; None sends the next one of a client as soon as the last one is answered. If all
        clients wait for an answer, what is due waits, too, and its latency counts from when it was due.
    """
    sent = Sent()
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
        clients = [_Client(server.port) for _ in requests]
        idle: collections.deque[int] = collections.deque()
        for number, client in enumerate(clients):
            stack.callback(client.socket.close)
            selector.register(client.socket, selectors.EVENT_READ, number)
            idle.append(number)
        following = [0] * len(requests)
        left = total = sum(map(len, requests))
        time.sleep(0.2)  # until the server has taken all connections, which is not measured
        cpu_began, began = server.cpu_seconds(), time.perf_counter()
        started = 0
        while left:
            now = time.perf_counter()
            while idle and (rate is None or began + started / rate <= now):
                number = idle.popleft()
                if following[number] == len(requests[number]):
                    continue
                due = now if rate is None else began + started / rate
                clients[number].send(requests[number][following[number]], due)
                following[number] += 1
                started += 1
            wait = None
            if rate is not None and idle and started < total:
                wait = max(0.0, began + started / rate - time.perf_counter())
            for key, _ in selector.select(wait):
                client = clients[key.data]
                status = client.receive()
                if status is None:
                    continue
                left -= 1
                sent.statuses[status] += 1
                if status in {200, 202}:
                    sent.latencies.append(time.perf_counter() - client.due)
                idle.append(key.data)
        sent.seconds = time.perf_counter() - began
        sent.cpu_seconds = server.cpu_seconds() - cpu_began
    return sent


@dataclasses.dataclass(frozen=True)
class Server:
    """A server in a process of its own."""

    port: int
    pid: int
    directory: str = ""
    """An exporter's data directory."""

    def cpu_seconds(self) -> float:
        """CPU seconds of the process so far, user and system."""
        with open(f"/proc/{self.pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def memory_mib(self) -> float:
        """The most memory that the process has had, in MiB."""
        with open(f"/proc/{self.pid}/status") as file:
            return int(re.findall(r"VmHWM:\s+(\d+)", file.read())[0]) / 1024

    def get(self, path: str) -> bytes:
        """The body of the answer to GET `path`."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("GET", path)
            return connection.getresponse().read()
        finally:
            connection.close()


@contextlib.contextmanager
def exporter(*, pinned: bool) -> Iterator[Server]:
    """An exporter with its store in a temporary directory; `pinned` keeps it on the first CPU core."""
    with tempfile.TemporaryDirectory() as directory:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("OPTWRAP_")}
        command = [
            sys.executable,
            "-m",
            "optwrap_exporter",
            "--listen",
            "127.0.0.1:0",
            "--data-dir",
            f"{directory}/data",
            "--new-runs-per-minute",  # each client is a run of its own
            "1000000",
        ]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        assert process.stderr is not None
        try:
            line = process.stderr.readline()
            found = re.search(r"listening on http://127\.0\.0\.1:(\d+)", line)
            if found is None:
                sys.exit(f"the exporter did not start: {line}{process.stderr.read()}")
            if pinned:
                pin(process.pid, 0)
            yield Server(int(found[1]), process.pid, f"{directory}/data")
        finally:
            process.terminate()
            process.wait(30)


def pin(pid: int, core: int) -> None:
    """Keep all threads of a process (0: this one) on one CPU core, if there are several."""
    cores = os.cpu_count() or 1
    for thread in os.listdir(f"/proc/{pid or os.getpid()}/task"):
        os.sched_setaffinity(int(thread), {core % cores})
