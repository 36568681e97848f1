"""Measures how many reports one exporter stores on one CPU core, and what a report, or its refusal, costs it.

The exporter is a real process with its store on disk, over loopback, pinned to the first core. The clients are
connections of one process, pinned to the second core. At the end of each row the exporter's totals must be equal to
those of the reports that it acknowledged. The peer is a Prometheus pushgateway that is given as many series, if it is
installed. It keeps them in memory.

The CPU time is the exporter's, user and system, divided by the reports that it acknowledged. On a busy machine it is
the figure to trust.
"""

import argparse
import collections
import contextlib
import json
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Final

from benchmarks.traffic import Sent, Server, body, drive, exporter, pin, request

LAST_BAD: Final = ", the last one bad"


def reports(name: str, clients: int, each: int, steps: int, *, bad: bool = False) -> list[list[bytes]]:
    """By client, `each` requests with `steps` step records; with `bad`, the last one of each is bad."""
    return [
        [request(body(f"{name}-{client}", seq, steps, bad=bad)) for seq in range(1, each + 1)]
        for client in range(clients)
    ]


def check(server: Server, name: str, clients: int, steps: int, sent: Sent) -> None:
    """Exit if the exporter has not counted the acknowledged reports, each once. Only the largest totals count."""
    records = 0
    for client in range(clients):
        answer = json.loads(server.get(f"/v1/runs/{name}-{client}/steps?points=2"))
        records += answer.get("total", 0)
    if records != sent.accepted * steps:
        sys.exit(
            f"{name}: {sent.accepted} reports of {steps} were acknowledged, but the exporter has {records} records"
        )


def row(title: str, sent: Sent, *, records: int = 0) -> None:
    """Print one row."""
    each = sent.cpu_seconds / max(sent.accepted, 1)
    cells = f"{title:56}{sent.accepted / sent.seconds:12,.0f}{1e3 * each:14.3f}"
    cells += f"{sent.percentile(50):10.1f}{sent.percentile(99):10.1f}" if sent.latencies else ""
    cells += f"   {records * sent.accepted / sent.seconds:,.0f} records/s" if records else ""
    refused = sum(count for status, count in sent.statuses.items() if status not in {200, 202})
    cells += f"   {refused:,} refused" if refused else ""
    print(cells, flush=True)


def measure_exporter(total: int) -> None:
    """The rows of the exporter."""
    clients = 128
    with exporter(pinned=True) as server:
        drive(server, reports("warm-up", clients, max(total // clients // 4, 1), 10, bad=True))
        capacity = 0.0
        for steps in (10, 100):
            for bad in (False, True):
                name, each = f"{steps}-{bad}", max(total // clients // (1 if steps == 10 else 4), 1)
                sent = drive(server, reports(name, clients, each, steps, bad=bad))
                check(server, name, clients, steps, sent)
                row(f"{steps} step records{LAST_BAD if bad else ''}", sent, records=steps)
                capacity = capacity or sent.accepted / sent.seconds
        for bad in (False, True):
            name = f"paced-{bad}"
            sent = drive(server, reports(name, clients, total // clients, 10, bad=bad), rate=750)
            check(server, name, clients, 10, sent)
            row(f"10 step records{LAST_BAD if bad else ''}, 750 reports/s offered", sent)
        clients = 1024
        sent = drive(server, reports("flood", clients, max(3 * total // clients, 1), 10), rate=3 * capacity)
        check(server, "flood", clients, 10, sent)
        row(f"10 step records, {3 * capacity:,.0f} reports/s offered", sent)
        print(f"    goodput {sent.accepted / sent.seconds / capacity:.0%} of the first row")
        with stalled(server):
            sent = drive(server, reports("refused", 64, max(total // 64, 1), 10))
        refused = sent.statuses[429]
        print(f"{'one refusal (429)':56}{refused / sent.seconds:12,.0f}{1e3 * sent.cpu_seconds / refused:14.3f}")
        print(f"at most {server.memory_mib():.0f} MiB of memory")


@contextlib.contextmanager
def stalled(server: Server) -> Iterator[None]:
    """For 3 s the exporter cannot write, and as many reports wait as may: it refuses all others.

    After that its store counts as ill, and it would answer 503.
    """
    clients = 300
    with contextlib.closing(sqlite3.connect(f"{server.directory}/optwrap.sqlite3", isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        waiting = threading.Thread(target=drive, args=(server, reports("waiting", clients, 1, 10)))
        waiting.start()
        time.sleep(0.7)
        yield
        db.execute("ROLLBACK")
    waiting.join()


@contextlib.contextmanager
def pushgateway(*arguments: str) -> Iterator[Server]:
    """A pushgateway on the first core."""
    port = 19091
    command = ["prometheus-pushgateway", f"--web.listen-address=127.0.0.1:{port}", "--log.level=error", *arguments]
    process = subprocess.Popen(command)
    try:
        server = Server(port, process.pid)
        for _ in range(100):
            with contextlib.suppress(OSError):
                server.get("/-/ready")
                break
            time.sleep(0.1)
        pin(process.pid, 0)
        yield server
    finally:
        process.terminate()
        process.wait(30)


def series(count: int) -> bytes:
    """Some series in Prometheus' text format."""
    return "".join(f'optwrap_bench_{n}{{run="bench"}} {n}.5\n' for n in range(count)).encode()


def measure_pushgateway(total: int) -> None:
    """The rows of the peer: as many series as the exporter makes of a process, in 1,000 groups."""
    content = series(36)
    for title, arguments, pushes in (
        ("pushgateway, 36 series", (), max(total // 500, 30)),
        ("pushgateway, without its consistency check", ("--push.disable-consistency-check",), total),
    ):
        with pushgateway(*arguments) as server:
            clients = 100
            requests: dict[int, list[bytes]] = collections.defaultdict(list)
            for number in range(pushes):
                path = f"/metrics/job/bench/instance/{number % 1000}"
                requests[number % clients].append(request(content, path, "PUT"))
            sent = drive(server, [*requests.values()])
            row(title, sent)


def main() -> None:
    """Measure, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the reports: shows that it works")
    arguments = parser.parse_args()
    total = 1536 if arguments.quick else 15_360
    pin(0, 1)
    size = len(body("bench-0", 1, 10, bad=True))
    print(f"a report of 10 step records has {size} bytes")
    print(f"{'':56}{'reports/s':>12}{'CPU ms each':>14}{'p50 ms':>10}{'p99 ms':>10}")
    measure_exporter(total)
    if shutil.which("prometheus-pushgateway"):
        measure_pushgateway(total)


if __name__ == "__main__":
    main()
