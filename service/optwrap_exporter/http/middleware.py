"""Middleware: checks the Host header, answers HEAD, and sets the security headers."""

import ipaddress
from collections.abc import Container
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from optwrap_exporter.http.errors import refusal
from optwrap_exporter.settings import Settings

HEADERS: Final = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
"""Headers of every answer. There are no Access-Control-* headers: no other origin may read an answer."""

HEAD: Final = "optwrap.head"
"""Is in the scope of a request that is answered as GET, but was HEAD."""
_RAW: Final = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
_NO_STORE: Final = (b"cache-control", b"no-store")


def over_unix_socket(scope: Scope) -> bool:
    """Whether the request came over the ingest socket: the server address is a path without a port."""
    server = scope.get("server")
    return server is not None and server[1] is None and server[0].startswith("/")


def host_name(header: str) -> str | None:
    """The name in a Host header in lower case, without port and brackets; None if the header is malformed."""
    if header.startswith("["):
        name, bracket, port = header[1:].partition("]")
        colon, digits = port[:1], port[1:]
        if not bracket or (port and colon != ":"):
            return None
    else:
        name, colon, digits = header.partition(":")
    if not name or (colon and not (digits.isascii() and digits.isdigit())):
        return None
    return name.lower().rstrip(".")


class HostCheck:
    """Refuses requests whose Host header names another server, against DNS rebinding.

    If evil.example resolves to 127.0.0.1, a browser treats a page of evil.example and this server as one origin, and
    the page could read everything. Its requests still have the Host header evil.example. An IP address cannot be
    rebound, so an exporter that listens on every address accepts any of them. Browsers cannot reach the Unix socket.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._hosts = settings.hosts
        self._any_ip = settings.any_ip
        self._allowed: bytes | None = None
        """The header that was allowed last. Most requests carry the same one."""

    def allows(self, header: str | None) -> bool:
        """Whether a Host header names this server."""
        name = host_name(header) if header is not None else None
        if name is None:
            return False
        if name in self._hosts:
            return True
        if not self._any_ip:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI event."""
        if scope["type"] != "http" or over_unix_socket(scope):
            await self._app(scope, receive, send)
            return
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        raw = hosts[0] if len(hosts) == 1 else None  # of two, a proxy may have looked at the other one
        if raw is not None and raw == self._allowed:
            await self._app(scope, receive, send)
            return
        header = None if raw is None else raw.decode("latin-1")
        if self.allows(header):
            self._allowed = raw
            await self._app(scope, receive, send)
            return
        names = ", ".join(sorted(self._hosts)) + (", any IP address" if self._any_ip else "")
        answer = refusal(421, "Host", header, f"one of {names}; allow more names with --allowed-host")
        await answer(scope, receive, send)


class SecurityHeaders:
    """Adds HEADERS to every answer, and forbids caching unless the route sets Cache-Control."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI event."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", ()), *_RAW]
                if not any(name == b"cache-control" for name, _ in headers):
                    headers.append(_NO_STORE)
                message["headers"] = headers
            await send(message)

        await self._app(scope, receive, send_with_headers)


class Head:
    """Answers HEAD as GET without the body. The server leaves out the body, because it knows the real method.

    A stream has no end, so its route answers HEAD itself.
    """

    def __init__(self, app: ASGIApp, streams: Container[str] = frozenset({"/v1/stream"})) -> None:
        self._app = app
        self._streams = streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI event."""
        if scope["type"] == "http" and scope["method"] == "HEAD" and scope["path"] not in self._streams:
            scope = {**scope, "method": "GET", HEAD: True}
        await self._app(scope, receive, send)
