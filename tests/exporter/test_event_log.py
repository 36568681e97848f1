"""The event log: exactly the committed events, as JSON lines, without holding reports up."""

import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from optwrap_exporter.ingest import event_log
from optwrap_exporter.ingest.event_log import STDOUT, EventLog, EventLogError

from tests.exporter.running import Job, Served
from tests.polling import wait_until


@contextmanager
def logging_to(site: Served, place: Path | str, failed: Callable[[], None] = lambda: None) -> Iterator[None]:
    log = EventLog(site.store, str(place), failed)
    unsubscribe = site.ingest.subscribe(log.committed)
    log.start()
    try:
        yield
    finally:
        unsubscribe()
        log.close()


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def train(site: Served, *runs: str, rounds: int = 3) -> None:
    """Two processes of each run report the same events, which are listed once."""
    jobs = [Job(run, process=index, process_count=2, clock=site.clock) for run in runs for index in (0, 1)]
    for number in range(rounds):
        for job in jobs:
            job.step("skipped_not_finite", "NaN", w=1)
            job.step()
            site.send(job.report("failed" if number == rounds - 1 else "running"))


def listed(site: Served) -> list[dict[str, Any]]:
    """The events of the API, oldest first."""
    found: list[dict[str, Any]] = site.get("/v1/events", limit=1000)["items"]
    return found[::-1]


def test_the_log_has_the_events_of_the_api_in_the_order_of_commits(site: Served, tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    train(site, "before")  # an event log that is new begins with the next event
    before = listed(site)
    with logging_to(site, path):
        train(site, "lm", "vit")
    logged = lines(path)
    revisions = [one.pop("revision") for one in logged]
    assert revisions == sorted(revisions)
    assert logged == listed(site)[len(before) :]
    assert len(logged) > 10
    assert list(logged[0]) == ["id", "run", "process", "kind", "time", "step", "attempt", "detail", "time_rfc3339"]


@pytest.mark.parametrize("torn", ["", '{"revision": 3, "id', "no JSON at all\n"])
def test_a_log_is_continued_after_its_last_line(site: Served, tmp_path: Path, torn: str) -> None:
    """What was committed while nobody wrote it follows, and a line that a crash cut off is written again."""
    path = tmp_path / "events.jsonl"
    with logging_to(site, path):
        train(site, "one")
    train(site, "two")
    if torn.endswith("\n"):  # whoever wrote that, nobody knows what came before it
        path.write_text(torn)
        with logging_to(site, path):
            train(site, "three")
        assert {one["run"] for one in lines_of(path.read_text().removeprefix(torn))} == {"three"}
        return
    with path.open("a") as file:
        file.write(torn)
    with logging_to(site, path):
        train(site, "three")
    assert [one["id"] for one in lines(path)] == [one["id"] for one in listed(site)]


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_file_that_was_moved_away_is_created_again(site: Served, tmp_path: Path) -> None:
    path, old = tmp_path / "events.jsonl", tmp_path / "events.jsonl.1"
    with logging_to(site, path):
        train(site, "one")
        wait_until(lambda: path.exists() and len(lines(path)) == len(listed(site)), 10)
        path.rename(old)
        train(site, "two")
    assert [one["id"] for one in lines(old) + lines(path)] == [one["id"] for one in listed(site)]


def test_a_failure_is_counted_and_logged_once_and_no_event_is_missing(
    site: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(event_log, "_RETRY_SECONDS", 0.01)
    folder = tmp_path / "logs"
    folder.mkdir()
    path, failures = folder / "events.jsonl", threading.Semaphore(0)
    with caplog.at_level(logging.INFO, event_log.__name__), logging_to(site, path, failures.release):
        folder.rename(tmp_path / "away")
        train(site, "lm")
        for _ in range(3):
            assert failures.acquire(timeout=10)
        (tmp_path / "away").rename(folder)
        wait_until(lambda: path.exists() and len(lines(path)) == len(listed(site)), 10)
    assert [record.levelname for record in caplog.records if record.name == event_log.__name__] == ["WARNING", "INFO"]
    assert [one["id"] for one in lines(path)] == [one["id"] for one in listed(site)]


def test_a_pipe_that_nobody_reads_holds_up_neither_reports_nor_the_end(
    site: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_log, "_CLOSE_SECONDS", 0.01)
    stuck, read = threading.Event(), threading.Event()
    got: list[bytes] = []

    def write(number: int, data: bytes) -> int:
        assert number == 1
        stuck.set()
        assert read.wait(30)
        got.append(data[:7])
        return len(data[:7])

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", write)
        with logging_to(site, STDOUT):
            train(site, "lm")
            assert stuck.wait(30)
            train(site, "vit")
            expected = listed(site)
        read.set()  # the close has given up; the thread goes on for as long as the process
        wait_until(lambda: b"".join(got).count(b"\n") == len(expected), 10)
    assert [one["id"] for one in lines_of(b"".join(got).decode())] == [one["id"] for one in expected]


def test_a_file_that_cannot_be_written_is_refused_at_start(site: Served, tmp_path: Path) -> None:
    with pytest.raises(EventLogError, match=f"--event-log {tmp_path}: Is a directory"):
        EventLog(site.store, str(tmp_path), lambda: None)
