"""Asks an exporter what `status` and `watch` show."""

import ssl
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit

import click
import httpx

from optwrap_exporter.cli.text import clean
from optwrap_exporter.wire.errors import ExporterError
from optwrap_exporter.wire.vocabulary import INCIDENT_OF

NORMS: Final = 24
"""Number of steps in the sparkline."""
_PAGE: Final = 500
_MARGIN: Final = 600
"""Seconds. An event of a step has the time of the training, which may be before that of the trouble."""

Json = dict[str, Any]


class UnreachableError(ExporterError, click.ClickException):
    """The URL is invalid, no exporter answers there, or it has no such run. The command exits with 2."""


def connect(url: str, ca_file: Path | None = None) -> httpx.Client:
    """An HTTP client for the exporter at `url`: http(s)://host:port, or unix:///path of its ingest socket.

    Args:
      url: the address.
      ca_file: certificates that https is checked against, in PEM; None for those of the system.

    Raises:
      UnreachableError: `url` has neither form.
      click.BadParameter: the file has no certificate.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    # Ignore proxy settings of the environment: an exporter is on this machine or near it.
    if parts.scheme == "unix" and parts.path:
        transport = httpx.HTTPTransport(uds=unquote(parts.path))
        return httpx.Client(transport=transport, base_url="http://localhost", timeout=5, trust_env=False)
    if parts.scheme in {"http", "https"} and parts.hostname and port != 0:
        trusted = _trusted(ca_file) if parts.scheme == "https" else True
        return httpx.Client(base_url=url, timeout=5, trust_env=False, verify=trusted)
    raise UnreachableError(f"{url!r} is not an exporter's URL: expected http(s)://host:port or unix:///path")


def _trusted(ca_file: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # ssl.SSLError is one
        why = "it has no certificate in PEM" if isinstance(error, ssl.SSLError) else error.strerror
        raise click.BadParameter(f"{ca_file}: {why}", param_hint="--ca-file") from error


class Exporter:
    """The queries of `status` and `watch`."""

    def __init__(self, client: httpx.Client, url: str) -> None:
        self._client = client
        self.url = url

    def _get(self, path: str, **query: str | int | Sequence[str]) -> Json:
        try:
            answer = self._client.get(path, params=query)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            reason = str(error) or type(error).__name__
            raise UnreachableError(
                f"no exporter answers at {self.url} ({reason}): start one, or pass its URL"
            ) from error
        if answer.status_code == 404 and path.startswith("/v1/runs/"):
            raise UnreachableError(f"the exporter at {self.url} has no run {unquote(path.split('/')[3])!r}")
        try:
            body = answer.json() if answer.status_code == 200 else None
        except ValueError:
            body = None
        if not isinstance(body, dict):
            raise UnreachableError(
                f"{self.url}{path} answered {answer.status_code}: expected the answer of an optwrap exporter"
            )
        return body

    def trouble(self) -> str | None:
        """Why the exporter stores no reports, as one line; None while it stores them."""
        try:
            answer = self._client.get("/-/healthy")
            store = answer.json().get("store") if answer.status_code == 503 else None
            if store is None:
                return None
            since = datetime.fromtimestamp(store["since"], UTC)
            what = f"the exporter has stored no reports since {since:%Y-%m-%d %H:%M:%S} UTC"
            why = f"its store is {store['condition']} ({store['why']}): {store['remedy']}"
            return clean(f"{what}: {why}. What follows is of then")
        except (httpx.HTTPError, ValueError, TypeError, KeyError, AttributeError):
            return None  # the next query says that no exporter answers

    def missing(self, run: str | None) -> Json:
        """The answer of /-/drained."""
        return self._get("/-/drained", **({} if run is None else {"run": run}))

    def run(self, name: str) -> Json:
        """The answer of /v1/runs/{run}."""
        return self._get(f"/v1/runs/{quote(name, safe='')}")

    def runs(self, healths: Sequence[str] = (), text: str = "") -> Iterator[Json]:
        """The runs as GET /v1/runs lists them, worst first."""
        query: dict[str, str | int | Sequence[str]] = {"limit": _PAGE, "health": list(healths)}
        if text:
            query["q"] = text
        while True:
            page = self._get("/v1/runs", **query)
            yield from page["items"]
            if not page["cursor"]:
                return
            query["cursor"] = page["cursor"]

    def last_steps(self, run: Json) -> Json:
        """The columns of the run's last steps, by step number. A step that was taken again is there as it was last."""
        path = f"/v1/runs/{quote(run['run'], safe='')}/steps"
        last = run["last_step"] or 0
        columns: Json = self._get(path, since=max(0, last - NORMS + 1), until=last)["columns"]
        newest: dict[int, int] = {}
        for index, step in enumerate(columns["step"]):
            known = newest.get(step)
            if known is None or columns["time"][index] >= columns["time"][known]:
                newest[step] = index
        return {name: [column[index] for index in newest.values()] for name, column in columns.items()}

    def events(self, name: str, limit: int, **query: str | int) -> list[Json]:
        """The last events of a run, newest first. The query can choose a kind, or a time since which."""
        items: list[Json] = self._get(f"/v1/runs/{quote(name, safe='')}/events", limit=limit, **query)["items"]
        return items

    def diagnosis(self, run: Json) -> Json | None:
        """Why a run is in trouble: the last event `diagnosed` of its trouble; None if there is none."""
        since = max(0, int(run["since"]) - _MARGIN)
        found = self.events(run["run"], 1, kind="diagnosed", since=since) if run["health"] in INCIDENT_OF else []
        return found[0] if found else None
