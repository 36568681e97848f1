"""GET /metrics: text, or OpenMetrics for who asks for it."""

import time

from fastapi import APIRouter, Request, Response
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import CollectorRegistry

from optwrap_exporter.statistics import Statistics


def router(registry: CollectorRegistry, statistics: Statistics) -> APIRouter:
    """The route."""
    routes = APIRouter(tags=["operation"])

    @routes.get(
        "/metrics",
        response_class=Response,
        responses={
            200: {"content": {"text/plain": {}, "application/openmetrics-text": {}}, "description": "All metrics."}
        },
    )
    def scrape(request: Request) -> Response:
        """Every metric, for Prometheus; docs/reference/metrics.md says what each is."""
        begun = time.perf_counter()
        accept = ",".join(request.headers.getlist("accept"))
        try:
            encode, content_type = choose_encoder(accept)
        except TypeError:
            # A version that is no number, which the library compares with one: then what every scraper reads.
            encode, content_type = choose_encoder("")
        body = encode(registry)
        statistics.scrape(time.perf_counter() - begun)
        return Response(body, headers={"content-type": content_type})

    return routes
