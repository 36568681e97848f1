"""Who may report, and who may change something: the token, and the Origin of a browser."""

import hmac
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, NamedTuple
from urllib.parse import urlsplit

from fastapi import Depends, Request
from fastapi.security import HTTPBearer
from starlette.types import Scope

from optwrap_exporter.http.errors import refused
from optwrap_exporter.http.middleware import over_unix_socket
from optwrap_exporter.settings import Settings

TOKEN: Final = Depends(HTTPBearer(auto_error=False, scheme_name="token"))
"""Names the token in OpenAPI. It checks nothing: `Authorization` does."""
OPTIONAL_TOKEN: Final[dict[str, Any]] = {"security": [{}]}
"""In OpenAPI: on loopback no token is required."""
_CHALLENGE: Final = {"WWW-Authenticate": "Bearer"}


class Problem(NamedTuple):
    """Why a request is refused: the arguments of `errors.refusal` and `errors.refused`."""

    status: int
    field: str
    value: str | None
    allowed: str
    headers: Mapping[str, str] | None = None


class Authorization:
    """Checks the requests that report or change something.

    Args:
      settings: whether TCP clients may report, and the token that they need.
    """

    def __init__(self, settings: Settings) -> None:
        self._without_token = settings.without_token
        self._closed = bool(settings.closed)
        self._expected = None if settings.token is None else f"Bearer {settings.token}".encode()

    def problem(self, scope: Scope, headers: Mapping[bytes, bytes]) -> Problem | None:
        """The 401 for a request that may not report; None if it may."""
        # The mode of the socket file and its directory decide who may write to it.
        if over_unix_socket(scope):
            return None
        # Nobody else can reach a loopback address. Its listener decides, and not the client's address: an address that
        # stands for every one can be reached over loopback, too.
        if self._without_token and tuple(scope.get("server") or ()) in self._without_token:
            return None
        if self._closed:
            allowed = (
                "no reports and no changes: beyond loopback this exporter needs --token-file to accept them; or send "
                "them over its --ingest-socket"
            )
            return Problem(401, "Authorization", "any", allowed, _CHALLENGE)
        if self._expected is None:
            return None
        given = headers.get(b"authorization")
        if given is not None and hmac.compare_digest(_bearer(given), self._expected):
            return None
        # Never show the value received: it may be a valid token of another exporter.
        received = None if given is None else "another token"
        return Problem(
            401, "Authorization", received, "Bearer and the token in the exporter's --token-file", _CHALLENGE
        )

    def may_change(self) -> Callable[..., None]:
        """The dependency of a route that changes something.

        A page of another origin can make a browser send a request here, with what the browser knows of this origin. The
        browser then names that origin.
        """

        def check(request: Request, token: Annotated[object, TOKEN]) -> None:
            del token
            headers = dict(reversed(request.scope["headers"]))
            found = self.problem(request.scope, headers) or _foreign(headers)
            if found is not None:
                raise refused(*found)

        return check


def _foreign(headers: Mapping[bytes, bytes]) -> Problem | None:
    """The 403 for a request that a browser sends for a page of another origin; None for any other request."""
    origin = headers.get(b"origin")
    if origin is None:  # no browser, or one that follows a link
        return None
    host = headers.get(b"host", b"").decode("latin-1").lower()
    try:
        # A proxy may end TLS, so the scheme need not be this server's.
        of = urlsplit(origin.decode("latin-1").lower()).netloc
    except ValueError:
        of = ""
    if of and of == host:
        return None
    return Problem(403, "Origin", origin.decode("latin-1"), f"the exporter's own page, {host or 'by its Host header'}")


def _bearer(header: bytes) -> bytes:
    """The header with the scheme spelled `Bearer`, because schemes are case-insensitive."""
    scheme, space, token = header.partition(b" ")
    if scheme.lower() == b"bearer":
        scheme = b"Bearer"
    return scheme + space + token.strip()
