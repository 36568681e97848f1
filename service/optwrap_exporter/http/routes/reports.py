"""POST /v1/reports: authorization, size limits, and the answers. A plain ASGI route, because it is the hot path."""

import asyncio
import hashlib
import math
from typing import Annotated, Final, NoReturn

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.types import Receive, Scope, Send

from optwrap_exporter.http.authorization import OPTIONAL_TOKEN, TOKEN, Authorization
from optwrap_exporter.http.errors import broken, closed_refusal, refusal, store_refusal
from optwrap_exporter.http.serving.admission import PATH, Admission
from optwrap_exporter.http.serving.connection_timeout import Connection
from optwrap_exporter.ingest.group_commit import BusyError, ConflictError
from optwrap_exporter.ingest.ingest import Ingest
from optwrap_exporter.ledger.bounds import ImplausibleError
from optwrap_exporter.metrics.own import Statistics
from optwrap_exporter.store.condition import StoreUnavailableError
from optwrap_exporter.store.connections import ClosedError
from optwrap_exporter.wire.answers import Acknowledgement
from optwrap_exporter.wire.consistency import parse_report
from optwrap_exporter.wire.duplicate_keys import first_duplicate_key
from optwrap_exporter.wire.errors import ErrorBody, error_details
from optwrap_exporter.wire.requests import Report
from optwrap_exporter.wire.size import MOST_STRUCTURE, OversizeError

LARGEST_BODY: Final = 4 << 20
"""The most bytes of one report."""
BODY_SECONDS: Final = 5.0
"""Seconds in which a body must arrive, so that a stalled client does not hold memory. No client waits longer."""
_ANSWERS: Final = {
    401: "The token is missing or wrong, or this address accepts no reports.",
    408: "The body did not arrive in time.",
    409: "Other content is stored under this incarnation and seq, or the incarnation under another attempt.",
    413: "The body is larger than 4 MiB, or has more than 131,072 of the characters `{ [ , :`.",
    415: "The body is not application/json.",
    422: "A field is invalid, or a count is further from the last one than the time in between allows.",
    429: "Too many reports are waiting, or too many new runs. Retry-After says when to retry.",
    503: "The store stores no reports now, or the exporter is shutting down; Retry-After says when to retry.",
}


class _Refused(Exception):
    """Ends the handling of a report with an answer and an outcome to count."""

    def __init__(self, outcome: str, answer: Response) -> None:
        super().__init__(outcome)
        self.outcome = outcome
        self.answer = answer


class _Disconnected(Exception):
    """The client hung up. Nobody receives an answer, and nothing is counted."""


def router() -> APIRouter:
    """The route as OpenAPI describes it. `ReportRoute` answers its requests."""
    routes = APIRouter(tags=["ingest"])

    @routes.post(
        PATH,
        responses={code: {"model": ErrorBody, "description": text} for code, text in _ANSWERS.items()},
        openapi_extra=OPTIONAL_TOKEN,
    )
    def take_report(report: Report, token: Annotated[object, TOKEN]) -> Acknowledgement:
        """Accept one report of one training process.

        The answer comes when the report is committed. It then survives a crash of the exporter, but not a power cut.
        The same report again changes nothing.
        """
        raise NotImplementedError("ReportRoute answers; this function only describes the route in OpenAPI")

    return routes


class ReportRoute:
    """The ASGI app of POST /v1/reports. It counts every report by its outcome.

    Args:
      authorization: who may report.
      ingest: where reports go.
      admission: decides whether a report is taken.
      statistics: where reports are counted.
    """

    def __init__(
        self, authorization: Authorization, ingest: Ingest, admission: Admission, statistics: Statistics
    ) -> None:
        self._ingest = ingest
        self._admission = admission
        self._statistics = statistics
        self._authorization = authorization

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        try:
            answer = await self._handle(scope, receive)
        except _Refused as refused:
            self._statistics.report(refused.outcome)
            await refused.answer(scope, receive, send)
            return
        except _Disconnected:
            await Response(status_code=400)(scope, receive, send)  # nobody receives it
            return
        except Exception:
            self._statistics.report("unavailable")
            await broken()(scope, receive, send)
            raise  # the server logs it
        self._statistics.report("duplicate" if answer.duplicate else "accepted")
        body = answer.model_dump_json().encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _handle(self, scope: Scope, receive: Receive) -> Acknowledgement:
        if self._admission.full:
            self._refuse_busy()
        headers = dict(reversed(scope["headers"]))  # of several headers of one name the first counts
        self._check(scope, headers)
        if not (store := self._ingest.store_state).ok:  # the body is not worth reading
            raise _Refused("unavailable", store_refusal(store))
        connection: Connection | None = scope["state"].get("connection")
        body = bytearray()
        try:
            if connection is not None and connection.complete:
                await self._read(receive, body)  # it does not wait, so it needs no timeout, which is costly
            else:
                await self._read_in_time(receive, body)
            return await self._take(bytes(body), connection)
        finally:
            self._admission.release(len(body))

    async def _read_in_time(self, receive: Receive, body: bytearray) -> None:
        try:
            async with asyncio.timeout(BODY_SECONDS):
                await self._read(receive, body)
        except TimeoutError:
            allowed = f"all of it within {BODY_SECONDS:g} s"
            answer = refusal(408, "body", f"{len(body)} bytes", allowed, {"Connection": "close"})
            raise _Refused("timed_out", answer) from None

    async def _read(self, receive: Receive, body: bytearray) -> None:
        """Append the request's body to `body`, whose bytes are counted as held."""
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _Disconnected
            part = message.get("body", b"")
            more = message.get("more_body", False)
            body += part
            held = self._admission.hold(len(part))
            if len(body) > LARGEST_BODY:
                raise _too_large(f"more than {LARGEST_BODY} bytes")
            if not held:
                self._refuse_busy()

    async def _take(self, body: bytes, connection: Connection | None) -> Acknowledgement:
        if self._ingest.room <= 0:  # others came while this body arrived
            self._refuse_busy()
        try:
            report = parse_report(body)
        except OversizeError as error:
            allowed = f"at most {MOST_STRUCTURE}, no long number: send fewer step records and parameters in one report"
            raise _Refused("too_large", refusal(413, "body", str(error), allowed)) from None
        except ValidationError as error:
            detail = [one.model_dump() for one in error_details(error)]
            raise _Refused("invalid", JSONResponse({"detail": detail}, 422)) from None
        canonical = report.model_dump_json().encode()
        # The canonical form has each key once. A Monitor sends it, so the second parse is for other clients.
        if body != canonical and (name := first_duplicate_key(body)) is not None:
            raise _Refused("invalid", refusal(422, name, "a duplicate key", "each key once in an object"))
        digest = hashlib.blake2b(canonical, digest_size=16).digest()
        answer: asyncio.Future[Acknowledgement] | None = None
        try:
            answer = self._ingest.offer_async(report, digest, gone=None if connection is None else connection.is_lost)
            return await answer
        except asyncio.CancelledError:
            if answer is not None and answer.cancelled() and connection is not None and connection.is_lost():
                raise _Disconnected from None  # the writer dropped the report
            raise
        except ConflictError as conflict:
            raise _Refused("conflict", refusal(409, conflict.field, conflict.value, conflict.allowed)) from None
        except ImplausibleError as wrong:
            raise _Refused("invalid", refusal(422, wrong.field, wrong.value, wrong.allowed)) from None
        except BusyError as busy:
            self._refuse_busy(busy.retry_after)
        except StoreUnavailableError as error:
            raise _Refused("unavailable", store_refusal(error.state)) from None
        except ClosedError:
            raise _Refused("unavailable", closed_refusal()) from None

    def _check(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        """Refuse a request because of its headers."""
        if (found := self._authorization.problem(scope, headers)) is not None:
            raise _Refused("unauthorized", refusal(*found))
        kind = headers.get(b"content-type", b"")
        if kind != b"application/json" and kind.partition(b";")[0].strip().lower() != b"application/json":
            answer = refusal(415, "Content-Type", kind.decode("latin-1") or None, "application/json")
            raise _Refused("unsupported_media_type", answer)
        coding = headers.get(b"content-encoding", b"identity")
        if coding.strip().lower() != b"identity":
            allowed = "identity: send the JSON uncompressed"
            raise _Refused(
                "unsupported_media_type", refusal(415, "Content-Encoding", coding.decode("latin-1"), allowed)
            )
        announced = headers.get(b"content-length", b"")
        if announced.isdigit() and int(announced) > LARGEST_BODY:
            raise _too_large(f"{announced.decode()} bytes")

    def _refuse_busy(self, at_least: float = 0.0) -> NoReturn:
        headers = {"Retry-After": str(max(math.ceil(at_least), self._admission.retry_after()))}
        raise _Refused("busy", refusal(429, "request", None, "the same report later", headers))


def _too_large(size: str) -> _Refused:
    answer = refusal(413, "body", size, f"at most {LARGEST_BODY} bytes: send fewer step records in one report")
    return _Refused("too_large", answer)
