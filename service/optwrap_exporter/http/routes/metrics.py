"""GET /metrics: Prometheus' text format, or OpenMetrics on request."""

import time

from fastapi import APIRouter, Request, Response
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import CollectorRegistry

from optwrap_exporter.metrics.own import Statistics


def router(registry: CollectorRegistry, statistics: Statistics) -> APIRouter:
    """The route of /metrics."""
    routes = APIRouter(tags=["operation"])

    @routes.get(
        "/metrics",
        response_class=Response,
        responses={
            200: {"content": {"text/plain": {}, "application/openmetrics-text": {}}, "description": "All metrics."}
        },
    )
    def scrape(request: Request) -> Response:
        """Get every metric, for Prometheus. docs/reference/metrics.md lists them."""
        begun = time.perf_counter()
        accept = ",".join(request.headers.getlist("accept"))
        try:
            encode, content_type = choose_encoder(accept)
        except TypeError:
            # The library fails on a version that is not a number. Every scraper reads the text format.
            encode, content_type = choose_encoder("")
        body = encode(registry)
        statistics.scrape(time.perf_counter() - begun)
        return Response(body, headers={"content-type": content_type})

    return routes
