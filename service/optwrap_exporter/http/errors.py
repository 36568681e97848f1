"""The form of every HTTP error: `{"detail": [{"field", "value", "allowed"}]}`."""

from collections.abc import Mapping
from typing import Any, Final

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.responses import Response

from optwrap_exporter.store.condition import StoreState, StoreUnavailableError
from optwrap_exporter.store.connections import ClosedError
from optwrap_exporter.wire.errors import ErrorDetail, field_of, shown

STORE_RETRY_SECONDS: Final = 5
"""Retry-After while the store stores no reports, and while the exporter shuts down."""


def item(field: str, value: object, allowed: str) -> dict[str, Any]:
    """One entry of `detail`. The value None is shown as `absent`."""
    received = "absent" if value is None else shown(value)
    return ErrorDetail(field=shown(field), value=received, allowed=allowed).model_dump()


def refusal(
    status: int, field: str, value: object, allowed: str, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """A response that refuses a request because of one field."""
    return JSONResponse({"detail": [item(field, value, allowed)]}, status, headers=dict(headers or {}))


def refused(
    status: int, field: str, value: object, allowed: str, headers: Mapping[str, str] | None = None
) -> HTTPException:
    """The same refusal as an exception to raise from a route."""
    return HTTPException(status, detail=[item(field, value, allowed)], headers=dict(headers or {}))


def store_refusal(state: StoreState) -> JSONResponse:
    """The 503 while the store cannot store or read."""
    value = f"{state.condition}: {state.why}"
    return refusal(503, "store", value, f"ok: {state.remedy}", {"Retry-After": str(STORE_RETRY_SECONDS)})


def closed_refusal() -> JSONResponse:
    """The 503 while the exporter shuts down."""
    allowed = "the same request later: the exporter is shutting down"
    return refusal(503, "request", None, allowed, {"Retry-After": str(STORE_RETRY_SECONDS)})


async def _closed(_: Request, error: Exception) -> Response:
    assert isinstance(error, ClosedError)
    return closed_refusal()


async def _store(_: Request, error: Exception) -> Response:
    assert isinstance(error, StoreUnavailableError)
    return store_refusal(error.state)


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    # The first part of a location is the part of the request: query, path or header. The index of a repeated parameter
    # follows its name.
    detail = [
        item(field_of(one["loc"][1:2]), one["input"], str(one["msg"]).removeprefix("Input should be "))
        for one in error.errors()
    ]
    return JSONResponse({"detail": detail}, 422)


def _with_head(headers: dict[str, str]) -> dict[str, str]:
    """The headers of a 405. Where GET is allowed, so is HEAD."""
    methods = [method.strip() for method in headers.get("Allow", "").split(",") if method.strip()]
    if "GET" in methods and "HEAD" not in methods:
        methods.append("HEAD")
    return {**headers, "Allow": ", ".join(methods)} if methods else headers


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, StarletteHTTPException)
    # The detail of Starlette's own exceptions is text, not a list.
    detail: Any = error.detail
    headers = dict(error.headers or {})
    if not isinstance(detail, list):
        if error.status_code == 404:
            detail = [item("path", request.url.path, "a path that GET /docs lists")]
        elif error.status_code == 405:
            headers = _with_head(headers)
            detail = [item("method", request.method, headers.get("Allow", "another method"))]
        else:
            detail = [item("request", None, str(detail))]
    return JSONResponse({"detail": detail}, error.status_code, headers=headers)


def broken() -> Response:
    """The answer after an error in the exporter. The server logs the traceback. Clients do not see it."""
    return refusal(
        500, "request", None, "no other request helps: this is an error in the exporter, and its log has the details"
    )


async def _broken(_: Request, error: Exception) -> Response:
    del error
    return broken()


def install(app: FastAPI) -> None:
    """Make `app` answer every error in this form."""
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(StarletteHTTPException, _http)
    app.add_exception_handler(StoreUnavailableError, _store)
    app.add_exception_handler(ClosedError, _closed)
    app.add_exception_handler(Exception, _broken)
