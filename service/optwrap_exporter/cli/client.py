"""The commands `status` and `watch`: show the runs of exporters in a terminal."""

import contextlib
import json
import time
from collections import Counter
from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path
from typing import Final, NamedTuple

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from optwrap_exporter.cli.exporter import Exporter, Json, UnreachableError, connect
from optwrap_exporter.cli.render import EVENTS, Row, draw
from optwrap_exporter.cli.text import clean
from optwrap_exporter.wire.vocabulary import HEALTHS

MOST_SHOWN: Final = 20
"""Runs that are shown in full, the worst ones."""


_DRAIN_POLL: Final = 0.25
"""Seconds between two questions whether everything was scraped."""


class Chosen(NamedTuple):
    """Which runs to show."""

    run: str | None = None
    """A name, or a pattern with * ? [...]; None for all."""
    healths: Sequence[str] = ()
    """Only runs of these healths; empty for all."""

    @property
    def one(self) -> bool:
        """Whether it is one run by its whole name."""
        return self.run is not None and not set("*?[") & set(self.run)


class Seen(NamedTuple):
    """What the exporters answered."""

    rows: list[Row]
    """Worst first."""
    troubles: list[str]
    """Of exporters: why they store no reports."""
    lost: list[UnreachableError]
    """Exporters that did not answer."""


def look(exporters: Sequence[Exporter], chosen: Chosen) -> Seen:
    """Ask every exporter for its runs.

    Raises:
      UnreachableError: none of them answers, or none has the run.
    """
    rows: list[Row] = []
    troubles: list[str] = []
    lost: list[UnreachableError] = []
    for exporter in exporters:
        try:
            found = [exporter.run(chosen.run)] if chosen.one and chosen.run else _matching(exporter, chosen)
            rows += [Row(exporter, run) for run in found if not chosen.healths or run["health"] in chosen.healths]
        except UnreachableError as error:
            lost.append(error)
            continue
        if (trouble := exporter.trouble()) is not None:
            troubles.append(trouble if len(exporters) == 1 else f"{exporter.url}: {trouble}")
    if len(lost) == len(exporters):
        raise lost[0]
    return Seen(sorted(rows, key=_worst_first), troubles, lost)


def _matching(exporter: Exporter, chosen: Chosen) -> list[Json]:
    pattern = chosen.run
    return [run for run in exporter.runs(chosen.healths) if pattern is None or fnmatchcase(run["run"], pattern)]


def _worst_first(row: Row) -> tuple[bool, int, float, str]:
    run = row.run
    rank = HEALTHS.index(run["health"]) if run["health"] in HEALTHS else -1
    return (run["acknowledged"], rank, -run["last_report"], run["run"])


def show_status(
    urls: Sequence[str], chosen: Chosen, *, ca_file: Path | None, as_json: bool, exit_on: Collection[str]
) -> int:
    """Print the runs to standard output.

    Args:
      urls: the exporters.
      chosen: which runs.
      ca_file: as in `connect`.
      as_json: print the answers of the API instead of a table.
      exit_on: the healths of runs that need attention. A run whose trouble is acknowledged needs none.

    Returns:
      0 if no run needs attention and reports are stored, else 1; 2 if some exporter does not answer.

    Raises:
      UnreachableError: no exporter answers, or the run is unknown.
    """
    with contextlib.ExitStack() as stack:
        exporters = [Exporter(stack.enter_context(connect(url, ca_file)), url) for url in urls]
        seen = look(exporters, chosen)
        if as_json:
            for problem in chain(seen.troubles, (error.message for error in seen.lost)):
                click.echo(clean(problem), err=True)
            runs = [row.run for row in seen.rows]
            click.echo(json.dumps(runs[0] if chosen.one and len(runs) == 1 else runs))
        else:
            console = Console()
            console.print(_screen(seen, console.width, several=len(urls) > 1))
    if seen.lost:
        return 2
    unhealthy = any(row.run["health"] in exit_on and not row.run["acknowledged"] for row in seen.rows)
    return 1 if unhealthy or seen.troubles else 0


def drain_runs(url: str, run: str | None, timeout: float, *, ca_file: Path | None) -> int:
    """Wait until somebody has scraped the end of every run, or of the one that is named.

    Returns:
      0, or 1 if that took longer than `timeout` seconds; then standard error says what is missing.

    Raises:
      UnreachableError: the exporter does not answer, or has no such run.
    """
    deadline = time.monotonic() + timeout
    with connect(url, ca_file) as client:
        exporter = Exporter(client, url)
        if run is not None:
            exporter.run(run)
        while not (missing := exporter.missing(run))["drained"]:
            if time.monotonic() >= deadline:
                why = {"reporting": "still reporting", "unscraped": "ended, but not scraped since"}
                reasons = [f"{text}: {', '.join(missing[key])}" for key, text in why.items() if missing[key]]
                click.echo(clean(f"{url} is not drained after {timeout:g} s: {'; '.join(reasons)}"), err=True)
                return 1
            time.sleep(min(_DRAIN_POLL, timeout))
    return 0


def watch_runs(urls: Sequence[str], chosen: Chosen, interval: float, *, ca_file: Path | None) -> None:
    """Show the runs until Ctrl-C, with a query every `interval` seconds. An exporter may restart meanwhile.

    Raises:
      UnreachableError: no exporter answers the first time.
    """
    with contextlib.ExitStack() as stack:
        exporters = [Exporter(stack.enter_context(connect(url, ca_file)), url) for url in urls]
        console = Console()

        def screen() -> RenderableType:
            return _screen(look(exporters, chosen), console.width, several=len(urls) > 1)

        shown = screen()
        with Live(shown, console=console, auto_refresh=False, screen=console.is_terminal) as live:
            while True:
                try:
                    time.sleep(interval)
                    shown = screen()
                    live.update(shown, refresh=True)
                except UnreachableError as error:
                    live.update(Group(shown, Text(clean(error.message), style="red")), refresh=True)
                except KeyboardInterrupt:
                    break
        if console.is_terminal:
            console.print(shown)


def _screen(seen: Seen, width: int, *, several: bool) -> RenderableType:
    shown, rest = seen.rows[:MOST_SHOWN], seen.rows[MOST_SHOWN:]
    details: list[Row] = []
    for row in shown:
        with contextlib.suppress(UnreachableError):  # deleted, or the exporter went, since it was listed
            asked = row.exporter
            details.append(
                row._replace(
                    steps=asked.last_steps(row.run),
                    events=asked.events(row.run["run"], EVENTS),
                    diagnosis=asked.diagnosis(row.run),
                )
            )
    drawn = draw(
        details,
        left_out=Counter(row.run["health"] for row in rest),
        now=time.time(),
        width=width,
        several=several,
    )
    problems = chain(seen.troubles, (error.message for error in seen.lost))
    return Group(*(Text(clean(line), style="bold red") for line in problems), drawn)
