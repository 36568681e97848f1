"""For tests: an exporter in this process, behind a real socket, with a clock that the test turns; jobs that report."""

import contextlib
import copy
import dataclasses
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
from optwrap_exporter.http.app import create_app
from optwrap_exporter.http.hub import Hub
from optwrap_exporter.http.server import bind_tcp, server_of
from optwrap_exporter.ingest import Ingest
from optwrap_exporter.ledger.ledger import Ledger
from optwrap_exporter.settings import Settings, parse_address
from optwrap_exporter.store.store import Store

START = 1_763_800_000.0
OUTCOMES = ("applied", "accumulated", "skipped_not_finite", "skipped_large", "skipped_other", "accepted_not_finite")


class TurnedClock:
    """Seconds since 1970, by the test's own hand."""

    def __init__(self, now: float = START) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


def no_counts() -> dict[str, Any]:
    """The wire's counters, all zero."""
    return {
        "steps": 0,
        "gradient_steps": 0,
        "not_finite_steps": 0,
        "outcomes": dict.fromkeys(OUTCOMES, 0),
        "parameters": {},
    }


@dataclasses.dataclass
class Job:
    """One training process as the wire sees it: `step` it, then send what `report` gives."""

    run: str = "lm"
    process: int = 0
    incarnation: str = "e1"
    attempt: str = "a1"
    interval: float = 1.0
    process_count: int = 1
    clock: Callable[[], float] = dataclasses.field(default_factory=TurnedClock)
    seq: int = 0
    totals: dict[str, Any] = dataclasses.field(default_factory=no_counts)
    at_start: dict[str, Any] = dataclasses.field(default_factory=no_counts)
    gauges: dict[str, Any] = dataclasses.field(default_factory=dict)
    dropped: dict[str, int] = dataclasses.field(default_factory=lambda: {"steps": 0, "bad_steps": 0})

    def __post_init__(self) -> None:
        self._new()

    def _new(self) -> None:
        self._steps: dict[str, list[Any]] = {
            name: [] for name in ("step", "time", "outcome", "finite", "norm", "mini_step")
        }
        self._offenders: list[dict[str, Any]] = []
        self._replicas: list[dict[str, Any]] = []

    def step(
        self,
        outcome: str = "applied",
        norm: float | str = 1.0,
        *,
        replica: dict[str, Any] | None = None,
        **offenders: int,
    ) -> None:
        """One call of update.

        `offenders`: parameters (`__` for `/`) and how many of their values were not finite; `replica`: the first that
        brought them, as the wire's record without its step.
        """
        totals = self.totals
        totals["steps"] += 1
        totals["outcomes"][outcome] += 1
        totals["gradient_steps"] += outcome in {"applied", "accepted_not_finite"}
        finite = not offenders
        totals["not_finite_steps"] += not finite
        streak = 0 if finite else self.gauges.get("not_finite_streak", 0) + 1
        self.gauges["not_finite_streak"] = streak
        self.gauges["not_finite_streak_peak"] = max(streak, self.gauges.get("not_finite_streak_peak", 0))
        self.gauges["gradient_norm"] = norm
        for name, values in offenders.items():
            path = name.replace("__", "/")
            totals["parameters"][path] = totals["parameters"].get(path, 0) + 1
            self._offenders.append({"step": totals["steps"], "parameter": path, "not_finite": values})
        if replica is not None:
            self._replicas.append({"step": totals["steps"], **replica})
            which = {key: replica.get(key) for key in ("replica", "process", "device")}
            known = totals.setdefault("replicas", [])
            counted = next((one for one in known if which.items() <= one.items()), None)
            if counted is None:
                known.append(counted := {**which, "steps": 0})
            counted["steps"] += 1
        row = (totals["steps"], self.clock(), outcome, finite, norm, self.gauges.get("mini_step"))
        for column, value in zip(self._steps.values(), row, strict=True):
            column.append(value)

    def report(self, state: str = "running") -> dict[str, Any]:
        """The next report, with the steps since the last."""
        self.seq += 1
        report = {
            "run": self.run,
            "process": self.process,
            "incarnation": self.incarnation,
            "attempt": self.attempt,
            "seq": self.seq,
            "oldest_held": self.seq,
            "interval": self.interval,
            "sent_at": self.clock(),
            "state": state,
            "source": {
                "host": f"node-{self.process}",
                "platform": "cpu",
                "device_kind": "cpu",
                "device_count": 1,
                "process_count": self.process_count,
                "jax_version": "0.10.2",
                "optwrap_version": "0.1.0",
            },
            "totals": self.totals,
            "at_start": self.at_start,
            "gauges": self.gauges,
            "steps": self._steps,
            "offenders": self._offenders,
            "replicas": self._replicas,
            "dropped": self.dropped,
        }
        frozen = copy.deepcopy(report)
        self._new()
        return frozen


@dataclasses.dataclass
class Served:
    """An exporter that answers at `url`."""

    url: str
    client: httpx.Client
    clock: TurnedClock
    store: Store
    ledger: Ledger
    ingest: Ingest

    def send(self, report: dict[str, Any]) -> httpx.Response:
        """POST it, and say what came back where it was not taken."""
        answer = self.client.post("/v1/reports", json=report)
        assert answer.status_code == 200, answer.text
        return answer

    def get(self, path: str, **query: Any) -> Any:
        """The JSON of an answer that has to be 200."""
        answer = self.client.get(path, params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def scrape(self, accept: str = "") -> str:
        """The text of /metrics."""
        answer = self.client.get("/metrics", headers={"accept": accept})
        assert answer.status_code == 200, answer.text
        return answer.text


@contextlib.contextmanager
def served(data_dir: Path, clock: TurnedClock | None = None, **settings: Any) -> Iterator[Served]:
    """An exporter on a free port for the block's time; its ingest ticks only when the test says so."""
    clock = clock or TurnedClock()
    given = Settings(**{"listen": parse_address("127.0.0.1:0"), "data_dir": data_dir, **settings})
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(contextlib.closing(Store(data_dir, limit_bytes=given.retention_bytes)))
        ledger = Ledger(clock)
        ingest = Ingest(store, ledger, clock=clock, tick=0)
        ingest.start()
        stack.callback(ingest.close)
        hub = Hub(ingest.subscribe, ledger)
        app = create_app(given, store=store, ledger=ledger, ingest=ingest, hub=hub, clock=clock)
        ready = threading.Event()
        sockets = bind_tcp(parse_address("127.0.0.1:0"))
        url = f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
        server = server_of(app, started=ready.set, stopping=hub.close)
        thread = threading.Thread(target=server.run, args=(sockets,))
        thread.start()
        stack.callback(thread.join)
        stack.callback(setattr, server, "should_exit", True)
        assert ready.wait(30)
        with httpx.Client(base_url=url, trust_env=False, timeout=30) as client:
            yield Served(url, client, clock, store, ledger, ingest)
