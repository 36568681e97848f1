"""Renders runs for a terminal: one line each, the first parameters of unhealthy runs, and the last events."""

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from optwrap_exporter.wire.vocabulary import GOOD_OUTCOMES

EVENTS: Final = 5
"""Number of events shown."""
NORMS: Final = 24
"""Number of steps in the sparkline."""

_COLOURS: Final = {"ok": "green", "finished": "blue", "starting": "cyan", "skipping": "yellow", "degraded": "yellow"}
_SPARK: Final = "▁▂▃▄▅▆▇█"
_BAD: Final = "✕"
_NAMED: Final = 2
"""Number of parameters that an event names."""
_LEAST_SHARE: Final = 0.01
"""A parameter with a smaller share of the squared norm is named only if it is the first."""

Json = dict[str, Any]


def draw(
    runs: Sequence[Json],
    *,
    events: Mapping[str, Sequence[Json]],
    steps: Mapping[str, Json],
    beginnings: Sequence[Json],
    now: float,
    width: int,
) -> RenderableType:
    """Everything to show.

    Args:
      runs: answers of /v1/runs/{run}.
      events: by run, its last events.
      steps: by run, the columns of its last steps.
      beginnings: for runs in trouble, the event that started their streak.
      now: seconds since 1970.
      width: the width of the terminal in characters.
    """
    if not runs:
        return Text("no run has reported yet")
    latest = sorted((event for one in events.values() for event in one), key=lambda event: -event["time"])[:EVENTS]
    lines: list[RenderableType] = [Text(clean(_ended(run)), style="bold") for run in runs if run["reason"]]
    lines += [Text(clean(_beginning(event)), style="bold") for event in beginnings]
    if latest:
        lines += [Text(""), Text("last events", style="bold"), *(_line(_event(event, now)) for event in latest)]
    return Group(_table(runs, steps, now, width), *lines)


def in_trouble(run: Json) -> bool:
    """Whether gradients are non-finite now or reached the optimizer. Then the first bad parameters are shown."""
    return bool(run["health"] == "gave_up" or _gauges(run).get("not_finite_streak", 0) > 0)


_Cell = Callable[[Json], RenderableType]


def _table(runs: Sequence[Json], steps: Mapping[str, Json], now: float, width: int) -> Table:
    """A table with one line per run. In a narrow terminal the least important columns are left out."""
    columns: dict[str, tuple[_Cell, dict[str, Any]]] = {
        "run": (lambda run: Text(clean(run["run"])), {"no_wrap": False, "max_width": 32, "overflow": "fold"}),
        "health": (_health, {}),
        "since": (lambda run: _ago(now, run["since"]), {"justify": "right"}),
        "steps": (_steps, {"justify": "right"}),
        "gradient\nsteps": (lambda run: f"{run['totals']['gradient_steps']:,}", {"justify": "right"}),
        "streak": (lambda run: str(_gauges(run).get("not_finite_streak", "")), {"justify": "right"}),
        "skipped:\nnon-finite /\nlarge / other": (_skipped, {"justify": "right"}),
        "window": (lambda run: _window(_gauges(run)), {"min_width": 12}),
        "norm": (lambda run: _number(_gauges(run).get("gradient_norm")), {"justify": "right"}),
        "scalars": (lambda run: _scalars(run.get("scalars") or {}), {"max_width": 36, "overflow": "ellipsis"}),
        f"last {NORMS} norms": (lambda run: sparkline(steps[run["run"]]), {}),
    }
    if not any(run.get("scalars") for run in runs):
        del columns["scalars"]
    dispensable = [
        *({"scalars"} & {*columns}),
        "gradient\nsteps",
        f"last {NORMS} norms",
        "norm",
        "window",
        "steps",
        "since",
    ]
    measure = Console(width=10_000)
    while True:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for title, (_, options) in columns.items():
            table.add_column(title, **{"no_wrap": True, **options})
        for run in runs:
            table.add_row(*(cell(run) for cell, _ in columns.values()))
        if not dispensable or measure.measure(table).maximum <= width:
            return table
        del columns[dispensable.pop(0)]


def _gauges(run: Json) -> Json:
    return run["gauges"] or {}


def _health(run: Json) -> Text:
    """The health. A run with steps that nobody observed is never plainly green."""
    health, colour = run["health"], _COLOURS.get(run["health"], "bold red")
    if run["unseen"] and colour in ("green", "blue", "cyan"):
        colour = "yellow" if run["unseen_not_finite"] else "cyan"
    return Text(health, style=colour)


def _steps(run: Json) -> str:
    """The steps, and on a second line those that nobody observed."""
    steps = f"{run['totals']['steps']:,}"
    if not run["unseen"]:
        return steps
    bad = f", {run['unseen_not_finite']:,} non-finite" if run["unseen_not_finite"] else ""
    return f"{steps}\n+{run['unseen']:,} unseen{bad}"


def _skipped(run: Json) -> str:
    skipped = run["totals"]["skipped"]
    return f"{skipped['not_finite']:,} / {skipped['large']:,} / {skipped['other']:,}"


def sparkline(columns: Json) -> Text:
    """The norms of the last steps as bars on a logarithmic scale, ✕ for a bad step.

    Args:
      columns: the columns of /v1/runs/{run}/steps.
    """
    rows = list(zip(columns["norm"], columns["outcome"], columns["finite"], strict=True))[-NORMS:]
    logs = [math.log(norm) if isinstance(norm, (int, float)) and norm > 0 else None for norm, _, _ in rows]
    known = [value for value in logs if value is not None]
    low, span = min(known, default=0.0), max(known, default=0.0) - min(known, default=0.0)
    text = Text()
    for value, (_, outcome, finite) in zip(logs, rows, strict=True):
        if not finite or outcome not in GOOD_OUTCOMES:
            text.append(_BAD, "bold red")
        elif value is None:  # the norm is zero
            text.append(_SPARK[0])
        else:
            # If all norms are equal, draw them in the middle.
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


def _scalars(scalars: Json) -> str:
    """The first scalars, each as its name and last finite value."""
    return clean(", ".join(f"{name} {_number(figure['value'])}" for name, figure in list(scalars.items())[:_NAMED]))


def _line(text: str) -> Text:
    return Text(clean(text), no_wrap=True, overflow="ellipsis")


def _ended(run: Json) -> str:
    """Why the run failed or stopped, and where to roll back to."""
    hint = "" if run["last_clean_step"] is None else f"; roll back to step {run['last_clean_step']:,}"
    return f"{run['run']}: {run['reason']}{hint}"


def _beginning(event: Json) -> str:
    return f"{event['run']}: first non-finite in step {event['step']:,}: {_first_parameters(event['detail'])}"


def _event(event: Json, now: float) -> str:
    """An event as one line, parameters first, so that they are visible in a narrow terminal."""
    detail = {key: value for key, value in event["detail"].items() if key not in _SHOWN_APART}
    parts = (_first_parameters(event["detail"]), _from_replica(event["detail"].get("replica")), _plain_items(detail))
    text = "  ".join(part for part in parts if part)
    step = "" if event["step"] is None else f" at step {event['step']:,}"
    return f"{_ago(now, event['time']):>8} ago  {event['run']}/{event['process']}  {event['kind']}{step}  {text}"


_SHOWN_APART: Final = frozenset({"parameters", "parameter_count", "first", "largest", "norm_shares", "replica"})


def _first_parameters(detail: Json) -> str:
    """The first parameters of an event: their number of non-finite values, or their share of the squared norm."""
    if shares := detail.get("norm_shares"):
        large = [one for index, one in enumerate(shares[:_NAMED]) if index == 0 or one["norm_share"] >= _LEAST_SHARE]
        return ", ".join(f"{one['norm_share']:.0%} {one['parameter']}" for one in large)
    parameters = detail.get("parameters") or []
    named = ", ".join(f"{one['parameter']} ({one['not_finite']:,})" for one in parameters[:_NAMED])
    more = detail.get("parameter_count", len(parameters)) - len(parameters[:_NAMED])
    return f"{named} and {more:,} more" if more > 0 else named


def _from_replica(replica: Json | None) -> str:
    """The first non-finite replica: `first from replica 5: process 1, tpu:5; 2 of 8`; empty if unknown."""
    if replica is None:
        return ""
    process = [] if replica.get("process") is None else [f"process {replica['process']}"]
    where = ", ".join([*process, *([replica["device"]] if replica.get("device") else [])])
    count = f"{replica['count']} of {replica['of']}" if replica.get("of") else f"{replica['count']} in all"
    return f"first from replica {replica['replica']}{': ' if where else ''}{where}; {count}"


def _plain_items(detail: Json) -> str:
    return " ".join(f"{key}={_plain(value)}" for key, value in detail.items())


def _plain(value: object) -> str:
    """A value of an event's detail without brackets: `decoder/w 100, decoder/b 3`."""
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    if isinstance(value, dict):
        return " ".join(map(_plain, value.values()))
    return str(value)


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, (int, float)) else clean(str(value or ""))


def _ago(now: float, then: float | None) -> str:
    return "" if then is None else str(timedelta(seconds=max(0, round(now - then))))


def clean(text: str) -> str:
    """The text without control characters, because clients choose the names in it."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)
