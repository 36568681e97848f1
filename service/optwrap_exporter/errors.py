"""Every error an HTTP client can get, in one form: `{"detail": [{"field", "value", "allowed"}]}`."""

from collections.abc import Mapping
from typing import Any, Final

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.responses import Response

SHOWN: Final = 200
"""Characters of a received value that an error message repeats."""


def shown(value: object) -> object:
    """`value` as an error message may repeat it: JSON that is finite, shallow and short."""
    if value is None or isinstance(value, (bool, int)):
        text = value if abs(value or 0) < 1 << 63 else str(value)[:SHOWN]
        return text
    text = value if isinstance(value, str) else repr(value)
    # A lone surrogate cannot be encoded.
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."


def item(field: str, value: object, allowed: str) -> dict[str, Any]:
    """One entry of `detail`."""
    return {"field": field, "value": shown(value), "allowed": allowed}


def refusal(
    status: int, field: str, value: object, allowed: str, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """The answer that refuses a request because of one field."""
    return JSONResponse({"detail": [item(field, value, allowed)]}, status, headers=dict(headers or {}))


def refused(status: int, field: str, value: object, allowed: str) -> HTTPException:
    """The same as an exception, to raise from a route."""
    return HTTPException(status, detail=[item(field, value, allowed)])


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    detail = [
        item(
            ".".join(str(part) for part in problem["loc"][1:]) or str(problem["loc"][0]),
            problem["input"],
            problem["msg"],
        )
        for problem in error.errors()
    ]
    return JSONResponse({"detail": detail}, 422)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, StarletteHTTPException)
    detail: Any = error.detail
    if error.status_code == 404 and not isinstance(detail, list):
        detail = [item("path", request.url.path, "a path listed by GET /docs")]
    elif error.status_code == 405 and not isinstance(detail, list):
        allowed = (error.headers or {}).get("Allow", "another method")
        detail = [item("method", request.method, allowed)]
    elif not isinstance(detail, list):
        detail = [item("request", None, str(detail))]
    return JSONResponse({"detail": detail}, error.status_code, headers=dict(error.headers or {}))


def install(app: FastAPI) -> None:
    """Make `app` answer every error in that form."""
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(StarletteHTTPException, _http)
