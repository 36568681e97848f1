"""Whatever answers at the exporter's address: training never waits, memory is bounded, no loss is uncounted."""

import contextlib
import json
import resource
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

from optwrap._monitor.monitor import Monitor
from optwrap._monitor.sending.transport import MAX_RETRY_AFTER, Answer, HttpTransport, TransportError
from optwrap._monitor.settings import resolve
from tests.optwrap.monitoring import Reply, StubExporter, Training, counts, log_lines
from tests.optwrap.simulated_monitor import SimulatedMonitor

Behaviour = Callable[[bytes, socket.socket], Reply | None]

MEMORY = 64 << 20
"""More memory than a gigabyte read in bounded pieces needs, in bytes."""


def says(*parts: bytes) -> Behaviour:
    """Sends these bytes as they are, and closes."""

    def answer(_: bytes, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            for part in parts:
                connection.sendall(part)

    return answer


def pours(first: bytes, again: bytes, size: int = 1 << 30) -> Behaviour:
    """Sends `first`, then `again` and again until `size` bytes are out or the client has gone."""

    def answer(_: bytes, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            connection.sendall(first)
            for _time in range(size // len(again)):
                connection.sendall(again)

    return answer


def drips(first: bytes, again: bytes) -> Behaviour:
    """Sends `first`, then `again` every few milliseconds until the client has gone."""

    def answer(_: bytes, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            connection.sendall(first)
            for _time in range(2000):
                time.sleep(0.005)
                connection.sendall(again)

    return answer


def replies(status: int, body: bytes = b"", **headers: str) -> Behaviour:
    """A well-formed answer."""
    return lambda *_: (status, {name.replace("_", "-"): value for name, value in headers.items()}, body)


def ok(body: str) -> Behaviour:
    """A 200 with this body."""
    return replies(200, body.encode())


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
KILOBYTES = b"x" * 65_536

UNBELIEVABLE: dict[str, Behaviour] = {
    "garbage": says(bytes(range(256)) * 100),
    "nothing": says(),
    "TLS": says(b"\x15\x03\x01\x00\x02\x02\x46", b"\x16\x03\x03\x00\x7a" + b"\0" * 122),
    "SSH": says(b"SSH-2.0-OpenSSH_9.6\r\n"),
    "500": replies(500, b"Internal Server Error"),
    "502, a page": replies(502, b"<html>" + b"x" * 50_000),
    "301": replies(301, Location="http://127.0.0.1:9/v1/reports"),
    "307": replies(307, Location="http://127.0.0.1:9/v1/reports"),
    "404": replies(404, b"<html>no such page</html>"),
    "405": replies(405, Allow="GET"),
    "400": replies(400, b"Invalid HTTP request received."),
    "201": replies(201, b'{"acknowledged": 1}'),
    "204": says(b"HTTP/1.1 204 No Content\r\n\r\n"),
    "101": says(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n"),
    "200 without a body": replies(200),
    "closed in the middle": says(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"acknow'),
    "closed in the head": says(b"HTTP/1.1 200 OK\r\nContent-Le"),
    "a slow head": drips(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"),
    "a slow body": drips(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b" "),
    "100 Continue for ever": drips(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "a gigabyte": pours(b"HTTP/1.1 200 OK\r\nContent-Length: 1073741824\r\n\r\n", KILOBYTES),
    "a gigabyte until it closes": pours(b"HTTP/1.1 200 OK\r\n\r\n", KILOBYTES),
    "a gigabyte in chunks": pours(CHUNKED, b"10000\r\n" + KILOBYTES + b"\r\n"),
    "a gigabyte of one chunk's size": pours(CHUNKED, b"0" * 65_536),
    "a gigabyte of status": pours(b"HTTP/1.1 200 ", KILOBYTES),
    "a gigabyte of headers": pours(b"HTTP/1.1 200 OK\r\n", b"X: " + KILOBYTES[:60_000] + b"\r\n"),
    "a chunk's size that is none": says(CHUNKED, b"zz\r\n{}\r\n"),
    "a length that is none": says(b"HTTP/1.1 200 OK\r\nContent-Length: -7\r\n\r\n[]"),
    "no JSON": ok("<html>It works!</html>"),
    "no UTF-8": replies(200, b"\xff\xfe"),
    "deep JSON": ok("[" * 60_000),
    "a list": ok("[1]"),
    "no acknowledged": ok('{"interval": 1.0}'),
    **{
        f"acknowledged {value}": ok(f'{{"acknowledged": {value}, "interval": {value}}}')
        for value in (
            *("null", "true", "false", "-1", "1.0", "1e0", "0.5", "NaN", "Infinity", "-Infinity", '"1"', "[1]", "{}"),
            *("9007199254740991", "9007199254740993", "1e999", "9" * 10_000, "1000000"),
        )
    },
    "Retry-After of 30 years": replies(503, Retry_After="1000000000"),
    "Retry-After of a thousand digits": replies(503, Retry_After="9" * 1000),
    "Retry-After of NaN": replies(429, Retry_After="NaN"),
    "Retry-After in the past": replies(429, Retry_After="-5"),
    "Retry-After that is a date": replies(503, Retry_After="Fri, 31 Dec 9999 23:59:59 GMT"),
}
"""What no exporter does. The same report is sent again later."""


IMPATIENT = {"transport": lambda settings: HttpTransport(settings.endpoint, answer_timeout=0.3)}
"""Parts of a Monitor that gives up an answer after 0.3 s."""


@pytest.mark.parametrize("behaviour", UNBELIEVABLE.values(), ids=UNBELIEVABLE)
def test_what_no_exporter_says_is_not_believed_and_loses_nothing(
    stub: StubExporter, make: Callable[..., Monitor], caplog: pytest.LogCaptureFixture, behaviour: Behaviour
) -> None:
    """A flush is False meanwhile. Once the exporter is back, every step and every record arrives."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    good, stub.answer = stub.answer, behaviour
    training, slowest, impatient = Training(), 0.0, make(parts=IMPATIENT)
    impatient.describe(training.layout)
    for n in range(60):
        words = training.step("skipped_not_finite" if n % 20 == 7 else "applied", {"head": 1} if n % 20 == 7 else None)
        reading = words.words()
        began = time.monotonic()
        impatient.observe(reading)
        slowest = max(slowest, time.monotonic() - began)
        if n == 30:
            assert not impatient.flush(0.5)
    assert slowest < 1.0
    assert not stub.books.order
    stub.answer = good
    assert impatient.flush(60)
    assert stub.books.totals() == counts(training)
    assert sorted(step for _, step in stub.books.steps()) == list(range(1, 61))
    assert stub.books.dropped() == {"steps": 0, "bad_steps": 0}
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MEMORY
    lines = log_lines(caplog)
    assert len(lines) == 2, lines  # lost, and back
    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize("status", [401, 409, 413, 415, 422])
def test_what_a_hostile_exporter_refuses_is_counted(
    stub: StubExporter, make: Callable[..., Monitor], status: int
) -> None:
    """Whatever it says beside the status: a gigabyte, or fields of any type."""
    detail: Any = [{"field": ["x"] * 100, "value": {"a": None}, "allowed": "\x1b[2J"}, 3, None, {"field": 1}]
    good, stub.answer = stub.answer, replies(status, json.dumps({"detail": detail}).encode())
    training, impatient = Training(), make(parts=IMPATIENT)
    impatient.describe(training.layout)
    for _ in range(20):
        impatient.observe(training.step().words())
    assert not impatient.flush(0.5)
    stub.answer = good
    impatient.flush(60)
    impatient.observe(training.step().words())
    assert impatient.flush(60)
    if status != 409:  # that claims earlier reports: the exporter shows their steps as unseen
        assert stub.books.totals() == counts(training)
    dropped = stub.books.dropped()
    assert len(stub.books.steps()) + dropped["steps"] == 21


@pytest.mark.parametrize("detail", ["x", 1, None, {}, {"field": 1}, [[]], [1], ["x"], [{}], [{"field": 1}]])
def test_an_error_in_another_form_is_quoted_as_it_is(detail: Any) -> None:
    """It must not raise: that would be logged as a bug of ours."""
    answer = Answer(422, json.dumps({"detail": detail}).encode())
    assert answer.fields == ()
    assert answer.message.startswith('422 {"detail"')


def test_an_answers_message_cannot_control_a_terminal() -> None:
    """It is logged to whatever the training logs to."""
    assert Answer(422, b"\x1b[31mred\x07\x00").message == "422 ?[31mred??"


@pytest.mark.parametrize("sent", [1, 7])
def test_only_what_was_sent_can_be_acknowledged(sent: int) -> None:
    for number in range(sent + 1):
        assert Answer(200, b'{"acknowledged": %d}' % number).acknowledged(sent) == number
    with pytest.raises(TransportError, match="not from an exporter"):
        Answer(200, b'{"acknowledged": %d}' % (sent + 1)).acknowledged(sent)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("0", 0.0),
        (str(MAX_RETRY_AFTER), float(MAX_RETRY_AFTER)),
        (str(MAX_RETRY_AFTER + 1), None),
        ("1000000000", None),
        ("9" * 400, None),
        ("1_0", None),
        ("+1", None),
        ("\u0661", None),
        ("nan", None),
        ("1.5", None),
    ],
)
def test_a_retry_after_out_of_range_is_ignored(stub: StubExporter, header: str, seconds: float | None) -> None:
    """The ordinary backoff applies."""

    def answer(_: bytes, connection: socket.socket) -> None:
        head = f"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nRetry-After: {header}\r\n\r\n"
        connection.sendall(head.encode("utf-8"))

    stub.answer = answer
    settings = resolve({}, run="r", endpoint=stub.endpoint)
    assert settings is not None
    transport = HttpTransport(settings.endpoint)
    assert transport.post(b"{}").retry_after == seconds
    transport.close()


def test_a_flush_is_not_true_for_records_that_were_dropped() -> None:
    """It says so once; what was observed later can be delivered."""
    sim = SimulatedMonitor(max_rows=10)
    sim.run(1.5)
    sim.network.mode = "down"
    for _ in range(40):
        sim.step()
        sim.run(0.1)
    sim.network.mode = "up"
    sim.run(60)
    assert sim.books.dropped()["steps"] > 0
    assert not sim.flush()
    assert sim.flush()
    sim.step()
    assert sim.flush()
