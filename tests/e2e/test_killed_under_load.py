"""An exporter is killed with signal 9 while many clients report to it: nothing that was acknowledged is lost."""

import asyncio
import contextlib
import re

import httpx

from benchmarks.traffic import body, request
from tests.conftest import RunningExporter
from tests.polling import wait_until

CLIENTS = 48
STEPS = 5


async def report(port: int, client: int, acknowledged: dict[int, int]) -> None:
    """Report, one after the other, until the exporter is gone."""
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, TimeoutError):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for seq in range(1, 100_000):
            writer.write(request(body(f"killed-{client}", seq, STEPS, bad=True)))
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"(?i)content-length: *(\d+)", head)
            assert length is not None
            await reader.readexactly(int(length[1]))
            assert head.startswith(b"HTTP/1.1 200"), head
            acknowledged[client] = seq


async def report_and_kill(exporter: RunningExporter) -> dict[int, int]:
    """By client, the last report that was acknowledged before the exporter was killed."""
    port, acknowledged = int(exporter.url.rpartition(":")[2]), dict.fromkeys(range(CLIENTS), 0)
    async with asyncio.TaskGroup() as group:
        for client in range(CLIENTS):
            group.create_task(report(port, client, acknowledged))
        await asyncio.to_thread(wait_until, lambda: min(acknowledged.values()) > 1)
        await asyncio.to_thread(exporter.kill9)
    return acknowledged


def test_acknowledged_reports_of_groups_survive_signal_9(exporter: RunningExporter) -> None:
    """Of those that were not acknowledged at most one of each client may be there, whole or not at all."""
    acknowledged = asyncio.run(report_and_kill(exporter))
    exporter.restart()
    for client, seq in acknowledged.items():
        answer = httpx.get(f"{exporter.url}/v1/runs/killed-{client}", timeout=30)
        stored = answer.json()["totals"]["steps"] if answer.status_code == 200 else 0
        records = httpx.get(f"{exporter.url}/v1/runs/killed-{client}/steps", timeout=30)
        assert stored in {seq * STEPS, (seq + 1) * STEPS}
        assert records.json().get("total", 0) == stored
