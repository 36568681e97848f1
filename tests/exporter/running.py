"""For tests: an exporter in this process behind a real socket, with a clock that the test sets."""

import contextlib
import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from optwrap_exporter.http.app import create_app
from optwrap_exporter.http.hub import Hub
from optwrap_exporter.http.serving.server import bind_tcp, server_of
from optwrap_exporter.ingest.ingest import Ingest, Retention
from optwrap_exporter.ledger.ledger import Ledger
from optwrap_exporter.settings import Settings, parse_address
from optwrap_exporter.store.store import Store

from tests.exporter.trainer import START, Job, TurnedClock

__all__ = ["START", "Job", "Served", "TurnedClock", "served"]


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
        """POST a report that must be accepted."""
        answer = self.client.post("/v1/reports", json=report)
        assert answer.status_code == 200, answer.text
        return answer

    def get(self, path: str, **query: Any) -> Any:
        """The JSON of an answer that must be 200."""
        answer = self.client.get(path, params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def scrape(self, accept: str = "") -> str:
        """The text of /metrics."""
        answer = self.client.get("/metrics", headers={"accept": accept})
        assert answer.status_code == 200, answer.text
        return answer.text


@contextlib.contextmanager
def served(data_dir: Path, clock: TurnedClock | None = None, *, tick: float = 0, **settings: Any) -> Iterator[Served]:
    """An exporter on a free port during the block. Without a `tick` its ingest ticks only when the test says so."""
    clock = clock or TurnedClock()
    given = Settings(**{"listen": (parse_address("127.0.0.1:0"),), "data_dir": data_dir, **settings})
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(contextlib.closing(Store(data_dir, limit_bytes=given.retention_bytes)))
        ledger = Ledger(clock, scope=given.scope)
        retention = Retention(seconds=given.retention_days * 86_400)
        ingest = Ingest(store, ledger, tick=tick, retention=retention)
        ingest.start()
        stack.callback(ingest.close)
        hub = Hub(ingest.subscribe, store, ledger)
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
