"""Measures how many reports per second one exporter stores, and how many requests per second its HTTP server answers.

The exporter is a real process with its store on disk, over loopback. Each client is a process with one open connection,
and sends a report when the last one is acknowledged, as a Monitor does. Every report has STEPS step records, one of
them bad. At the end the exporter's totals must be equal to those that were sent.
"""

import argparse
import contextlib
import http.client
import json
import multiprocessing
import multiprocessing.synchronize
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any, Final

STEPS: Final = 10
_BAD: Final = "skipped_not_finite"
_OUTCOMES: Final = ("applied", "accumulated", _BAD, "skipped_large", "skipped_other", "accepted_not_finite")


def counters(steps: int, bad: int) -> dict[str, Any]:
    """The wire's totals after `steps` calls, `bad` of them skipped."""
    outcomes = dict.fromkeys(_OUTCOMES, 0) | {"applied": steps - bad, _BAD: bad}
    return {
        "steps": steps,
        "gradient_steps": steps - bad,
        "not_finite_steps": bad,
        "outcomes": outcomes,
        "parameters": {"decoder/layer_3/mlp/w": bad} if bad else {},
    }


def report(client: int, seq: int) -> bytes:
    """Report `seq` of process `client`: STEPS steps, the last of them bad."""
    first = (seq - 1) * STEPS + 1
    steps = list(range(first, first + STEPS))
    good = STEPS - 1
    now = time.time()
    body = {
        "run": f"bench-{client}",
        "process": 0,
        "incarnation": f"incarnation-{client}",
        "attempt": "bench",
        "seq": seq,
        "oldest_held": seq,
        "interval": 1.0,
        "sent_at": now,
        "state": "running",
        "source": {
            "host": "bench",
            "platform": "cpu",
            "device_kind": "cpu",
            "device_count": 1,
            "process_count": 1,
            "jax_version": "0.10.2",
            "optwrap_version": "0.1.0",
        },
        "totals": counters(seq * STEPS, seq),
        "at_start": counters(0, 0),
        "gauges": {"not_finite_streak": 1, "not_finite_streak_peak": 1, "gradient_norm": "NaN"},
        "steps": {
            "step": steps,
            "time": [now] * STEPS,
            "outcome": ["applied"] * good + [_BAD],
            "finite": [True] * good + [False],
            "norm": [0.81] * good + ["NaN"],
            "mini_step": [None] * STEPS,
        },
        "offenders": [{"step": steps[-1], "parameter": "decoder/layer_3/mlp/w", "not_finite": 262_144}],
        "dropped": {"steps": 0, "bad_steps": 0},
    }
    return json.dumps(body).encode()


def post(connection: http.client.HTTPConnection, body: bytes) -> None:
    """Send a report until it is stored, and wait whenever the exporter answers with Retry-After."""
    while True:
        connection.request("POST", "/v1/reports", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        said = answer.read()
        if answer.status == 200:
            return
        if answer.status != 429:
            raise RuntimeError(f"POST /v1/reports answered {answer.status}: {said!r}")
        time.sleep(0.01)


def send(port: int, client: int, count: int, ready: multiprocessing.synchronize.Barrier) -> None:
    """One client: makes `count` reports, then sends them one after the other."""
    bodies = [report(client, seq) for seq in range(1, count + 1)]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.connect()
    ready.wait()
    for body in bodies:
        post(connection, body)
    connection.close()


@contextlib.contextmanager
def exporter() -> Iterator[int]:
    """Runs an exporter with its store in a temporary directory; yields its port."""
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
        ]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        assert process.stderr is not None
        try:
            line = process.stderr.readline()
            found = re.search(r"listening on http://127\.0\.0\.1:(\d+)", line)
            if found is None:
                sys.exit(f"the exporter did not start: {line}{process.stderr.read()}")
            yield int(found[1])
        finally:
            process.terminate()
            process.wait(30)


def answers_per_second(port: int, path: str, count: int) -> float:
    """Answers per second to GET `path` over one connection: the cost of HTTP alone."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    begun = time.perf_counter()
    for _ in range(count):
        connection.request("GET", path)
        connection.getresponse().read()
    return count / (time.perf_counter() - begun)


def reports_per_second(port: int, first: int, clients: int, count: int) -> float:
    """Reports stored per second, `count` from each of `clients` at once; checks that all of them arrived."""
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(clients + 1)
    numbers = range(first, first + clients)
    processes = [context.Process(target=send, args=(port, number, count, ready)) for number in numbers]
    for process in processes:
        process.start()
    ready.wait()
    begun = time.perf_counter()
    for process in processes:
        process.join()
    seconds = time.perf_counter() - begun
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    for number in numbers:
        connection.request("GET", f"/v1/runs/bench-{number}")
        totals = json.loads(connection.getresponse().read())["totals"]
        if (totals["steps"], totals["skipped"]["not_finite"]) != (count * STEPS, count):
            sys.exit(f"bench-{number}: sent {count * STEPS} steps, {count} of them bad, but the exporter has {totals}")
    return clients * count / seconds


def main() -> None:
    """Measure, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the reports: shows that it works")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2, 4, 8], help="how many report at once")
    arguments = parser.parse_args()
    total = 400 if arguments.quick else 4000
    with exporter() as port:
        answers_per_second(port, "/-/healthy", total // 10)
        floor = answers_per_second(port, "/-/healthy", total // 2)
        size = len(report(0, 1))
        print(f"report of {STEPS} step records, {size} bytes; {os.cpu_count()} CPU cores, clients included")
        print(f"{'':24}{'per second':>12}{'of HTTP alone':>15}")
        print(f"{'GET /-/healthy':24}{floor:12.0f}{1:15.2f}")
        first = 0
        for clients in arguments.clients:
            rate = reports_per_second(port, first, clients, max(total // clients, 1))
            first += clients
            label = f"{clients} client{'s' if clients > 1 else ''}, reports"
            print(f"{label:24}{rate:12.0f}{rate / floor:15.2f}")


if __name__ == "__main__":
    main()
