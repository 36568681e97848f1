"""GET /metrics: text, or OpenMetrics for who asks for it."""

import time
from typing import Annotated

from fastapi import APIRouter, Header, Response
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
    def scrape(accept: Annotated[str, Header()] = "") -> Response:
        """Every metric, for Prometheus; docs/metrics.md says what each is."""
        begun = time.perf_counter()
        try:
            encode, content_type = choose_encoder(accept)
        except ValueError:
            # A version that is none: what every scraper reads.
            encode, content_type = choose_encoder("")
        body = encode(registry)
        statistics.scrape(time.perf_counter() - begun)
        return Response(body, headers={"content-type": content_type})

    return routes
