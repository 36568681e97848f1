"""Renders runs for a terminal: one line each, what is wrong with them, and the last events."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from optwrap_exporter.cli.exporter import NORMS, Exporter, Json
from optwrap_exporter.cli.text import clean, duration, number, percent
from optwrap_exporter.wire import words
from optwrap_exporter.wire.vocabulary import is_good

EVENTS: Final = 5
"""Number of events shown."""

_COLOURS: Final = {"critical": "bold red", "warning": "yellow", "idle": "cyan", "good": "green"}
_SPARK: Final = "▁▂▃▄▅▆▇█"
_BAD: Final = "✕"
_NAMED: Final = 2
"""Number of parameters that an event names."""
_LEAST_SHARE: Final = 0.01
"""A parameter with a smaller share of the squared norm is named only if it is the first."""


class Row(NamedTuple):
    """One run of one exporter."""

    exporter: Exporter
    run: Json
    """As GET /v1/runs or GET /v1/runs/{run} has it."""
    steps: Json = {}  # noqa: RUF012 - never changed
    """The columns of its last steps."""
    events: Sequence[Json] = ()
    """Its last events."""
    diagnosis: Json | None = None
    """The last event `diagnosed` of its trouble."""


def draw(
    rows: Sequence[Row], *, left_out: Mapping[str, int], now: float, width: int, several: bool = False
) -> RenderableType:
    """Everything to show.

    Args:
      rows: the runs, worst first.
      left_out: by health, how many runs there are beside them.
      now: seconds since 1970.
      width: the width of the terminal in characters.
      several: whether the runs are of several exporters.
    """
    if not rows and not left_out:
        return Text("no run has reported yet, or none is of this name and health")
    lines: list[RenderableType] = []
    if left_out:
        kinds = ", ".join(f"{count:,} {_word(health).lower()}" for health, count in left_out.items())
        lines.append(Text(f"and {sum(left_out.values()):,} more: {kinds}", style="dim"))
    lines += [line for row in rows if _to_say(row.run) for line in _wrong(row)]
    happened = [(event, row) for row in rows for event in row.events]
    latest = sorted(happened, key=lambda one: -one[0]["time"])[:EVENTS]
    if latest:
        lines += [Text(""), Text("last events", style="bold")]
        lines += [_line(_event(event, now)) for event, _ in latest]
    return Group(_table(rows, now, width, several), *lines)


def _wrong(row: Row) -> Iterator[Text]:
    """What is wrong with a run, and why."""
    yield Text(clean(f"{row.run['run']}: {row.run['summary']}"), style="bold")
    if row.diagnosis is not None:
        step, detail = row.diagnosis["step"], row.diagnosis["detail"]
        at = "" if step is None else f" of step {step:,}"
        yield Text(clean(f"  cause{at}: {detail['cause']}"), style="bold red")
        if detail.get("remedy"):
            yield Text(clean(f"  remedy: {detail['remedy']}"))


def _word(health: str) -> str:
    return words.HEALTHS[health].word if health in words.HEALTHS else clean(health)


def _to_say(run: Json) -> bool:
    """Whether the summary says more than the table."""
    return run["health"] not in {"ok", "finished", "starting"} or bool(run["unseen"])


_DISPENSABLE: Final = (
    *("last report", "scalars", f"last {NORMS} norms", "window", "norm", "steps/s", "since", "exporter", "step"),
)
"""The columns that a narrow terminal leaves out, the first ones first."""

_Cell = Callable[[Row], RenderableType]


def _table(rows: Sequence[Row], now: float, width: int, several: bool) -> Table:
    """A table with one line per run. In a narrow terminal the least important columns are left out."""
    right = {"justify": "right"}
    columns: dict[str, tuple[_Cell, dict[str, Any]]] = {
        "exporter": (lambda row: clean(_place(row.exporter.url)), {}),
        "run": (lambda row: Text(clean(row.run["run"])), {"no_wrap": False, "max_width": 32, "overflow": "fold"}),
        "health": (lambda row: _health(row.run), {}),
        "since": (lambda row: _since(row.run, now), right),
        "step": (lambda row: _steps(row.run), right),
        "steps/s": (lambda row: number(row.run["steps_per_second"]), right),
        "non-finite\nstreak": (lambda row: _streak(_gauges(row.run)), right),
        "skipped\nlately": (lambda row: _skipped(row.run), right),
        "window": (lambda row: _window(_gauges(row.run)), {"min_width": 12}),
        "norm": (lambda row: _norm(row.run), right),
        "scalars": (lambda row: _scalars(row.run["scalars"]), {"max_width": 36, "overflow": "ellipsis"}),
        f"last {NORMS} norms": (lambda row: sparkline(row.steps), {}),
        "last report": (lambda row: f"{duration(now - row.run['last_report'])} ago", right),
    }
    if not several:
        del columns["exporter"]
    if not any(row.run["scalars"] for row in rows):
        del columns["scalars"]
    if not any(_gauges(row.run).get("every_k") for row in rows):
        del columns["window"]
    dispensable = [name for name in _DISPENSABLE if name in columns]
    measure = Console(width=10_000)
    while True:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for title, (_, options) in columns.items():
            table.add_column(title, **{"no_wrap": True, **options})
        for row in rows:
            table.add_row(*(cell(row) for cell, _ in columns.values()))
        if not dispensable or measure.measure(table).maximum <= width:
            return table
        del columns[dispensable.pop(0)]


def _place(url: str) -> str:
    """The host and port of an exporter, or the path of its socket."""
    parts = urlsplit(url)
    return parts.netloc or parts.path


def _gauges(run: Json) -> Json:
    return run["gauges"] or {}


def _health(run: Json) -> Text:
    """The health. A run with steps that nobody observed is never plainly green."""
    tier = words.HEALTHS[run["health"]].tier if run["health"] in words.HEALTHS else "warning"
    if run["unseen"] and tier in {"good", "idle"}:
        tier = "warning" if run["unseen_not_finite"] else "idle"
    if run["acknowledged"]:
        return Text(f"{_word(run['health'])} (acknowledged)", style="dim")
    return Text(_word(run["health"]), style=_COLOURS[tier])


def _since(run: Json, now: float) -> str:
    """`8 min ago` of a health that is one event in the past, else `8 min`."""
    age = duration(now - run["since"])
    return f"{age} ago" if run["health"] in words.HEALTHS and words.HEALTHS[run["health"]].past else age


def _steps(run: Json) -> str:
    """The step, and on a second line the steps that nobody observed."""
    steps = "" if run["last_step"] is None else f"{run['last_step']:,}"
    if not run["unseen"]:
        return steps
    bad = f", {run['unseen_not_finite']:,} non-finite" if run["unseen_not_finite"] else ""
    return f"{steps}\n+{run['unseen']:,} unseen{bad}"


def _streak(gauges: Json) -> str:
    streak, limit = gauges.get("not_finite_streak"), gauges.get("guard_not_finite_limit")
    if streak is None:
        return ""
    return f"{streak:,}" if limit is None else f"{streak:,} of {limit:,}"


def _skipped(run: Json) -> str:
    """The skipped share of the last 1,000 steps."""
    lately = run["skipped_recently"]
    return percent(lately["skipped"], lately["steps"])


def _norm(run: Json) -> str:
    return "" if run["norm"] is None else number(run["norm"]["value"])


def sparkline(columns: Json) -> Text:
    """The norms of the last steps as bars on a logarithmic scale, ✕ for a bad step.

    Args:
      columns: the columns of /v1/runs/{run}/steps.
    """
    rows = list(zip(*(columns.get(name, ()) for name in ("norm", "outcome", "finite")), strict=True))[-NORMS:]
    logs = [math.log(norm) if isinstance(norm, (int, float)) and norm > 0 else None for norm, _, _ in rows]
    known = [value for value in logs if value is not None]
    low, span = min(known, default=0.0), max(known, default=0.0) - min(known, default=0.0)
    text = Text()
    for value, (_, outcome, finite) in zip(logs, rows, strict=True):
        if not is_good(outcome, finite):
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


def _scalars(scalars: Mapping[str, Json]) -> str:
    """The first scalars, each as its name and last finite value."""
    named = list(scalars.items())[:_NAMED]
    return clean(", ".join(f"{name} {number(figure['value'])}" for name, figure in named))


def _line(text: str) -> Text:
    return Text(clean(text), no_wrap=True, overflow="ellipsis")


def _event(event: Json, now: float) -> str:
    """An event as one line, parameters first, so that they are visible in a narrow terminal."""
    detail = {key: value for key, value in event["detail"].items() if key not in _SHOWN_APART}
    parts = (
        _first_parameters(event["detail"]),
        _from_replica(event["detail"].get("replica")),
        "  ".join(_plain_items(detail)),
    )
    text = "  ".join(part for part in parts if part)
    step = "" if event["step"] is None else f" at step {event['step']:,}"
    age = duration(now - event["time"])
    return f"{age:>12} ago  {event['run']}/{event['process']}  {_kind(event)}{step}  {text}"


def _kind(event: Json) -> str:
    """The kind of an event; of a skip with its reason."""
    word = words.EVENTS[event["kind"]].word if event["kind"] in words.EVENTS else event["kind"]
    reason = event["detail"].get("reason")
    if event["kind"] == "skipped" and reason in words.REASONS:
        return f"{word}, {words.REASONS[reason].word}"
    return word


_SHOWN_APART: Final = frozenset(
    {"parameters", "parameter_count", "first", "largest", "norm_shares", "replica", "finite", "mini_step"}
    | {"incident", "process"}
)


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


def _plain_items(detail: Json) -> Iterator[str]:
    """The rest of an event's detail in words: `norm 12.3  after 90 steps`."""
    for key, value in detail.items():
        if key == "reason" and value in words.REASONS:
            continue
        if key in {"outcomes", "norms"} and isinstance(value, dict):  # of a divergence, by process
            if len(set(value.values())) > 1:
                of = (f"{_plain(one).replace('_', ' ')} (process {name})" for name, one in value.items())
                yield f"{key} {', '.join(of)}"
            continue
        if value is not None:
            yield f"{_name(key)} {_plain(value)}"


_OF_EVENTS: Final = {"processes": "processes", "last_step": "last step", "others": "other processes"}
"""Names in an event's detail that mean something else than the figure of a run with that name."""


def _name(key: str) -> str:
    if key in _OF_EVENTS:
        return _OF_EVENTS[key]
    word = words.FIGURES.get(key) or words.GAUGES.get(key)
    return word.word.lower() if word else key.replace("_", " ")


def _plain(value: object) -> str:
    """A value of an event's detail without brackets: `decoder/w 100, decoder/b 3`."""
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    if isinstance(value, dict):
        return " ".join(map(_plain, value.values()))
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return number(value) if isinstance(value, float) else str(value)
