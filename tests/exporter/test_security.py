"""The host names that a request may use, and the security headers of every answer."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optwrap_exporter.http.middleware import HEADERS, HostCheck, SecurityHeaders, host_name
from optwrap_exporter.settings import Settings, parse_address
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route


def check(listen: str, *allowed: str) -> HostCheck:
    return HostCheck(Starlette(), Settings((parse_address(listen),), Path("unused"), allowed_hosts=allowed))


@pytest.mark.parametrize(
    "header", ["localhost", "LOCALHOST:10425", "127.0.0.1:1", "[::1]:10425", "[::1]", "localhost."]
)
def test_loopback_names_are_always_allowed(header: str) -> None:
    for listen in ("127.0.0.1:1", "0.0.0.0:1", "metrics.example:1"):
        assert check(listen).allows(header)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        ":80",
        "evil.example",
        "localhost.evil.example",
        "localhost:80:80",
        "[::1",
        "127.0.0.1@evil.example",
        "10.0.0.9",
    ],
)
def test_other_names_are_refused_on_loopback(header: str | None) -> None:
    assert not check("127.0.0.1:10425").allows(header)


def test_a_wildcard_address_allows_every_ip_address_and_no_unknown_name() -> None:
    everywhere = check("0.0.0.0:10425", "exporter.monitoring")
    assert everywhere.allows("10.1.2.3:10425")
    assert everywhere.allows("[fd00::7]:10425")
    assert everywhere.allows("exporter.monitoring:10425")
    assert not everywhere.allows("evil.example:10425")


def test_the_listen_name_and_allowed_names_are_allowed() -> None:
    assert check("192.0.2.7:1").allows("192.0.2.7:1")
    assert not check("192.0.2.7:1").allows("192.0.2.8:1")
    assert check("127.0.0.1:1", "train.example").allows("Train.Example")


@given(st.text(max_size=40))
def test_any_host_header_is_allowed_only_if_its_name_is(header: str) -> None:
    name = host_name(header)
    assert check("127.0.0.1:1").allows(header) == (name in {"localhost", "127.0.0.1", "::1"})


Get = Callable[..., httpx.Response]


@pytest.fixture
def get() -> Get:
    routes = [
        Route("/plain", lambda _: PlainTextResponse("x")),
        Route("/kept", lambda _: PlainTextResponse("x", headers={"cache-control": "no-cache"})),
    ]
    app = Starlette(routes=routes)
    app.add_middleware(HostCheck, settings=Settings((parse_address("127.0.0.1:1"),), Path("unused")))
    app.add_middleware(SecurityHeaders)

    def ask(path: str, **headers: str) -> httpx.Response:
        async def asked() -> httpx.Response:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
                return await client.get(path, headers=headers)

        return asyncio.run(asked())

    return ask


def test_every_answer_has_the_security_headers_also_a_refusal(get: Get) -> None:
    for answer in (get("/plain"), get("/no"), get("/plain", host="evil.example")):
        assert {name: answer.headers[name] for name in HEADERS} == HEADERS
        assert answer.headers["cache-control"] == "no-store"
        assert not [name for name in answer.headers if name.startswith("access-control")]
    assert get("/kept").headers["cache-control"] == "no-cache"


def test_a_rebound_host_name_is_refused_and_quoted(get: Get) -> None:
    answer = get("/plain", host="evil.example:10425")
    assert answer.status_code == 421
    (detail,) = answer.json()["detail"]
    assert (detail["field"], detail["value"]) == ("Host", "evil.example:10425")
    assert "--allowed-host" in detail["allowed"]


def test_the_content_security_policy_forbids_other_origins() -> None:
    directives = dict(part.split(" ", 1) for part in HEADERS["content-security-policy"].split("; "))
    assert directives.pop("default-src") == "'none'"
    assert set(" ".join(directives.values()).split()) <= {"'self'", "'none'", "data:"}
    assert "data:" not in directives["script-src"]
