"""What the Monitor's tests share: a training simulated in plain Python, and a stub exporter that adds up reports."""

import contextlib
import copy
import http.server
import json
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from optwrap._reading.counters import ABSENT, INTEGER_GAUGES, OUTCOMES, Counters, pack
from optwrap._reading.unpack import Layout, Reading, unpack

PARAMETERS = ("decoder/layer_0/w", "decoder/layer_1/w", "head")

_pack: Any = jax.jit(pack)


class Training:
    """The counters of an instrumented optimizer, counted in Python and packed by the library's own `pack`.

    Args:
      parameters: their paths.
      mini_step: the gauge of that name; None for none.
      distinct: whether non-finite steps have a norm of their own, too, so that no two readings are equal.
    """

    def __init__(
        self, parameters: tuple[str, ...] = PARAMETERS, *, mini_step: int | None = None, distinct: bool = False
    ) -> None:
        self.layout = Layout(parameters)
        self.outcomes = dict.fromkeys(OUTCOMES, 0)
        self.parameters = dict.fromkeys(parameters, 0)
        self.not_finite_steps = 0
        self.streak = 0
        self.outcome: str | None = None
        self.nonfinite_parameters: Mapping[str, int] = {}
        self.mini_step = mini_step
        self._distinct = distinct
        self._ran = [0]

    @property
    def steps(self) -> int:
        return sum(self.outcomes.values())

    def step(self, outcome: str = "applied", offenders: Mapping[str, int] | None = None) -> "Training":
        """One step."""
        self._ran[0] += 1
        self.outcome, self.nonfinite_parameters = outcome, dict(offenders or {})
        self.outcomes[outcome] += 1
        for path in self.nonfinite_parameters:
            self.parameters[path] += 1
        self.not_finite_steps += bool(self.nonfinite_parameters)
        self.streak = self.streak + 1 if self.nonfinite_parameters else 0
        return self

    def saved(self) -> "Training":
        """A checkpoint."""
        clone = copy.deepcopy(self)
        clone._ran = self._ran
        return clone

    @property
    def norm(self) -> float:
        return float("nan") if self.nonfinite_parameters and not self._distinct else 1 + self._ran[0] / 1024

    def counters(self) -> Counters:
        """The counters as arrays of numpy."""
        gauges = [
            ABSENT if name != "mini_step" or self.mini_step is None else self.mini_step for name in INTEGER_GAUGES
        ]
        arrays: dict[str, Any] = dict(
            outcomes=np.array(list(self.outcomes.values()), np.uint32),
            not_finite_steps=np.uint32(self.not_finite_steps),
            not_finite_streak=np.uint32(self.streak),
            not_finite_streak_peak=np.uint32(self.streak),
            parameters=np.array(list(self.parameters.values()), np.uint32),
            window_not_finite=np.zeros([0], np.bool_),
            outcome=np.int32(-1 if self.outcome is None else OUTCOMES.index(self.outcome)),
            finite=np.bool_(not self.nonfinite_parameters),
            gradient_norm=np.float32(self.norm),
            not_finite_values=np.array(
                [self.nonfinite_parameters.get(p, 0) for p in self.layout.parameters], np.uint32
            ),
            gauges=np.array(gauges, np.int32),
            gradient_norm_limit=np.float32(np.nan),
            fingerprint=np.uint32(self.layout.fingerprint),
            replica=np.int32(ABSENT),
            replicas_not_finite=np.int32(ABSENT),
            largest=np.full(3, ABSENT, np.int32),
            largest_shares=np.zeros(3, np.float32),
            update_norm=np.float32(ABSENT),
            scalars=np.zeros(0, np.float32),
        )
        return Counters(**arrays)

    def words(self) -> Any:
        """The packed reading, on the device."""
        return _pack(self.counters())

    def reading(self) -> Reading:
        """The reading, unpacked."""
        return unpack(np.array(self.words()), self.layout)


def counts(totals: Any) -> dict[str, int]:
    """The totals of a report or of a Training, as one flat dictionary without zeros."""
    if isinstance(totals, Training):
        flat = {**totals.outcomes, "not_finite_steps": totals.not_finite_steps}
        flat |= {f"parameter {path}": n for path, n in totals.parameters.items()}
    else:
        flat = {**totals["outcomes"], "not_finite_steps": totals["not_finite_steps"]}
        flat |= {f"parameter {path}": n for path, n in totals["parameters"].items()}
    return {key: n for key, n in flat.items() if n}


def less(a: Mapping[str, int], b: Mapping[str, int]) -> dict[str, int]:
    """`a - b`, key by key, zeros left out."""
    return {key: n for key in {*a, *b} if (n := a.get(key, 0) - b.get(key, 0))}


def plus(a: Mapping[str, int], b: Mapping[str, int]) -> dict[str, int]:
    """`a + b`, key by key, zeros left out."""
    return {key: n for key in {*a, *b} if (n := a.get(key, 0) + b.get(key, 0))}


class Books:
    """What an exporter adds up, reduced to the law: totals are a sum over incarnations.

    Reports are kept by incarnation and seq. The same seq with other bytes raises AssertionError.
    """

    def __init__(self) -> None:
        self.reports: dict[tuple[str, int], bytes] = {}
        self.order: list[dict[str, Any]] = []
        self._read: dict[tuple[str, int], dict[str, Any]] = {}

    def take(self, body: bytes) -> dict[str, Any]:
        """Store a report; returns the acknowledgement."""
        report = json.loads(body)
        key = report["incarnation"], report["seq"]
        assert self.reports.setdefault(key, body) == body, f"report {key} was changed after it was sent"
        self._read[key] = report
        self.order.append(report)
        n = report["oldest_held"] - 1
        while (report["incarnation"], n + 1) in self.reports:
            n += 1
        return {"acknowledged": n}

    def incarnations(self) -> dict[str, list[dict[str, Any]]]:
        """All reports by incarnation, by rising seq."""
        found: dict[str, list[dict[str, Any]]] = {}
        for (incarnation, _), report in sorted(self._read.items(), key=lambda item: item[0]):
            found.setdefault(incarnation, []).append(report)
        return found

    def totals(self) -> dict[str, int]:
        """The sum over incarnations of the largest totals less the totals at the start.

        If all its reports say oldest_held > 1, earlier ones are lost, and the smallest totals received are the start.
        """
        total: dict[str, int] = {}
        for reports in self.incarnations().values():
            starts = {json.dumps(report["at_start"], sort_keys=True) for report in reports}
            assert len(starts) == 1, "at_start changed within an incarnation"
            largest: dict[str, int] = {}
            for report in reports:
                now = counts(report["totals"])
                largest = {key: max(largest.get(key, 0), now.get(key, 0)) for key in {*largest, *now}}
            lost = all(report["oldest_held"] > 1 for report in reports)
            smallest = min((report["totals"] for report in reports), key=lambda totals: totals["steps"])
            total = plus(total, less(largest, counts(smallest if lost else reports[0]["at_start"])))
        return total

    def steps(self) -> list[tuple[str, int]]:
        """Incarnation and step number of every record."""
        return [(e, step) for e, reports in self.incarnations().items() for r in reports for step in r["steps"]["step"]]

    def dropped(self) -> dict[str, int]:
        """The records that the client reports as dropped, over all incarnations."""
        last = [reports[-1]["dropped"] for reports in self.incarnations().values()]
        return {kind: sum(dropped[kind] for dropped in last) for kind in ("steps", "bad_steps")}


Reply = tuple[int, Mapping[str, str], bytes]


class StubExporter:
    """A real HTTP server on a free port of 127.0.0.1 or on a Unix socket.

    Tests replace `answer` to make it misbehave.

    Args:
      path: of the Unix socket; None for TCP.
      port: of TCP; 0 for a free one.
      tls: with the server's certificate; None for plain TCP.
    """

    def __init__(self, path: Path | None = None, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self.books = Books()
        self.requests: list[tuple[str, Mapping[str, str], bytes]] = []
        self.connections = 0
        """How many were opened."""
        self.answer: Callable[[bytes, socket.socket], Reply | None] = self.ok
        self._open: set[socket.socket] = set()
        self._condition = threading.Condition()
        handler = self._handler()
        if path is None:
            self.server: Any = _Tcp(("127.0.0.1", port), handler)
            self.endpoint = f"{'https' if tls else 'http'}://127.0.0.1:{self.server.server_address[1]}"
            if tls is not None:
                self.server.socket = tls.wrap_socket(self.server.socket, server_side=True)
        else:
            self.server = _Unix(str(path), handler)
            self.endpoint = f"unix://{path}"
        self._thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self.server.server_address[1])

    def ok(self, body: bytes, _: socket.socket) -> Reply:
        """The answer of a healthy exporter."""
        with self._condition:
            return 200, {}, json.dumps(self.books.take(body)).encode()

    def wait(self, condition: Callable[["StubExporter"], object], timeout: float = 20.0) -> None:
        """Wait until `condition` holds; it is checked after every request."""
        with self._condition:
            assert self._condition.wait_for(lambda: condition(self), timeout), f"still false after {timeout} s"

    def break_connections(self) -> None:
        """Close all connections, as a server does that ends."""
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.break_connections()
        self._thread.join()

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        stub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # buffered: an answer is sent whole, or not at all if the connection is closed meanwhile

            def setup(self) -> None:
                super().setup()
                stub.connections += 1
                stub._open.add(self.connection)

            def finish(self) -> None:
                stub._open.discard(self.connection)
                with contextlib.suppress(OSError):
                    super().finish()

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                try:
                    try:
                        reply = stub.answer(body, self.connection)
                    finally:
                        with stub._condition:
                            stub.requests.append((self.path, dict(self.headers), body))
                            stub._condition.notify_all()
                    if reply is None:
                        self.close_connection = True
                        return
                    status, headers, content = reply
                    self.send_response(status)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)
                except OSError:
                    self.close_connection = True

            def address_string(self) -> str:
                return "client"

            def log_message(self, *args: object) -> None:
                del args

        return Handler


class _Tcp(http.server.ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def handle_error(self, *args: object) -> None:
        del args


class _Unix(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True

    def handle_error(self, *args: object) -> None:
        del args


def refusal(status: int, headers: Mapping[str, str] | None = None) -> Callable[[bytes, socket.socket], Reply]:
    """An answer that refuses the report with this status."""
    body = json.dumps({"detail": [{"field": "run", "value": "x y", "allowed": "a name"}]}).encode()
    return lambda *_: (status, headers or {}, body)


def log_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the library has logged."""
    return [record.getMessage() for record in caplog.records if record.name == "optwrap"]
