"""Streams, queries and scrapes of many clients: what is shared, and what waits."""

import asyncio
import contextlib
import gzip
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import httpx
import pytest
from fastapi import HTTPException, Request, Response
from optwrap_exporter.http import channel as channels
from optwrap_exporter.http.query.limiter import Limiter
from optwrap_exporter.http.routes.metrics import Scraper
from optwrap_exporter.http.scraped import Scraped
from optwrap_exporter.ledger.ledger import Ledger
from optwrap_exporter.metrics.own import Statistics
from optwrap_exporter.metrics.render import OPENMETRICS, TEXT, Format
from optwrap_exporter.store.store import Store

from tests.exporter.running import Job, Served
from tests.exporter.test_stream import Reader, following
from tests.polling import wait_until

WATCHERS = 20


@contextlib.contextmanager
def watching(site: Served, count: int, run: str | None = "lm") -> Iterator[list[Reader]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(following(site.url, run)) for _ in range(count)]


def test_many_watchers_of_a_run_cost_one_reading_and_one_encoding(
    site: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them still gets every step once, in order."""
    job = Job(clock=site.clock)
    job.step()
    site.send(job.report())
    encoded: list[str] = []
    read: list[int] = []
    encode, changes = channels.encoded, Store.changes

    def counted(event: str, *arguments: Any) -> bytes:
        encoded.append(event)
        return encode(event, *arguments)

    def asked(store: Store, after: int, *arguments: Any, **more: Any) -> Any:
        read.append(after)
        return changes(store, after, *arguments, **more)

    with watching(site, WATCHERS) as streams:
        monkeypatch.setattr(channels, "encoded", counted)
        monkeypatch.setattr(Store, "changes", asked)
        for _ in range(40):
            job.step()
            site.send(job.report())
        for stream in streams:
            assert stream.steps(41) == list(range(2, 42))
    assert encoded.count("report") == 40
    assert len(read) <= 40  # not one for each watcher
    assert encoded.count("run") < WATCHERS


def test_a_stream_of_another_run_has_a_channel_of_its_own(site: Served) -> None:
    jobs = {run: Job(run=run, clock=site.clock) for run in ("a", "b")}
    with watching(site, 2, "a") as of_a, watching(site, 2, "b") as of_b, watching(site, 2, None) as of_all:
        for job in jobs.values():
            job.step()
            site.send(job.report())
        for stream, run in [*((one, "a") for one in of_a), *((one, "b") for one in of_b)]:
            assert stream.next("report").data["run"] == run
        for stream in of_all:
            assert {stream.next("report").data["run"] for _ in range(2)} == {"a", "b"}


def test_a_watcher_that_comes_later_gets_what_the_others_get_from_then_on(site: Served) -> None:
    job = Job(clock=site.clock)
    with following(site.url, "lm") as first:
        job.step()
        site.send(job.report())
        assert first.steps(1) == [1]
        with following(site.url, "lm") as second:
            for _ in range(3):
                job.step()
                site.send(job.report())
            assert second.steps(4) == [2, 3, 4]
        assert first.steps(4) == [2, 3, 4]


def test_a_busy_run_makes_a_few_chunks_a_second(site: Served) -> None:
    """The page draws no more often. Every chunk costs a write for each watcher."""

    async def rounds() -> list[bytes]:
        channel = channels.Channel(site.store, site.ledger, "lm")
        start = await channel.start()
        work = asyncio.create_task(channel.work())
        begun = time.monotonic()
        while time.monotonic() < begun + 1.1:
            job.step()
            await anyio.to_thread.run_sync(lambda: site.send(job.report()))
            channel.touch(frozenset({"lm"}))
        work.cancel()
        return [chunk.data for chunk in channel.since(start.number)]

    job = Job(clock=site.clock)
    chunks = asyncio.run(rounds())
    assert 1 <= len(chunks) <= 5
    assert job.state.steps > 2 * len(chunks)


def test_a_stream_of_very_many_runs_begins_with_as_many_as_fit(site: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others come with their next report."""
    for number in range(40):
        site.send(Job(run=f"r{number:02}", clock=site.clock).report())
    monkeypatch.setattr(channels, "ANSWER_BYTES", 20_000)
    job = Job(run="r39", clock=site.clock, incarnation="e2", attempt="a2")
    with following(site.url) as stream:
        shown = []
        for message in stream:
            if message.comment:
                break
            shown.append(message.data["run"])
        assert 1 < len(shown) < 39
        assert message.comment == f"{40 - len(shown)} more runs: GET /v1/runs lists them"
        site.send(job.report())
        assert stream.next("run").data["run"] == "r39"


# --- queries ---


async def settle() -> None:
    """Let every task go on until it waits for something that another one does."""
    for _ in range(100):
        await asyncio.sleep(0)


class Client:
    """A request whose client may hang up."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    def request(self) -> Request:
        return Request({"type": "http", "method": "GET", "path": "/", "headers": []}, self.receive)


def test_a_few_queries_run_at_a_time_and_those_whose_client_left_never_run() -> None:
    async def scenario() -> None:
        limiter = Limiter(at_once=2, most_waiting=3)
        running: list[int] = []
        most = 0
        go_on = asyncio.Event()
        clients = [Client() for _ in range(5)]

        async def query(number: int) -> int:
            async def handle(_: Request) -> Response:
                nonlocal most
                running.append(number)
                most = max(most, len(running))
                await go_on.wait()
                running.remove(number)
                return Response()

            return (await limiter.run(clients[number].request(), handle)).status_code

        tasks = [asyncio.create_task(query(number)) for number in range(5)]
        await settle()
        assert sorted(running) == [0, 1]
        with pytest.raises(HTTPException) as refused:
            await limiter.run(Client().request(), None)  # type: ignore[arg-type]  # it is never called
        assert refused.value.status_code == 503
        clients[3].gone.set()
        await settle()
        assert tasks[3].done()
        go_on.set()
        assert await asyncio.gather(*tasks) == [200, 200, 200, 499, 200]
        assert most == 2
        # Every turn was given back.
        with anyio.fail_after(5):
            for _ in range(3):
                await limiter.run(Client().request(), lambda _: asyncio.sleep(0, Response()))

    asyncio.run(scenario())


def test_many_queries_at_once_are_answered_one_after_the_other(site: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    site.send(Job(clock=site.clock).report())
    running, most = 0, 0
    lock = threading.Lock()
    steps = Store.steps

    def slow(store: Store, *arguments: Any, **more: Any) -> Any:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.02)
        with lock:
            running -= 1
        return steps(store, *arguments, **more)

    monkeypatch.setattr(Store, "steps", slow)
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: httpx.get(f"{site.url}/v1/runs/lm/steps", trust_env=False), range(24)))
    assert {answer.status_code for answer in answers} == {200}
    assert most <= 2


def test_heavy_queries_hold_up_neither_reports_nor_scrapes(site: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before, 40 slow queries took every thread that a scrape could have had."""
    job = Job(clock=site.clock)
    site.send(job.report())
    arrived: list[Request] = []
    go_on = threading.Event()
    run = Limiter.run

    async def counted(limiter: Limiter, request: Request, *arguments: Any) -> Response:
        arrived.append(request)
        return await run(limiter, request, *arguments)

    monkeypatch.setattr(Limiter, "run", counted)
    monkeypatch.setattr(Store, "steps", lambda *_, **__: go_on.wait(30))
    with ThreadPoolExecutor(45) as pool:
        waiting = [
            pool.submit(httpx.get, f"{site.url}/v1/runs/lm/steps", trust_env=False, timeout=60) for _ in range(45)
        ]
        try:
            wait_until(lambda: len(arrived) == 45)
            assert "optwrap_steps_total" in httpx.get(f"{site.url}/metrics", trust_env=False, timeout=10).text
            site.send(job.report())
        finally:
            go_on.set()
        del waiting


# --- scrapes ---


class SlowRenderer:
    """Renders when it is told to."""

    def __init__(self) -> None:
        self.begun: list[tuple[Format, bool]] = []
        self.go_on = threading.Event()
        self.threads: set[str] = set()

    def render(self, shape: Format, *, compress: bool) -> bytes:
        self.begun.append((shape, compress))
        self.threads.add(threading.current_thread().name)
        assert self.go_on.wait(30)
        return f"{len(self.begun)}".encode()


def test_scrapes_wait_for_each_other_and_share_the_next_one() -> None:
    async def scenario() -> None:
        renderer = SlowRenderer()
        scraped = Scraped(Ledger(time.time))
        scraper = Scraper(renderer, Statistics(), scraped)  # type: ignore[arg-type]  # it only renders
        first = asyncio.create_task(scraper.scrape(TEXT, compress=True))
        await asyncio.to_thread(wait_until, lambda: renderer.begun)
        others = [asyncio.create_task(scraper.scrape(TEXT, compress=True)) for _ in range(50)]
        open_metrics = asyncio.create_task(scraper.scrape(OPENMETRICS, compress=False))
        await settle()
        others[0].cancel()  # a client that hangs up takes nothing from the others
        assert renderer.begun == [(TEXT, True)]
        renderer.go_on.set()
        assert (await first).body == b"1"
        assert {(await one).body for one in others[1:]} == {b"2"}
        assert (await open_metrics).body == b"3"
        assert renderer.begun == [(TEXT, True), (TEXT, True), (OPENMETRICS, False)]
        assert len(renderer.threads) == 1

    asyncio.run(scenario())


def test_a_scrape_is_compressed_for_a_client_that_accepts_it(site: Served) -> None:
    site.send(Job(clock=site.clock).report())
    with site.client.stream("GET", "/metrics", headers={"accept-encoding": "gzip"}) as answer:
        packed = b"".join(answer.iter_raw())
    assert answer.headers["content-encoding"] == "gzip"
    plain = site.client.get("/metrics", headers={"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers
    line = b'optwrap_steps_total{process="0",run="lm"} 0.0\n'
    assert line in gzip.decompress(packed)
    assert line in plain.content
    assert len(packed) < len(plain.content) / 4
