"""The commands `status` and `watch`: show the runs of an exporter in a terminal."""

import json
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit

import click
import httpx
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from optwrap_exporter.cli.render import EVENTS, NORMS, clean, draw, in_trouble

HEALTHY: Final = frozenset({"ok", "starting", "skipping", "finished"})
"""Health that needs no action. `skipping` becomes `starved` or `gave_up` if the wrapper does not recover."""

_WATCHED: Final = 20
"""Runs that `watch` shows: those that reported last."""

Json = dict[str, Any]


class Unreachable(click.ClickException):
    """No exporter answers at the URL."""


def connect(url: str) -> httpx.Client:
    """An HTTP client for the exporter at `url`: http://host:port, or unix:///path of its ingest socket.

    Raises:
      Unreachable: `url` has neither form.
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
        return httpx.Client(base_url=url, timeout=5, trust_env=False)
    raise Unreachable(f"{url!r} is not an exporter's URL: expected http://host:port or unix:///path")


class Exporter:
    """The queries of `status` and `watch`."""

    def __init__(self, client: httpx.Client, url: str) -> None:
        self._client = client
        self._url = url

    def _get(self, path: str, **query: str | int) -> Json:
        try:
            answer = self._client.get(path, params=query)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            reason = str(error) or type(error).__name__
            raise Unreachable(f"no exporter answers at {self._url} ({reason}): start one, or pass its URL") from error
        if answer.status_code == 404 and path.startswith("/v1/runs/"):
            raise Unreachable(f"the exporter at {self._url} has no run {unquote(path.split('/')[3])!r}")
        try:
            body = answer.json() if answer.status_code == 200 else None
        except ValueError:
            body = None
        if not isinstance(body, dict):
            raise Unreachable(
                f"{self._url}{path} answered {answer.status_code}: expected the answer of an optwrap exporter"
            )
        return body

    def _items(self, path: str) -> Iterator[Json]:
        cursor: str | None = None
        while True:
            page = self._get(path, **({"cursor": cursor} if cursor else {}))
            yield from page["items"]
            cursor = page["cursor"]
            if not cursor:
                return

    def trouble(self) -> str | None:
        """Why the exporter stores no reports, as one line; None while it stores them."""
        try:
            answer = self._client.get("/-/healthy")
            store = answer.json().get("store") if answer.status_code == 503 else None
            if store is None:
                return None
            since = datetime.fromtimestamp(store["since"], UTC)
            said = f"the exporter has stored no reports since {since:%Y-%m-%d %H:%M:%S} UTC"
            return clean(f"{said}: its store is {store['condition']} ({store['why']}): {store['remedy']}")
        except (httpx.HTTPError, ValueError, TypeError, KeyError, AttributeError):
            return None  # the next query says that no exporter answers

    def run(self, name: str) -> Json:
        """The answer of /v1/runs/{run}."""
        return self._get(f"/v1/runs/{quote(name, safe='')}")

    def runs(self, only: str | None, most: int | None = None) -> list[Json]:
        """Details of all runs, of one run, or of the `most` runs that reported last."""
        if only is not None:
            return [self.run(only)]
        listed = sorted(self._items("/v1/runs"), key=lambda run: -float(run["last_report"] or 0))
        return [self.run(run["run"]) for run in listed[:most]]

    def last_steps(self, run: Json) -> Json:
        """The columns of the run's last steps, by step number."""
        last = int(run["state_totals"]["steps"])
        path = f"/v1/runs/{quote(run['run'], safe='')}/steps"
        columns: Json = self._get(path, since=max(0, last - NORMS + 1))["columns"]
        return columns

    def events(self, name: str, **query: str | int) -> list[Json]:
        """The last events of a run, newest first, filtered by `query`."""
        items: list[Json] = self._get(f"/v1/runs/{quote(name, safe='')}/events", **query)["items"]
        return items

    def beginning(self, name: str) -> list[Json]:
        """The event that started the run's last streak; empty if there was no streak."""
        return self.events(name, kind="streak_started", limit=1)


def show_status(url: str, run: str | None, as_json: bool) -> int:
    """Print every run, or one, to standard output. Returns 0 if all are healthy and reports are stored, else 1.

    Raises:
      Unreachable: no exporter answers, or the run is unknown.
    """
    with connect(url) as client:
        exporter = Exporter(client, url)
        runs = exporter.runs(run)
        trouble = exporter.trouble()
        if trouble is not None and as_json:
            click.echo(trouble, err=True)
        if as_json:
            click.echo(json.dumps(runs[0] if run is not None else runs))
        else:
            console = Console()
            console.print(_look(exporter, runs, console.width, trouble))
    return 0 if trouble is None and all(one["health"] in HEALTHY for one in runs) else 1


def watch_runs(url: str, run: str | None, interval: float) -> None:
    """Show the runs until Ctrl-C, with a query every `interval` seconds. The exporter may restart meanwhile.

    Raises:
      Unreachable: no exporter answers the first time.
    """
    with connect(url) as client:
        exporter = Exporter(client, url)
        console = Console()

        def look() -> RenderableType:
            return _look(exporter, exporter.runs(run, _WATCHED), console.width, exporter.trouble())

        screen = look()
        with Live(screen, console=console, auto_refresh=False, screen=console.is_terminal) as live:
            while True:
                try:
                    time.sleep(interval)
                    screen = look()
                    live.update(screen, refresh=True)
                except Unreachable as error:
                    live.update(Group(screen, Text(clean(error.message), style="red")), refresh=True)
                except KeyboardInterrupt:
                    break
        if console.is_terminal:
            console.print(screen)


def _look(exporter: Exporter, runs: Sequence[Json], width: int, trouble: str | None) -> RenderableType:
    names = [one["run"] for one in runs]
    drawn = draw(
        runs,
        events={name: exporter.events(name, limit=EVENTS) for name in names},
        steps={one["run"]: exporter.last_steps(one) for one in runs},
        beginnings=[event for one in runs if in_trouble(one) for event in exporter.beginning(one["run"])],
        now=time.time(),
        width=width,
    )
    return drawn if trouble is None else Group(Text(trouble, style="bold red"), drawn)
