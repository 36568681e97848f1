"""A real exporter in a process of its own, and what one request costs it."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import httpx

from tests.conftest import RunningExporter


@dataclasses.dataclass(frozen=True)
class Cost:
    """What the exporter spent on one request."""

    seconds: float
    """Processor time of all its threads."""
    bytes: int
    """Memory at the highest, less the memory before."""


class Victim:
    """An exporter to send reports to.

    Args:
      exporter: a running one.
    """

    def __init__(self, exporter: RunningExporter) -> None:
        self.exporter = exporter
        self.client = httpx.Client(base_url=exporter.url, trust_env=False, timeout=120)
        self._proc = Path("/proc") / str(exporter.pid)

    def post(self, body: bytes) -> tuple[httpx.Response, Cost]:
        """Send a report; the answer and its cost."""
        (self._proc / "clear_refs").write_text("5")  # the highest memory starts anew
        memory, seconds = self.memory("VmRSS"), self._seconds()
        answer = self.client.post("/v1/reports", content=body, headers={"content-type": "application/json"})
        return answer, Cost(self._seconds() - seconds, max(0, self.memory("VmHWM") - memory))

    def _seconds(self) -> float:
        spent = 0
        for thread in (self._proc / "task").iterdir():
            with contextlib.suppress(OSError):  # it has ended
                spent += int((thread / "schedstat").read_text().split()[0])
        return spent / 1e9

    def memory(self, name: str) -> int:
        """A figure of its memory in bytes: VmRSS now, or VmHWM at the highest."""
        status = (self._proc / "status").read_text()
        return int(status.partition(f"{name}:")[2].split()[0]) * 1024


@contextlib.contextmanager
def victim(data_dir: Path, *options: str) -> Iterator[Victim]:
    """A new exporter during the block."""
    exporter = RunningExporter(data_dir, *options)
    try:
        found = Victim(exporter)
        with found.client:
            yield found
    finally:
        exporter.stop()
