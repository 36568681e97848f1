"""The list of runs: filtered, sorted, in pages. Pure."""

from collections.abc import Iterable
from typing import Final, Literal, NamedTuple

from optwrap_exporter.ledger.change import health
from optwrap_exporter.ledger.shown import views
from optwrap_exporter.ledger.state.run import RunState
from optwrap_exporter.wire.answers import ANSWER_BYTES, Page, RunSummary
from optwrap_exporter.wire.cursor import decode, encode
from optwrap_exporter.wire.vocabulary import HEALTHS, Health, Scope

RunSort = Literal["health", "run", "last_report", "first_report", "steps", "skipped"]
_PAGE_BYTES: Final = ANSWER_BYTES - 10_000
"""The most bytes of the items of a page, without the cursor."""


class RunFilter(NamedTuple):
    """Which runs to list, and in which order. What is empty does not filter."""

    healths: tuple[Health, ...] = ()
    text: str = ""
    """A part of the name, in upper or lower case."""
    archived: bool = False
    """List the archived runs. By default those that are not are listed."""
    sort: RunSort = "health"
    """`health`: worst first, and those whose trouble is acknowledged last. Times: the latest first. Counts: the largest
    first. Runs that are equal are sorted by name."""

    @property
    def name(self) -> str:
        """The list in a cursor."""
        return f"runs:{self.sort}:{self.archived}:{','.join(self.healths)}:{self.text}"


EVERY_RUN: Final = RunFilter()


class _Found(NamedTuple):
    order: int
    run: str
    state: RunState


def page(
    runs: Iterable[RunState],
    chosen: RunFilter,
    now: float,
    listening: float,
    scope: Scope,
    *,
    limit: int,
    cursor: str | None,
) -> Page[RunSummary]:
    """One page of the list.

    The order changes with the runs, so one that changes between two pages may be in both or in neither.

    Raises:
      CursorError: the cursor belongs to another list.
    """
    after = None
    if cursor is not None:
        order, name = decode(chosen.name, cursor, (int, str))
        after = (int(order), str(name))
    found = sorted(_found(runs, chosen, now, listening, scope), key=lambda one: one[:2])
    rest = [one for one in found if after is None or one[:2] > after]
    items, _ = views.fitting((views.summary(one.state, now, listening, scope) for one in rest[:limit]), _PAGE_BYTES)
    last = rest[len(items) - 1] if items else None
    more = last is not None and len(rest) > len(items)
    return Page(items=items, cursor=encode(chosen.name, [last.order, last.run]) if last is not None and more else None)


def _found(runs: Iterable[RunState], chosen: RunFilter, now: float, listening: float, scope: Scope) -> Iterable[_Found]:
    text = chosen.text.casefold()
    by_health = chosen.sort == "health" or bool(chosen.healths)
    for run in runs:
        if run.archived != chosen.archived or (text and text not in run.run.casefold()):
            continue
        of = health.of_run(run, health.judged(run, now, listening), scope).health if by_health else None
        if chosen.healths and of not in chosen.healths:
            continue
        yield _Found(_order(run, chosen.sort, of), run.run, run)


def _order(run: RunState, sort: RunSort, of: Health | None) -> int:
    """The sort key, the smallest first."""
    match sort:
        case "health":
            assert of is not None
            rank = len(HEALTHS) if health.acknowledged(run, of) else HEALTHS.index(of)
            # Within a health the latest report first. Microseconds leave room for every health.
            return rank * 10**16 - _micros(max(one.last_report for one in run.processes.values()))
        case "last_report":
            return -_micros(max(one.last_report for one in run.processes.values()))
        case "first_report":
            return -_micros(views.first_report(run))
        case "steps":
            return -run.total.steps
        case "skipped":
            skipped = run.total.totals().skipped
            return -(skipped.not_finite + skipped.large + skipped.other)
        case "run":
            return 0


def _micros(time: float) -> int:
    return int(1e6 * time)
