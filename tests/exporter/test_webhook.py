"""Incidents are posted as they open and end, again after a failure, and within bounds."""

import http.server
import json
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from optwrap_exporter.ingest import webhook
from optwrap_exporter.ingest.webhook import TRIES, Webhook

from tests.conftest import RunningExporter
from tests.exporter.running import Job, Served
from tests.polling import wait_until

SECRET = "T0-secret"


class Receiver:
    """A server that keeps what it accepts."""

    def __init__(self) -> None:
        self.accepted: list[dict[str, Any]] = []
        self.requests = 0
        self.statuses: list[int] = []
        """What it answers next; then 200."""
        self.free = threading.Event()
        """It answers while this is set."""
        self.free.set()
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                receiver.requests += 1
                receiver.free.wait(30)
                status = receiver.statuses.pop(0) if receiver.statuses else 200
                if status == 200:
                    receiver.accepted.append(message)
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/{SECRET}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def said(self) -> list[tuple[str, str, str]]:
        return [(one["incident"]["run"], one["incident"]["kind"], one["incident"]["state"]) for one in self.accepted]

    def wait(self, count: int) -> None:
        wait_until(lambda: len(self.accepted) >= count, 10, problem=lambda: self.said)


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(webhook, "_LOOK_SECONDS", 0.01)
    made = Receiver()
    yield made
    made.free.set()
    made.server.shutdown()
    made.server.server_close()


@contextmanager
def posting(site: Served, url: str, failed: Callable[[], None] = lambda: None) -> Iterator[None]:
    hook = Webhook(url, site.ledger, link="http://page:1", failed=failed, pause=0.001)
    unsubscribe = site.ingest.subscribe(hook.committed)
    hook.start()
    try:
        yield
    finally:
        unsubscribe()
        hook.close()


def gives_up(site: Served, run: str) -> None:
    job = Job(run, clock=site.clock)
    job.step()
    job.step("accepted_not_finite", "NaN", w=1)
    site.send(job.report())


def test_an_incident_is_posted_when_it_opens_and_when_it_ends(site: Served, receiver: Receiver) -> None:
    gives_up(site, "before")
    with posting(site, receiver.url):
        gives_up(site, "lm")
        receiver.wait(1)
        (listed,) = site.get("/v1/runs/lm/incidents")["items"]
        (message,) = receiver.accepted
        assert message == {
            "text": f"optwrap: lm: gave up, open: {listed['summary']} http://page:1/?run=lm",
            "link": "http://page:1/?run=lm",
            "incident": listed,
        }
        assert site.client.post(f"/v1/incidents/{listed['id']}/acknowledge").status_code == 200
        receiver.wait(2)
    with posting(site, receiver.url):  # what one exporter has posted, the next one does not
        gives_up(site, "vit")
    assert receiver.said == [("lm", "gave_up", state) for state in ("open", "acknowledged")] + [
        ("vit", "gave_up", "open")
    ]


def test_an_incident_that_ends_by_itself_is_posted_as_closed(site: Served, receiver: Receiver) -> None:
    job = Job(clock=site.clock)
    with posting(site, receiver.url):
        job.step("skipped_not_finite", "NaN", w=1)
        site.send(job.report())
        receiver.wait(1)
        for _ in range(101):
            job.step()
        site.send(job.report())
        receiver.wait(2)
    assert receiver.said == [("lm", "skipped", "open"), ("lm", "skipped", "closed")]


def test_a_message_is_repeated_until_it_is_accepted(site: Served, receiver: Receiver) -> None:
    receiver.statuses = [500, 429, 503]
    with posting(site, receiver.url):
        gives_up(site, "lm")
        receiver.wait(1)
    assert (receiver.requests, len(receiver.accepted)) == (4, 1)


@pytest.mark.parametrize(("status", "tries"), [(403, 1), (500, TRIES)])
def test_a_message_that_is_refused_is_given_up_and_the_next_one_is_sent(
    site: Served, receiver: Receiver, caplog: pytest.LogCaptureFixture, status: int, tries: int
) -> None:
    """The log says why, and not to which URL."""
    receiver.statuses = [status] * tries
    failed = threading.Semaphore(0)
    with caplog.at_level(logging.INFO), posting(site, receiver.url, failed.release):
        gives_up(site, "lost")
        assert failed.acquire(timeout=10)
        gives_up(site, "kept")
        receiver.wait(1)
    assert receiver.requests == tries + 1
    assert receiver.said == [("kept", "gave_up", "open")]
    assert f"given up: status {status}" in caplog.text
    assert SECRET not in caplog.text


def test_nobody_waits_for_a_receiver_that_does_not_answer_and_the_oldest_messages_are_given_up(
    site: Served, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook, "MOST_WAITING", 2)
    monkeypatch.setattr(webhook, "_CLOSE_SECONDS", 0.1)
    receiver.free.clear()
    failed = threading.Semaphore(0)
    with posting(site, receiver.url, failed.release):
        gives_up(site, "run-0")
        wait_until(lambda: receiver.requests, 10)
        for number in range(1, 5):
            gives_up(site, f"run-{number}")
        receiver.free.set()
        for _ in range(2):
            assert failed.acquire(timeout=10)
        receiver.wait(3)
    assert [run for run, _, _ in receiver.said] == ["run-0", "run-3", "run-4"]


def test_a_receiver_that_does_not_exist_ends_nothing(site: Served, receiver: Receiver) -> None:
    receiver.server.server_close()
    failed = threading.Semaphore(0)
    with posting(site, receiver.url, failed.release):
        gives_up(site, "lm")
        assert failed.acquire(timeout=10)
    assert site.get("/v1/runs/lm")["health"] == "gave_up"


def test_an_exporter_that_stops_has_written_every_event_and_posted_every_incident(
    start_exporter: Callable[..., RunningExporter], tmp_path: Path, receiver: Receiver
) -> None:
    path = tmp_path / "events.jsonl"
    exporter = start_exporter("--event-log", str(path), "--webhook", receiver.url)
    job = Job()
    job.step("accepted_not_finite", "NaN", w=1)
    assert httpx.post(f"{exporter.url}/v1/reports", json=job.report("failed"), trust_env=False).status_code == 200
    assert exporter.stop() == 0
    kinds = [json.loads(line)["kind"] for line in path.read_text().splitlines()]
    assert kinds == ["started", "streak_started", "accepted_not_finite", "failed"]
    assert sorted(receiver.said) == [("lm", "failed", "open"), ("lm", "gave_up", "open")]
    assert receiver.accepted[0]["link"] == f"{exporter.url}/?run=lm"
    assert SECRET not in exporter.log
