"""POST /v1/reports: authorization, size limits, and the answers."""

import asyncio
import hmac
import math
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from pydantic import ValidationError
from starlette.requests import ClientDisconnect

from optwrap_exporter.http.errors import refusal
from optwrap_exporter.http.middleware import over_unix_socket
from optwrap_exporter.ingest import BusyError, ClosedError, ConflictError, Ingest
from optwrap_exporter.metrics.own import Statistics
from optwrap_exporter.settings import Settings
from optwrap_exporter.store.store import StoreFullError
from optwrap_exporter.wire.answers import Acknowledgement
from optwrap_exporter.wire.consistency import parse_report
from optwrap_exporter.wire.duplicate_keys import first_duplicate_key
from optwrap_exporter.wire.errors import ErrorBody, error_details
from optwrap_exporter.wire.requests import Report
from optwrap_exporter.wire.size import MOST_STRUCTURE, OversizeError

LARGEST_BODY: Final = 4 << 20
"""The most bytes of one report."""
MOST_BYTES: Final = 64 << 20
"""The most bytes of all reports being received. Beyond it clients get 429."""
BODY_SECONDS: Final = 5.0
"""Seconds in which a body must arrive, so that a stalled client does not hold memory. No client waits longer."""
FULL_RETRY_SECONDS: Final = 5
"""Retry-After while the store is full."""

_ANSWERS: Final = {
    401: "The token is missing or wrong, or this address accepts no reports.",
    408: "The body did not arrive in time.",
    409: "Other content is stored under this incarnation and seq, or the incarnation under another attempt.",
    413: "The body is larger than 4 MiB, or has more than 131,072 of the characters `{ [ , :`.",
    415: "The body is not application/json.",
    422: "A field is invalid.",
    429: "Too many reports are waiting. Retry-After says when to retry.",
    503: "The store has no room even for the totals, or the exporter is shutting down; Retry-After says when to retry.",
}


class _Refused(Exception):
    """Ends the handling of a report with an answer and an outcome to count."""

    def __init__(self, outcome: str, answer: Response) -> None:
        super().__init__(outcome)
        self.outcome = outcome
        self.answer = answer


def router(settings: Settings, ingest: Ingest, statistics: Statistics) -> APIRouter:
    """The route of reports. It counts every report by its outcome."""
    inbox = _Inbox(settings)

    async def handle(request: Request) -> Response:
        try:
            body = await inbox.receive(request)
            answer = await _take(body, ingest)
        except _Refused as refused:
            statistics.report(refused.outcome)
            return refused.answer
        except ClientDisconnect:
            return Response(status_code=400)  # nobody receives it
        except Exception:
            # An error in the exporter, answered with 500. It is counted like the others.
            statistics.report("unavailable")
            raise
        statistics.report("duplicate" if answer.duplicate else "accepted")
        return Response(answer.model_dump_json(), media_type="application/json")

    class ReportRoute(APIRoute):
        """Reads the body itself, to limit it while it arrives and to parse it once."""

        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            return handle

    routes = APIRouter(route_class=ReportRoute, tags=["ingest"])

    @routes.post(
        "/v1/reports",
        responses={code: {"model": ErrorBody, "description": text} for code, text in _ANSWERS.items()},
        openapi_extra={"security": [{}]},  # or none: on loopback no token is required
    )
    def take_report(
        report: Report, token: Annotated[object, Depends(HTTPBearer(auto_error=False, scheme_name="token"))]
    ) -> Acknowledgement:
        """Accept one report of one training process.

        The answer comes when the report is committed. It then survives a crash of the exporter, but not a power cut.
        The same report again changes nothing.
        """
        raise NotImplementedError("ReportRoute answers; this function only describes the route in OpenAPI")

    return routes


async def _take(body: bytes, ingest: Ingest) -> Acknowledgement:
    try:
        report = parse_report(body)
    except OversizeError as error:
        allowed = f"at most {MOST_STRUCTURE}: send fewer step records and parameters in one report"
        raise _Refused("too_large", refusal(413, "body", str(error), allowed)) from None
    except ValidationError as error:
        detail = [one.model_dump() for one in error_details(error)]
        raise _Refused("invalid", JSONResponse({"detail": detail}, 422)) from None
    if (name := first_duplicate_key(body)) is not None:
        raise _Refused("invalid", refusal(422, name, "a duplicate key", "each key once in an object"))
    try:
        return await asyncio.wrap_future(ingest.offer(report))
    except ConflictError as conflict:
        answer = refusal(409, conflict.field, conflict.value, conflict.allowed)
        raise _Refused("conflict", answer) from None
    except BusyError as busy:
        seconds = math.ceil(busy.retry_after)
        answer = refusal(429, "request", None, "the same report later", {"Retry-After": str(seconds)})
        raise _Refused("busy", answer) from None
    except (StoreFullError, ClosedError) as error:
        allowed = "the same report later: " + (
            "the exporter is shutting down"
            if isinstance(error, ClosedError)
            else "the store has no room, not even for the totals"
        )
        answer = refusal(503, "request", None, allowed, {"Retry-After": str(FULL_RETRY_SECONDS)})
        raise _Refused("unavailable", answer) from None


class _Inbox:
    """Receives bodies: checks authorization and content type, and enforces the limits."""

    def __init__(self, settings: Settings) -> None:
        self._open = settings.tcp_ingest
        self._expected = None if settings.token is None else f"Bearer {settings.token}".encode()
        self._held = 0

    async def receive(self, request: Request) -> bytes:
        self._authorize(request)
        kind = request.headers.get("content-type", "")
        if kind.partition(";")[0].strip().lower() != "application/json":
            answer = refusal(415, "Content-Type", kind or None, "application/json")
            raise _Refused("unsupported_media_type", answer)
        coding = request.headers.get("content-encoding", "identity")
        if coding.strip().lower() != "identity":
            answer = refusal(415, "Content-Encoding", coding, "identity: send the JSON uncompressed")
            raise _Refused("unsupported_media_type", answer)
        announced = request.headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > LARGEST_BODY:
            raise self._too_large(f"{announced} bytes")
        return await self._read(request)

    async def _read(self, request: Request) -> bytes:
        received = 0
        parts: list[bytes] = []
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for part in request.stream():
                    received += len(part)
                    self._held += len(part)
                    if received > LARGEST_BODY:
                        raise self._too_large(f"more than {LARGEST_BODY} bytes")
                    if self._held > MOST_BYTES:
                        answer = refusal(429, "request", None, "the same report later", {"Retry-After": "1"})
                        raise _Refused("busy", answer)
                    parts.append(part)
        except TimeoutError:
            allowed = f"all of it within {BODY_SECONDS:g} s"
            answer = refusal(408, "body", f"{received} bytes", allowed, {"Connection": "close"})
            raise _Refused("timed_out", answer) from None
        finally:
            self._held -= received
        return b"".join(parts)

    def _authorize(self, request: Request) -> None:
        # The mode of the socket file and its directory decide who may write to it.
        if over_unix_socket(request.scope):
            return
        if not self._open:
            allowed = (
                "no reports: beyond loopback this exporter needs --token-file to accept reports; or report over its "
                "--ingest-socket"
            )
            raise _Refused(
                "unauthorized", refusal(401, "Authorization", "any", allowed, {"WWW-Authenticate": "Bearer"})
            )
        if self._expected is None:
            return
        given = request.headers.get("authorization")
        if given is None or not hmac.compare_digest(_bearer(given), self._expected):
            # Never show the value received: it may be a valid token of another exporter.
            received = None if given is None else "another token"
            allowed = "Bearer and the token in the exporter's --token-file"
            answer = refusal(401, "Authorization", received, allowed, {"WWW-Authenticate": "Bearer"})
            raise _Refused("unauthorized", answer)

    def _too_large(self, size: str) -> _Refused:
        answer = refusal(413, "body", size, f"at most {LARGEST_BODY} bytes: send fewer step records in one report")
        return _Refused("too_large", answer)


def _bearer(header: str) -> bytes:
    """The header as bytes, with the scheme spelled `Bearer`, because schemes are case-insensitive."""
    scheme, space, token = header.partition(" ")
    if scheme.lower() == "bearer":
        scheme = "Bearer"
    return f"{scheme}{space}{token.strip()}".encode("utf-8", "surrogatepass")
