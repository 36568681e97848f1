"""`status` and `watch`: what an exporter knows of its runs, in a terminal."""

import json
import math
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit

import click
import httpx
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

HEALTHY: Final = frozenset({"ok", "starting", "skipping", "finished"})
"""Health that needs no person: skipping is the wrapper at work, and becomes starved or gave_up where that fails."""

_COLOURS: Final = {"ok": "green", "finished": "blue", "starting": "cyan", "skipping": "yellow", "degraded": "yellow"}
_EVENTS: Final = 5
_GOOD: Final = frozenset({"applied", "accumulated"})
_SPARK: Final = "▁▂▃▄▅▆▇█"
_BAD: Final = "✕"
_NORMS: Final = 24
"""Steps in the sparkline."""
_WATCHED: Final = 20

Json = dict[str, Any]


class Unreachable(click.ClickException):
    """No exporter answers, or what answers is none."""


def connect(url: str) -> httpx.Client:
    """A client for the exporter at `url`: http://host:port, or unix:///path of its ingest socket.

    Raises:
      Unreachable: `url` is neither.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    # Proxies of the environment are for the outer world; an exporter is on this machine or near it.
    if parts.scheme == "unix" and parts.path:
        transport = httpx.HTTPTransport(uds=unquote(parts.path))
        return httpx.Client(transport=transport, base_url="http://localhost", timeout=5, trust_env=False)
    if parts.scheme in {"http", "https"} and parts.hostname and port != 0:
        return httpx.Client(base_url=url, timeout=5, trust_env=False)
    raise Unreachable(f"{url!r} is not the address of an exporter: http://host:port or unix:///path")


class Exporter:
    """The questions that status and watch ask of an exporter."""

    def __init__(self, client: httpx.Client, url: str) -> None:
        self._client = client
        self._url = url

    def _get(self, path: str, **query: str | int) -> Json:
        try:
            answer = self._client.get(path, params=query)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            reason = str(error) or type(error).__name__
            raise Unreachable(f"no exporter answers at {self._url} ({reason}): start one, or give its URL") from error
        if answer.status_code == 404 and path.startswith("/v1/runs/"):
            raise Unreachable(f"{self._url} knows no run {unquote(path.split('/')[3])!r}")
        try:
            body = answer.json() if answer.status_code == 200 else None
        except ValueError:
            body = None
        if not isinstance(body, dict):
            raise Unreachable(f"{self._url}{path} answered {answer.status_code}: no optwrap exporter is there")
        return body

    def _items(self, path: str) -> Iterator[Json]:
        cursor: str | None = None
        while True:
            page = self._get(path, **({"cursor": cursor} if cursor else {}))
            yield from page["items"]
            cursor = page["cursor"]
            if not cursor:
                return

    def run(self, name: str) -> Json:
        """The answer of /v1/runs/{run}."""
        return self._get(f"/v1/runs/{quote(name, safe='')}")

    def runs(self, only: str | None, most: int | None = None) -> list[Json]:
        """All runs, or one, or the `most` that reported last; whole."""
        if only is not None:
            return [self.run(only)]
        listed = sorted(self._items("/v1/runs"), key=lambda run: -float(run["last_report"] or 0))
        return [self.run(run["run"]) for run in listed[:most]]

    def last_steps(self, run: Json) -> Json:
        """The columns of the run's last steps; of a run whose steps are numbered anew, of the last numbers."""
        last = int(run["state_totals"]["steps"])
        path = f"/v1/runs/{quote(run['run'], safe='')}/steps"
        columns: Json = self._get(path, since=max(0, last - _NORMS + 1))["columns"]
        return columns

    def events(self, name: str) -> list[Json]:
        """The last events of a run, newest first."""
        items: list[Json] = self._get(f"/v1/runs/{quote(name, safe='')}/events", limit=_EVENTS)["items"]
        return items


def show_status(url: str, run: str | None, as_json: bool) -> int:
    """Print every run, or one, to stdout; 0 if all are healthy, else 1.

    Raises:
      Unreachable: nothing answers, or there is no such run.
    """
    with connect(url) as client:
        exporter = Exporter(client, url)
        runs = exporter.runs(run)
        if as_json:
            click.echo(json.dumps(runs[0] if run is not None else runs))
        else:
            Console().print(_look(exporter, runs))
    return 0 if all(one["health"] in HEALTHY for one in runs) else 1


def watch_runs(url: str, run: str | None, interval: float) -> None:
    """Show the runs until Ctrl-C, asking every `interval` seconds; an exporter that goes away may come back.

    Raises:
      Unreachable: nothing answers the first time.
    """
    with connect(url) as client:
        exporter = Exporter(client, url)

        def look() -> RenderableType:
            return _look(exporter, exporter.runs(run, _WATCHED))

        screen = look()
        console = Console()
        with Live(screen, console=console, auto_refresh=False, screen=console.is_terminal) as live:
            while True:
                try:
                    time.sleep(interval)
                    screen = look()
                    live.update(screen, refresh=True)
                except Unreachable as error:
                    live.update(Group(screen, Text(_clean(error.message), style="red")), refresh=True)
                except KeyboardInterrupt:
                    break
        if console.is_terminal:
            console.print(screen)


def _look(exporter: Exporter, runs: Sequence[Json]) -> RenderableType:
    names = [one["run"] for one in runs]
    steps = {one["run"]: exporter.last_steps(one) for one in runs}
    return _screen(runs, {name: exporter.events(name) for name in names}, steps, time.time())


def _screen(runs: Sequence[Json], events: dict[str, list[Json]], steps: dict[str, Json], now: float) -> RenderableType:
    if not runs:
        return Text("no run has reported yet")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("run", "health", "since", "steps", "gradient steps", "streak"):
        table.add_column(title, justify="left" if title in {"run", "health"} else "right", no_wrap=title != "run")
    table.add_column("skipped: not finite / large / other", justify="right")
    table.add_column("window", min_width=12)
    table.add_column("norm", justify="right", no_wrap=True)
    table.add_column(f"last {_NORMS} norms", no_wrap=True)
    for one in runs:
        totals, gauges = one["totals"], one["gauges"] or {}
        skipped = totals["skipped"]
        table.add_row(
            Text(_clean(one["run"])),
            Text(one["health"], style=_COLOURS.get(one["health"], "bold red")),
            _ago(now, one["since"]),
            f"{totals['steps']:,}",
            f"{totals['gradient_steps']:,}",
            str(gauges.get("not_finite_streak", "")),
            f"{skipped['not_finite']:,} / {skipped['large']:,} / {skipped['other']:,}",
            _window(gauges),
            _number(gauges.get("gradient_norm")),
            sparkline(steps[one["run"]]),
        )
    latest = sorted((event for one in events.values() for event in one), key=lambda event: -event["time"])[:_EVENTS]
    lines = [Text(_event(event, now), no_wrap=True, overflow="ellipsis") for event in latest]
    return Group(table, *([Text(""), Text("last events", style="bold"), *lines] if lines else []))


def sparkline(columns: Json) -> Text:
    """The norms of the last steps as bars, logarithmic from their least to their largest; ✕ for a bad step.

    Args:
      columns: of /v1/runs/{run}/steps: `step`, `norm`, `verdict` and `finite`.
    """
    rows = list(zip(columns["norm"], columns["verdict"], columns["finite"], strict=True))[-_NORMS:]
    logs = [math.log(norm) if isinstance(norm, (int, float)) and norm > 0 else None for norm, _, _ in rows]
    known = [value for value in logs if value is not None]
    low, span = min(known, default=0.0), max(known, default=0.0) - min(known, default=0.0)
    text = Text()
    for value, (_, verdict, finite) in zip(logs, rows, strict=True):
        if not finite or verdict not in _GOOD:
            text.append(_BAD, "bold red")
        elif value is None:  # a norm of zero
            text.append(_SPARK[0])
        else:
            # Where all are alike they stand in the middle.
            share = (value - low) / span if span > 1e-6 else 0.5
            text.append(_SPARK[min(len(_SPARK) - 1, int(share * len(_SPARK)))])
    return text


def _window(gauges: Json) -> RenderableType:
    done, size = gauges.get("mini_step"), gauges.get("every_k")
    if done is None or not size:
        return ""
    grid = Table.grid(padding=(0, 1))
    grid.add_row(ProgressBar(total=size, completed=min(done, size), width=8), f"{done}/{size}")
    return grid


def _event(event: Json, now: float) -> str:
    detail = dict(event["detail"])
    replica = _from_replica(detail.pop("replica", None))
    said = " ".join([*(f"{key}={_plain(value)}" for key, value in detail.items()), *replica])
    step = "" if event["step"] is None else f" at step {event['step']:,}"
    return _clean(
        f"{_ago(now, event['time']):>9} ago  {event['run']}/{event['process']}  {event['kind']}{step}  {said}"
    )


def _from_replica(replica: Json | None) -> list[str]:
    """Which replica brought what is not finite: `first from replica 5: process 1, tpu:5; 2 of 8`; empty if none did."""
    if replica is None:
        return []
    process = [] if replica.get("process") is None else [f"process {replica['process']}"]
    where = ", ".join([*process, *([replica["device"]] if replica.get("device") else [])])
    count = f"{replica['count']} of {replica['of']}" if replica.get("of") else f"{replica['count']} in all"
    return [f"first from replica {replica['replica']}{': ' if where else ''}{where}; {count}"]


def _plain(value: object) -> str:
    """A value of an event's detail without JSON's brackets: `decoder/w 100, decoder/b 3`."""
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    if isinstance(value, dict):
        return " ".join(map(_plain, value.values()))
    return str(value)


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, (int, float)) else _clean(str(value or ""))


def _ago(now: float, then: float | None) -> str:
    return "" if then is None else str(timedelta(seconds=max(0, round(now - then))))


def _clean(text: str) -> str:
    """`text` without what would steer the terminal: names in it come from whoever reports."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)
