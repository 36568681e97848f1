"""POST /v1/reports over a real socket: authorization, limits, and what is counted."""

import asyncio
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
import pytest
from optwrap_exporter.http.routes import reports
from optwrap_exporter.http.routes.reports import LARGEST_BODY
from optwrap_exporter.http.serving import admission, server
from optwrap_exporter.ingest.group_commit import BusyError
from optwrap_exporter.metrics.table import REPORT_OUTCOMES
from optwrap_exporter.settings import parse_address
from optwrap_exporter.store.condition import StoreState, StoreUnavailableError
from optwrap_exporter.wire.answers import Acknowledgement
from optwrap_exporter.wire.step_answers import StepsAnswer
from prometheus_client.parser import text_string_to_metric_families

from tests.exporter.running import Job, Served, served

JSON = {"content-type": "application/json"}


def outcomes(site: Served, since: Mapping[str, int] = MappingProxyType({})) -> dict[str, int]:
    """Reports by outcome, those at zero left out, from a scrape; less those there were before."""
    counted = {
        sample.labels["outcome"]: int(sample.value)
        for family in text_string_to_metric_families(site.scrape())
        for sample in family.samples
        if sample.name == "optwrap_exporter_reports_total"
    }
    assert set(counted) == set(REPORT_OUTCOMES)
    counted = {outcome: count - since.get(outcome, 0) for outcome, count in counted.items()}
    return {outcome: count for outcome, count in counted.items() if count}


def refusal(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    detail = answer.json()["detail"]
    assert all(set(one) == {"field", "value", "allowed"} for one in detail)
    first: dict[str, Any] = detail[0]
    return first


def test_a_report_is_acknowledged_and_the_same_again_changes_nothing(site: Served) -> None:
    job = Job()
    job.step()
    report = job.report()
    first = site.send(report)
    assert first.json() == {"acknowledged": 1, "interval": 1.0}
    before = site.get("/v1/runs/lm")
    assert site.send(report).json() == first.json()
    assert site.get("/v1/runs/lm") == before
    assert outcomes(site) == {"accepted": 1, "duplicate": 1}


def test_the_same_seq_with_other_content_is_a_conflict_and_changes_nothing(site: Served) -> None:
    job = Job()
    job.step()
    site.send(job.report())
    before = site.get("/v1/runs/lm")
    job.step()
    job.seq = 0
    detail = refusal(site.client.post("/v1/reports", json=job.report()), 409)
    assert (detail["field"], detail["value"]) == ("seq", "incarnation e1, seq 1")
    assert site.get("/v1/runs/lm") == before
    assert outcomes(site) == {"accepted": 1, "conflict": 1}


@pytest.mark.parametrize(
    ("content_type", "coding"),
    [("text/plain", None), ("", None), ("application/x-ndjson", None), ("application/json", "gzip")],
)
def test_headers_other_than_plain_json_are_refused(shared: Served, content_type: str, coding: str | None) -> None:
    before = outcomes(shared)
    headers = {"content-type": content_type} | ({"content-encoding": coding} if coding else {})
    detail = refusal(shared.client.post("/v1/reports", content=json.dumps(Job().report()), headers=headers), 415)
    assert detail["field"] == ("Content-Encoding" if coding else "Content-Type")
    assert outcomes(shared, since=before) == {"unsupported_media_type": 1}


def test_a_content_type_may_have_a_charset_and_any_case(shared: Served) -> None:
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    assert shared.client.post("/v1/reports", content=json.dumps(Job().report()), headers=headers).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"\xff\xfe{}",
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"run": "' + b"x" * 3_000_000 + b'"}',
        b"1" * 100_000,
        b'{"seq": 1e999}',
        b'{"run": "\\ud800"}',
        b'{"totals": ' + b"[" * 150 + b"]" * 150 + b"}",
    ],
    ids=lambda body: f"{body[:12]!r}x{len(body)}",
)
def test_hostile_json_is_invalid_and_does_not_stop_the_exporter(shared: Served, body: bytes) -> None:
    before = outcomes(shared)
    refusal(shared.client.post("/v1/reports", content=body, headers=JSON), 422)
    assert outcomes(shared, since=before) == {"invalid": 1}
    shared.send(Job().report())


@pytest.mark.parametrize(
    ("text", "again", "name"),
    [
        ('"seq": 1', '"seq": 1', "seq"),
        ('"applied": 1', '"applied": 0', "applied"),
        ('"a/b": 1', '"a\\u002fb": 1', "a/b"),
        ('"norm": ["NaN"]', '"norm": [1.0]', "norm"),
    ],
)
def test_a_duplicate_key_is_refused(site: Served, text: str, again: str, name: str) -> None:
    """JSON readers differ in which of the two values they take."""
    job = Job()
    job.step("applied", "NaN", a__b=2)
    body = json.dumps(job.report())
    assert text in body
    twice = body.replace(text, f"{again}, {text}", 1)
    detail = refusal(site.client.post("/v1/reports", content=twice, headers=JSON), 422)
    assert (detail["field"], detail["value"]) == (name, "a duplicate key")
    assert outcomes(site) == {"invalid": 1}
    assert site.client.post("/v1/reports", content=body, headers=JSON).status_code == 200


def test_an_invalid_field_is_named_with_its_value_and_what_is_allowed(site: Served) -> None:
    report = Job().report()
    report["run"] = "no spaces"
    detail = refusal(site.client.post("/v1/reports", json=report), 422)
    assert (detail["field"], detail["value"]) == ("run", "no spaces")
    assert "A-Za-z0-9" in detail["allowed"]
    assert site.get("/v1/runs")["items"] == []


def test_a_body_of_four_mebibytes_is_read_and_one_byte_more_is_not(shared: Served) -> None:
    before = outcomes(shared)
    report = json.dumps(Job(run="large").report()).encode()
    exactly = report + b" " * (LARGEST_BODY - len(report))
    assert shared.client.post("/v1/reports", content=exactly, headers=JSON).status_code == 200
    detail = refusal(shared.client.post("/v1/reports", content=exactly + b" ", headers=JSON), 413)
    assert str(LARGEST_BODY) in detail["allowed"]
    assert outcomes(shared, since=before) == {"accepted": 1, "too_large": 1}


def test_a_body_without_a_length_is_cut_off_at_the_limit(shared: Served) -> None:
    before = outcomes(shared)

    def endless() -> Iterator[bytes]:
        for _ in range(200):
            yield b" " * 65_536

    detail = refusal(shared.client.post("/v1/reports", content=endless(), headers=JSON), 413)
    assert detail["field"] == "body"
    assert outcomes(shared, since=before) == {"too_large": 1}


def test_a_length_beyond_the_limit_is_refused_before_a_byte_is_sent(shared: Served) -> None:
    connection = http.client.HTTPConnection(shared.url.removeprefix("http://"), timeout=30)
    connection.putrequest("POST", "/v1/reports")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", str(1 << 40))
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()


def test_a_client_that_disconnects_is_not_counted(site: Served, caplog: pytest.LogCaptureFixture) -> None:
    host, port = site.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as half:
        half.sendall(b"POST /v1/reports HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
        half.sendall(b'Content-Length: 1000\r\n\r\n{"run": ')
    site.send(Job().report())
    assert outcomes(site) == {"accepted": 1}
    assert not [record for record in caplog.records if record.exc_info]


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Served]:
    """An exporter whose reports need a token."""
    with served(tmp_path / "data", token="s3cret") as running:
        yield running


@pytest.mark.parametrize("given", [None, "", "Bearer", "Bearer wrong", "Basic s3cret", "s3cret", "Bearer s3cretx"])
def test_a_missing_or_wrong_token_is_unauthorized_and_never_repeated(guarded: Served, given: str | None) -> None:
    headers = {} if given is None else {"authorization": given}
    answer = guarded.client.post("/v1/reports", json=Job().report(), headers=headers)
    detail = refusal(answer, 401)
    assert detail["field"] == "Authorization"
    assert answer.headers["www-authenticate"] == "Bearer"
    assert "s3cret" not in answer.text
    assert "wrong" not in answer.text
    assert guarded.get("/v1/runs")["items"] == []
    assert outcomes(guarded) == {"unauthorized": 1}


@pytest.mark.parametrize("given", ["Bearer s3cret", "bearer s3cret", "BEARER  s3cret"])
def test_a_report_with_the_token_is_accepted(guarded: Served, given: str) -> None:
    answer = guarded.client.post("/v1/reports", json=Job().report(), headers={"authorization": given})
    assert answer.status_code == 200


def test_an_unauthorized_body_is_not_read(guarded: Served) -> None:
    refusal(guarded.client.post("/v1/reports", content=b"x" * (LARGEST_BODY + 1)), 401)
    refusal(guarded.client.post("/v1/reports", content=b"no json"), 401)


def test_beyond_loopback_reports_need_a_token(tmp_path: Path) -> None:
    with served(tmp_path / "data", listen=(parse_address("0.0.0.0:0"),)) as open_to_all:
        detail = refusal(open_to_all.client.post("/v1/reports", json=Job().report()), 401)
        assert "--token-file" in detail["allowed"]
        assert "--ingest-socket" in detail["allowed"]
        assert outcomes(open_to_all) == {"unauthorized": 1}


def test_forwarded_headers_are_ignored(tmp_path: Path) -> None:
    with served(tmp_path / "data", listen=(parse_address("0.0.0.0:0"),)) as open_to_all:
        forwarded = {
            "x-forwarded-for": "127.0.0.1",
            "forwarded": "for=127.0.0.1;host=localhost",
            "x-real-ip": "127.0.0.1",
        }
        refusal(open_to_all.client.post("/v1/reports", json=Job().report(), headers=forwarded), 401)


def test_a_full_queue_is_429(site: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise BusyError(1.5)

    monkeypatch.setattr(site.ingest, "offer_async", full)
    answer = site.client.post("/v1/reports", json=Job().report())
    refusal(answer, 429)
    assert answer.headers["retry-after"] == "2"
    assert outcomes(site) == {"busy": 1}


def test_a_full_store_is_unavailable(site: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> asyncio.Future[Acknowledgement]:
        answer: asyncio.Future[Acknowledgement] = asyncio.get_running_loop().create_future()
        answer.set_exception(StoreUnavailableError(StoreState("full", why="no room")))
        return answer

    monkeypatch.setattr(site.ingest, "offer_async", refused)
    answer = site.client.post("/v1/reports", json=Job().report())
    found = refusal(answer, 503)
    assert (found["field"], found["value"]) == ("store", "full: no room")
    assert "free disk space" in found["allowed"]
    assert int(answer.headers["retry-after"]) > 0
    assert outcomes(site) == {"unavailable": 1}


def test_the_bytes_of_all_reports_being_received_are_limited(site: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    report = json.dumps(Job().report()).encode()
    monkeypatch.setattr(admission, "MOST_BYTES", len(report))
    first = b"POST /v1/reports HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    host, port = site.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as slow:
        slow.sendall(first + b"Content-Length: 1000\r\n\r\n" + b" " * 900)
        deadline = time.monotonic() + 30
        while (answer := site.client.post("/v1/reports", content=report, headers=JSON)).status_code == 200:
            assert time.monotonic() < deadline, "the slow report was never counted"
        refusal(answer, 429)
        assert int(answer.headers["retry-after"]) > 0
    while site.client.post("/v1/reports", content=report, headers=JSON).status_code != 200:
        assert time.monotonic() < deadline, "what the slow report held was never given free"


def test_a_stalled_body_times_out_and_delays_no_other_report(site: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half-sent reports take all the room for bodies until they time out."""
    report = json.dumps(Job().report()).encode()
    monkeypatch.setattr(admission, "MOST_BYTES", 1000)
    monkeypatch.setattr(reports, "BODY_SECONDS", 0.2)
    first = b"POST /v1/reports HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    host, port = site.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as half:
        half.sendall(first + b"Content-Length: 1000\r\n\r\n" + b" " * 999)
        answer = http.client.HTTPResponse(half, method="POST")
        answer.begin()
        assert answer.status == 408
        assert json.loads(answer.read())["detail"] == [
            {"field": "body", "value": "999 bytes", "allowed": "all of it within 0.2 s"}
        ]
        assert half.recv(1) == b"", "the connection was kept"
        assert site.client.post("/v1/reports", content=report, headers=JSON).status_code == 200
    assert outcomes(site) == {"timed_out": 1, "accepted": 1}


def test_shutdown_waits_for_a_stalled_body_to_time_out() -> None:
    """Its client gets an answer, and no traceback is logged."""
    assert server.GRACE_SECONDS > reports.BODY_SECONDS


def test_a_slow_query_delays_no_report(site: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job()
    site.send(job.report("starting"))
    asked, release = threading.Event(), threading.Event()
    real = site.store.steps

    def slow(*args: Any, **query: Any) -> StepsAnswer:
        asked.set()
        assert release.wait(30)
        return real(*args, **query)

    monkeypatch.setattr(site.store, "steps", slow)
    got: list[int] = []
    query = threading.Thread(target=lambda: got.append(httpx.get(f"{site.url}/v1/runs/lm/steps").status_code))
    query.start()
    assert asked.wait(30)
    for _ in range(3):
        job.step()
        site.send(job.report())
    assert got == []
    release.set()
    query.join()
    assert got == [200]
