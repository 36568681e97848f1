"""A Monitor without a thread: its reporter under a simulated clock, over a simulated network."""

import dataclasses
import itertools
import json
import random
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from optwrap_exporter.wire import requests as wire
from optwrap_exporter.wire.consistency import parse_report

from optwrap._monitor.account import Account
from optwrap._monitor.queue import Closing, Ending, Flush, Inbox
from optwrap._monitor.reporter import Reporter
from optwrap._monitor.sending.schedule import Clock
from optwrap._monitor.sending.transport import Answer, TransportError
from optwrap._monitor.settings import Settings, resolve
from tests.optwrap.monitoring import Books, Training

SOURCE: Final = {
    "host": "node-1",
    "platform": "cpu",
    "device_kind": "cpu",
    "device_count": 1,
    "process_count": 1,
    "jax_version": "0",
    "optwrap_version": "0",
}

MODES: Final = ("up", "down", "answer lost", "busy", "refusing", "too large", "lagging", "gibberish")
"""What the simulated network can do."""


@dataclasses.dataclass
class FixedSource:
    """A source that knows everything at once, or nothing while `known` is False."""

    known: bool = True

    def process(self) -> int | None:
        return 0 if self.known else None

    def attempt(self, run: str, incarnation: str, now: float) -> str | None:
        del run, now
        return incarnation if self.known else None

    def describe(self) -> dict[str, Any]:
        return SOURCE

    def note_step(self) -> None:
        pass


class Network:
    """A transport to an exporter that adds up reports, and validates each as the exporter does."""

    def __init__(self) -> None:
        self.books = Books()
        self.mode = "up"
        """One of MODES."""
        self.posts = 0
        self.parse: Callable[[bytes], wire.Report] = parse_report

    def post(self, body: bytes, *, within: float | None = None, meanwhile: Callable[[], None] | None = None) -> Answer:
        del meanwhile
        assert within is None or within > 0
        self.posts += 1
        report = self.parse(body)
        mode = self.mode
        if (report.incarnation, report.seq) in self.books.reports and mode in ("refusing", "too large"):
            mode = "up"  # a report that is stored is acknowledged again, whatever else is refused
        if mode == "too large" and len(report.steps) <= 1:
            mode = "up"
        match mode:
            case "down":
                raise TransportError("Connection refused")
            case "busy":
                return Answer(503, b"{}", retry_after=7.0)
            case "refusing":
                return Answer(422, b'{"detail": [{"field": "run", "value": "r", "allowed": "s"}]}')
            case "too large":
                return Answer(413, b"{}")
            case "gibberish":
                return Answer(200, b"<html>It works!</html>")
        answer = self.books.take(body)
        if mode == "answer lost":
            raise TransportError("timed out")
        if mode == "lagging":  # the latest report is not durable yet
            answer["acknowledged"] -= 1
        return Answer(200, json.dumps(answer).encode())

    def close(self) -> None:
        pass

    def abandon(self) -> None:
        pass


class SimulatedMonitor:
    """A Reporter, its clock, its network, and a training to observe.

    Args:
      max_rows: of the account.
      max_incarnations: of the account.
      queue: size of the inbox.
      seed: of the retries' jitter.
    """

    def __init__(self, *, max_rows: int = 65_536, max_incarnations: int = 32, queue: int = 2048, seed: int = 0) -> None:
        self.now = 1000.0
        """Monotonic seconds."""
        self.set_back = 0.0
        """Seconds by which the machine's clock was set back."""
        ids = (f"e{n}" for n in itertools.count())
        settings = resolve({}, run="r", process=0)
        assert isinstance(settings, Settings)
        clock = Clock(lambda: self.now - self.set_back, lambda: self.now, self.pass_time, random.Random(seed).random)
        self.network = Network()
        self.source = FixedSource()
        self.inbox = Inbox(queue, clock.time)
        self.account = Account(lambda: next(ids), max_rows=max_rows, max_incarnations=max_incarnations)
        self.reporter = Reporter(
            settings, self.inbox, [self.account], transport=self.network, source=self.source, clock=clock
        )
        self.training = Training()
        self.inbox.layout = self.training.layout

    @property
    def books(self) -> Books:
        """What the exporter has stored."""
        return self.network.books

    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    def observe(self, training: Training | None = None) -> None:
        self.inbox.put(np.array((training or self.training).words()))

    def step(self, outcome: str = "applied", offenders: dict[str, int] | None = None) -> None:
        """Take one step and observe it."""
        self.training.step(outcome, offenders)
        self.observe()

    def run(self, seconds: float) -> None:
        """Let the loop of the reporting thread run for that long."""
        until = self.now + seconds
        while self.now < until:
            self.reporter.cycle()
            self.now += min(self.reporter.pause(), until - self.now)

    def flush(self, seconds: float = 60) -> bool:
        """Wait until everything observed is stored; whether it is."""
        flush = Flush()
        self.inbox.flushes.append(flush)
        until = self.now + seconds
        while self.now < until and not flush.done.is_set():
            self.run(0.1)
        self.inbox.flushes.remove(flush)
        return flush.succeeded

    def finish(self, state: str = "finished") -> None:
        self.inbox.closing = Closing(Ending(state), self.now + 2)
        self.reporter.finish()
