"""GET /metrics: Prometheus' text format, or OpenMetrics on request, compressed with gzip if the client accepts it."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from fastapi import APIRouter, Request, Response
from prometheus_client.exposition import choose_encoder, gzip_accepted
from starlette.background import BackgroundTask

from optwrap_exporter.http.middleware import HEAD
from optwrap_exporter.http.scraped import Scraped
from optwrap_exporter.metrics.own import Statistics
from optwrap_exporter.metrics.render import OPENMETRICS, TEXT, Format, Renderer


class Scrape(NamedTuple):
    """The body of an answer."""

    body: bytes
    revision: int
    """It shows at least this revision of the store."""


class Scraper:
    """Renders scrapes in a thread of its own, so that no other request can hold one up.

    It renders one scrape at a time. Clients that wait for the same format share the next scrape, so at most one scrape
    of each format waits, however many clients ask.
    """

    def __init__(self, renderer: Renderer, statistics: Statistics, scraped: Scraped) -> None:
        self._renderer = renderer
        self._statistics = statistics
        self._scraped = scraped
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="optwrap-metrics")
        self._next: dict[tuple[Format, bool], asyncio.Future[Scrape]] = {}
        """By format, the scrape that has not begun."""

    async def scrape(self, shape: Format, *, compress: bool) -> Scrape:
        """A scrape that begins now or later. Call it in the event loop."""
        key = (shape, compress)
        if key not in self._next:
            loop = asyncio.get_running_loop()

            def render() -> Scrape:
                loop.call_soon_threadsafe(self._next.pop, key, None)
                begun, revision = time.perf_counter(), self._scraped.revision
                body = self._renderer.render(shape, compress=compress)
                self._statistics.scrape(time.perf_counter() - begun)
                return Scrape(body, revision)

            self._next[key] = loop.run_in_executor(self._thread, render)
        return await asyncio.shield(self._next[key])  # a client that hangs up does not end the scrape of the others


def router(renderer: Renderer, statistics: Statistics, scraped: Scraped) -> APIRouter:
    """The route of /metrics."""
    routes = APIRouter(tags=["operation"])
    scraper = Scraper(renderer, statistics, scraped)

    @routes.get(
        "/metrics",
        response_class=Response,
        responses={
            200: {"content": {"text/plain": {}, "application/openmetrics-text": {}}, "description": "All metrics."}
        },
    )
    async def scrape(request: Request) -> Response:
        """Get every metric, for Prometheus. docs/reference/metrics.md lists them."""
        compress = gzip_accepted(",".join(request.headers.getlist("accept-encoding")))
        shape = _accepted(",".join(request.headers.getlist("accept")))
        headers = {"content-type": shape.content_type, "vary": "Accept, Accept-Encoding"}
        if compress:
            headers["content-encoding"] = "gzip"
        scrape = await scraper.scrape(shape, compress=compress)

        async def sent() -> None:
            connection = request.scope.get("state", {}).get("connection")
            if HEAD not in request.scope and not (connection is not None and connection.is_lost()):
                scraped.complete(scrape.revision)

        return Response(scrape.body, headers=headers, background=BackgroundTask(sent))

    return routes


def _accepted(header: str) -> Format:
    """The format for an Accept header. Every scraper reads the text format."""
    try:
        _, content_type = choose_encoder(header)
    except TypeError:  # the library fails on a version that is not a number
        return TEXT
    return OPENMETRICS if content_type.startswith("application/openmetrics-text") else TEXT
