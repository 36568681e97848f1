"""The network between the training processes and their exporter: an HTTP proxy that delays, repeats and loses reports.

It also records every report that the exporter has answered with 200: these are what there is to be counted.
"""

import contextlib
import dataclasses
import http.client
import http.server
import json
import random
import socket
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, Final

from tests.e2e.chaos.schedule import FATES, Fate

_HANGS: Final = 0.7
"""Seconds; longer than the trainers' timeout."""


@dataclasses.dataclass(frozen=True)
class Delivery:
    """A report that the exporter has answered."""

    report: dict[str, Any]
    status: int
    directory: int
    """Number of the exporter's data directory that stores it: 0, and one more after each loss."""


class Network:
    """A proxy on a free port of 127.0.0.1. `close()` it.

    Args:
      seed: of the fates; that of a report also depends on its incarnation, its seq and how often it was sent before.
      weather: the probability of each fate but "passed", in the order of FATES.
      port: of the exporter, at 127.0.0.1.
    """

    def __init__(self, seed: int, weather: Sequence[float], port: int) -> None:
        self.calm = False
        """Whether every report passes."""
        self.directory = 0
        self.deliveries: list[Delivery] = []
        self.fates: dict[str, int] = dict.fromkeys(FATES, 0)
        self._seed = seed
        self._weather = weather
        self._port = port
        self._blocked = False
        self._in_flight = 0
        self._tries: dict[tuple[str, int], int] = {}
        self._late: list[bytes] = []
        self._lock = threading.Condition()
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self._closed = False
        self._threads = [
            threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True),
            threading.Thread(target=self._deliver_late, daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._lock.notify_all()
        self._server.shutdown()
        self._server.server_close()
        for thread in self._threads:
            thread.join()

    def drain(self, limit: float = 30.0) -> None:
        """Wait until all late reports have arrived."""
        with self._lock:
            assert self._lock.wait_for(lambda: not self._late, limit), f"{len(self._late)} reports are still under way"

    @contextlib.contextmanager
    def silence(self) -> Iterator[None]:
        """During the block no report gets through, and none is late or in flight."""
        self.drain()
        with self._lock:
            self._blocked = True
            assert self._lock.wait_for(lambda: not self._in_flight, 30.0)
        yield
        with self._lock:
            self._blocked = False

    def delivered(self) -> list[Delivery]:
        """The reports that the exporter has stored, in the order of its answers."""
        with self._lock:
            return [delivery for delivery in self.deliveries if delivery.status == 200]

    def _fate(self, report: dict[str, Any]) -> Fate:
        key = report["incarnation"], report["seq"]
        with self._lock:
            tries = self._tries[key] = self._tries.get(key, 0) + 1
            drawn = random.Random(zlib.crc32(f"{self._seed} {key} {tries}".encode()))
            fate = drawn.choices(FATES, [max(0.0, 1 - sum(self._weather)), *self._weather])[0]
            if self.calm:
                fate = "passed"
            self.fates[fate] += 1
        return fate

    def handle(self, body: bytes) -> tuple[int, bytes] | None:
        """The answer to the trainer; None to close its connection."""
        match self._fate(json.loads(body)):
            case "passed":
                return self._post(body)
            case "twice":
                self._post(body)
                return self._post(body)
            case "delayed":
                time.sleep(0.2)
                return self._post(body)
            case "answer lost":
                self._post(body)
            case "late":
                self._put_late(body)
            case "cut short":
                self._cut_short(body)
            case "hung":
                time.sleep(_HANGS)
            case "dropped":
                pass
        return None

    def _post(self, body: bytes, *, late: bool = False) -> tuple[int, bytes] | None:
        """The exporter's answer. If it is unknown whether the exporter got the report, it is sent once more, later."""
        with self._lock:
            if self._blocked:
                return None
            self._in_flight += 1
            directory = self.directory
        try:
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=10)) as connection:
                try:
                    connection.connect()
                except OSError:
                    return None  # the exporter is not running, so it got nothing
                try:
                    connection.request("POST", "/v1/reports", body, {"Content-Type": "application/json"})
                    with connection.getresponse() as response:
                        status, answer = response.status, response.read()
                except (OSError, http.client.HTTPException):
                    if not late:
                        self._put_late(body)
                    return None
            with self._lock:
                self.deliveries.append(Delivery(json.loads(body), status, directory))
            return status, answer
        finally:
            with self._lock:
                self._in_flight -= 1
                self._lock.notify_all()

    def _cut_short(self, body: bytes) -> None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port), 5) as cut:
            head = f"POST /v1/reports HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
            head += "Content-Type: application/json\r\n\r\n"
            cut.sendall(head.encode() + body[: len(body) // 2])

    def _put_late(self, body: bytes) -> None:
        with self._lock:
            self._late.append(body)
            self._lock.notify_all()

    def _deliver_late(self) -> None:
        """Deliver late reports in random order, some tenths of a second late, until the exporter has them."""
        rng = random.Random(self._seed)
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._late or self._closed)
                if self._closed:
                    return
            time.sleep(rng.uniform(0.02, 0.1 if self.calm else 0.4))
            with self._lock:
                body = rng.choice(self._late)
            if self._post(body, late=True) is not None:
                with self._lock:
                    self._late.remove(body)
                    self._lock.notify_all()

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        network = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = 65_536  # an answer in one piece

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                answer = network.handle(body)
                if answer is None:
                    self.close_connection = True
                    return
                self.send_response(answer[0])
                self.send_header("Content-Length", str(len(answer[1])))
                self.end_headers()
                self.wfile.write(answer[1])

            def log_message(self, *args: object) -> None:
                del args

        return Handler


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *args: object) -> None:
        """Ignore that a killed trainer does not read its answer."""
        del args
