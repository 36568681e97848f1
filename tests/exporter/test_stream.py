"""GET /v1/stream over a real socket: every commit once and in order, resuming, limits and shutdown."""

import contextlib
import dataclasses
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from optwrap_exporter.http import channel
from optwrap_exporter.http import hub as streams
from optwrap_exporter.http.routes import stream as route

from tests.conftest import RunningExporter
from tests.exporter.running import Job, Served


@dataclasses.dataclass(frozen=True)
class Message:
    """One message as an EventSource sees it."""

    id: str
    event: str
    data: Any
    comment: str


class Reader:
    """Reads the messages of one open stream."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._lines = response.iter_lines()

    def __iter__(self) -> Iterator[Message]:
        fields: dict[str, str] = {}
        for line in self._lines:
            if line:
                name, _, value = line.partition(":")
                fields[name or "comment"] = value.removeprefix(" ")
            elif fields:
                data = json.loads(fields["data"]) if "data" in fields else None
                yield Message(fields.get("id", ""), fields.get("event", ""), data, fields.get("comment", ""))
                fields = {}

    def next(self, event: str) -> Message:
        """The next message of this kind."""
        return next(message for message in self if message.event == event)

    def steps(self, last: int) -> list[int]:
        """Step numbers of the reports up to the one that brings step `last`, as they come."""
        found: list[int] = []
        while last not in found:
            found += self.next("report").data["steps"]["step"]
        return found


@contextlib.contextmanager
def following(
    url: str, run: str | None = None, last_event_id: str | None = None, socket_options: Any = None
) -> Iterator[Reader]:
    headers = {} if last_event_id is None else {b"last-event-id": last_event_id.encode()}
    query = {} if run is None else {"run": run}
    with (
        httpx.Client(base_url=url, timeout=30, transport=httpx.HTTPTransport(socket_options=socket_options)) as client,
        client.stream("GET", "/v1/stream", params=query, headers=headers) as response,
    ):
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        reader = Reader(response)
        # From this message on nothing is missed.
        opening = next(message for message in reader if message.comment != "ping")
        assert opening.comment.startswith("from revision")
        yield reader


def send_steps(site: Served, job: Job, count: int) -> None:
    for _ in range(count):
        job.step()
        site.send(job.report())


def test_a_committed_report_is_streamed_with_its_records(site: Served) -> None:
    job = Job(clock=site.clock)
    with following(site.url, "lm") as stream:
        job.step("applied", 0.5)
        job.step("skipped_not_finite", "Infinity", w=3)
        site.send(job.report())
        message = stream.next("report")
        assert message.data["revision"] == int(message.id)
        assert (message.data["run"], message.data["process"]) == ("lm", 0)
        assert message.data["steps"]["norm"] == [0.5, "Infinity"]
        assert message.data["offenders"] == [{"step": 2, "parameter": "w", "not_finite": 3}]
        assert "skipped" in {event["kind"] for event in message.data["events"]}
        run = stream.next("run")
        # A message before this one may have brought the process.
        assert run.data | {"processes": []} == site.get("/v1/runs/lm") | {"processes": []}


def test_a_shared_event_is_streamed_once(site: Served) -> None:
    """The first process's event is streamed; so is an event that only one process reports."""
    jobs = [Job(clock=site.clock, process=process, process_count=2, incarnation=f"e{process}") for process in (0, 1)]
    with following(site.url, "lm") as stream:
        for turn in ((0, 1), (1, 0), (1,)):
            for process in turn:
                jobs[process].step("skipped_not_finite", "NaN", w=1)
                site.send(jobs[process].report())
        told = [event for _ in range(5) for event in stream.next("report").data["events"]]
    skipped = [(event["process"], event["step"]) for event in told if event["kind"] == "skipped"]
    assert skipped == [(0, 1), (1, 2), (1, 3)]
    assert [event["process"] for event in told if event["kind"] == "streak_started"] == [0]


def test_a_stream_begins_with_the_run_as_it_stands(site: Served) -> None:
    send_steps(site, Job(clock=site.clock), 2)
    with following(site.url, "lm") as stream:
        assert stream.next("run").data["totals"]["steps"] == 2


def test_a_client_that_reconnects_gets_everything_it_missed(site: Served) -> None:
    job = Job(clock=site.clock)
    with following(site.url) as stream:
        send_steps(site, job, 3)
        steps = stream.steps(3)
        left_at = stream.next("report") if steps[-1] < 3 else None
        assert left_at is None
        # The last report's id, as an EventSource remembers it.
        seen = str(site.store.revision())
    send_steps(site, job, 205)
    with following(site.url, last_event_id=seen) as stream:
        last = 3 + 205
        assert steps + stream.steps(last) == list(range(1, last + 1))


@pytest.mark.parametrize("absurd", ["", "x", "-1", "1.5", "9" * 18, "9" * 400, "٣", "1 OR 1=1"])
def test_an_unknown_last_event_id_starts_with_the_next_commit(site: Served, absurd: str) -> None:
    job = Job(clock=site.clock)
    send_steps(site, job, 2)
    with following(site.url, last_event_id=absurd) as stream:
        send_steps(site, job, 1)
        assert stream.steps(3) == [3]


def test_a_stream_of_one_run_has_no_other_runs(site: Served) -> None:
    mine, other = Job(run="mine", clock=site.clock), Job(run="other", clock=site.clock)
    with following(site.url, "mine") as stream:
        for _ in range(3):
            send_steps(site, other, 1)
            send_steps(site, mine, 1)
        seen = [stream.next("report").data["run"] for _ in range(3)]
        assert seen == ["mine"] * 3


def test_a_stream_may_wait_for_a_run_that_has_not_reported(site: Served) -> None:
    with following(site.url, "later") as stream:
        send_steps(site, Job(run="later", clock=site.clock), 1)
        assert stream.next("run").data["run"] == "later"


def test_a_change_of_health_by_time_alone_is_streamed(site: Served) -> None:
    send_steps(site, Job(clock=site.clock), 1)
    with following(site.url, "lm") as stream:
        assert stream.next("run").data["health"] == "ok"
        site.clock.advance(3600)
        assert stream.next("run").data["health"] == "stale"


def test_a_slow_client_misses_nothing_and_delays_nobody(site: Served) -> None:
    jobs = [Job(run=f"r{number}", clock=site.clock) for number in range(2)]
    # A window so small that the server soon has to wait for its reader.
    small = [(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)]
    with following(site.url, socket_options=small) as slow:
        for _ in range(60):
            for job in jobs:
                for _ in range(20):
                    job.step("applied", 1.0)
                site.send(job.report())
        steps: dict[str, list[int]] = {job.run: [] for job in jobs}
        for _ in range(120):
            data = slow.next("report").data
            steps[data["run"]] += data["steps"]["step"]
    assert steps == {job.run: list(range(1, 1201)) for job in jobs}


def test_an_idle_stream_is_kept_open_by_comments(site: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    assert route.PING_SECONDS == 15.0
    monkeypatch.setattr(route, "PING_SECONDS", 0.05)
    with following(site.url) as stream:
        assert next(iter(stream)).comment == "ping"


def test_too_many_streams_are_refused_until_one_ends(site: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "MOST_STREAMS", 2)
    with following(site.url), following(site.url):
        answer = site.client.get("/v1/stream")
        assert answer.status_code == 503
        assert answer.headers["retry-after"]
    deadline = time.monotonic() + 30
    while site.client.stream("GET", "/v1/stream").__enter__().status_code != 200:
        assert time.monotonic() < deadline


def test_concurrent_requests_do_not_exceed_the_limit_of_streams(site: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "MOST_STREAMS", 3)
    host, port = site.url.removeprefix("http://").split(":")
    with contextlib.ExitStack() as stack:
        asked = [stack.enter_context(socket.create_connection((host, int(port)), timeout=30)) for _ in range(40)]
        for one in asked:
            one.sendall(b"GET /v1/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answered = [one.recv(12).removeprefix(b"HTTP/1.1 ") for one in asked]
    assert (answered.count(b"200"), answered.count(b"503")) == (3, 37)


def test_a_run_event_has_only_the_worst_parameters(site: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "MOST_PARAMETERS", 2)
    job = Job(clock=site.clock)
    for offenders in ({"a": 1, "b": 1, "c": 1}, {"c": 1, "b": 1}, {"c": 1}):
        job.step("skipped_not_finite", "NaN", **offenders)
    site.send(job.report())
    with following(site.url, "lm") as stream:
        run = stream.next("run").data
    whole = site.get("/v1/runs/lm")
    assert [row["parameter"] for row in whole["parameters"]] == ["c", "b", "a"]
    assert run == whole | {"parameters": whole["parameters"][:2], "left_out": whole["left_out"] | {"parameters": 1}}


def test_run_events_have_only_changed_processes(site: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first has all processes, later ones those that changed; merged they equal the answer."""
    monkeypatch.setattr(channel, "RUN_SECONDS", 0.01)
    jobs = [Job(clock=site.clock, process=n, process_count=6, incarnation=f"e{n}", interval=60.0) for n in range(6)]
    apart = {"replicated": False}  # they differ, which must not be the verdict on the run
    for job in jobs[:4]:
        job.step()
        site.send(job.report() | apart)

    def told(stream: Reader, held: dict[int, Any]) -> set[int]:
        """Read on until what is held is what the exporter answers; the processes that came."""
        whole = site.get("/v1/runs/lm")
        came: set[int] = set()
        while True:
            run = stream.next("run").data
            fresh = {row["process"]: row for row in run["processes"]}
            held |= fresh
            came |= set(fresh)
            if run | {"processes": [held[process] for process in sorted(held)]} == whole:
                return came

    held: dict[int, Any] = {}
    with following(site.url, "lm") as stream:
        assert told(stream, held) == {0, 1, 2, 3}
        for reporting in ({2}, {0, 3}, {4}, {1, 4}):
            for process in reporting:
                jobs[process].step("skipped_not_finite", "NaN", w=1)
                site.send(jobs[process].report() | apart)
            assert told(stream, held) == reporting
        site.clock.advance(3600)
        assert told(stream, held) == {0, 1, 2, 3, 4}
        position = str(site.store.revision())
    jobs[5].step()
    site.send(jobs[5].report() | apart)
    with following(site.url, "lm", last_event_id=position) as stream:
        assert told(stream, {}) == {0, 1, 2, 3, 4, 5}, "who comes back remembers nothing"


def test_a_stop_ends_open_streams_cleanly_and_at_once(exporter: RunningExporter) -> None:
    with following(exporter.url) as stream:
        rest: list[Message] = []
        reader = threading.Thread(target=lambda: rest.extend(stream))
        reader.start()
        assert exporter.stop() == 0
        reader.join(30)
        assert not reader.is_alive()
    assert "Traceback" not in exporter.log
    assert "Cancel" not in exporter.log


def test_a_stream_resumes_over_a_crash_of_the_exporter(start_exporter: Callable[..., RunningExporter]) -> None:
    exporter = start_exporter()
    job = Job()

    def send(count: int) -> None:
        for _ in range(count):
            job.step()
            httpx.post(f"{exporter.url}/v1/reports", json=job.report(), trust_env=False).raise_for_status()

    with following(exporter.url) as stream:
        send(3)
        first = stream.next("report")
    exporter.kill9()
    exporter.start()
    send(2)
    with following(exporter.url, last_event_id=first.id) as stream:
        assert first.data["steps"]["step"] + stream.steps(5) == [1, 2, 3, 4, 5]
