"""The routes of /v1: they refuse unknown query parameters, and queries run a few at a time."""

from collections.abc import Callable, Coroutine
from typing import Any, get_origin

from fastapi import Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from optwrap_exporter.http.errors import refused
from optwrap_exporter.http.query.limiter import Limiter

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class StrictRoute(APIRoute):
    """A route that refuses a query parameter that it does not have, or a second value of one that takes one."""

    def get_route_handler(self) -> Handler:
        """FastAPI's handler, after the check."""
        handle = super().get_route_handler()
        known = _parameters(self.dependant)

        async def strict(request: Request) -> Response:
            given = request.query_params.multi_items()
            names = [name for name, _ in given]
            for name, value in given:
                if name not in known:
                    allowed = f"only the parameters {', '.join(sorted(known))}" if known else "no parameter"
                    raise refused(422, name, value, allowed)
                if not known[name] and names.count(name) > 1:
                    raise refused(422, name, value, "this parameter once")
            return await handle(request)

        return strict


def limited(limiter: Limiter) -> type[StrictRoute]:
    """The class of routes of which a few run at a time."""

    class LimitedRoute(StrictRoute):
        def get_route_handler(self) -> Handler:
            handle = super().get_route_handler()

            async def run(request: Request) -> Response:
                return await limiter.run(request, handle)

            return run

    return LimitedRoute


def _parameters(dependant: Dependant) -> dict[str, bool]:
    """The query parameters of a route and of what it depends on, and whether one may be repeated."""
    found = {field.alias: get_origin(field.field_info.annotation) is list for field in dependant.query_params}
    for inner in dependant.dependencies:
        found |= _parameters(inner)
    return found
