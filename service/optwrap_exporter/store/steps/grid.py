"""Buckets of time, and the lines of counts in them."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Final, NamedTuple

from optwrap_exporter.wire.errors import ExporterError
from optwrap_exporter.wire.series import By, SeriesLine, SeriesOf

BUCKETS: Final = 1000
"""The most buckets of an answer."""
_USUAL: Final = 200
"""The most buckets if no width is asked for."""
WIDTHS: Final = (
    *(1.0, 2.0, 5.0, 10.0, 15.0, 30.0),
    *(60.0 * minutes for minutes in (1, 2, 5, 10, 15, 30)),
    *(3600.0 * hours for hours in (1, 2, 3, 6, 12)),
    *(86_400.0 * days for days in (1, 2, 7, 14, 28, 91, 364)),
)
"""The widths from which one is chosen if none is asked for, in seconds."""


class BucketsError(ExporterError, ValueError):
    """The range has more than BUCKETS buckets of the width asked for (HTTP 422).

    Attributes:
      least: the smallest width in seconds that is allowed.
    """

    def __init__(self, least: float) -> None:
        self.least = least
        super().__init__(f"bucket: expected at least {least:g} s")


class Wanted(NamedTuple):
    """What to count."""

    by: By
    since: float | None = None
    """The earliest time; None for the first step."""
    until: float | None = None
    """The time before which steps are; None for the last step."""
    width: float | None = None
    """Seconds in a bucket; None chooses one."""
    parameters: tuple[str, ...] = ()
    """Count only these parameters; empty counts all."""
    limit: int = 20
    """The most lines."""


@dataclasses.dataclass(frozen=True, slots=True)
class Grid:
    """The buckets of a range of time."""

    since: float
    until: float
    width: float
    first: int
    """The number of the first bucket; bucket n begins at n * width."""
    count: int

    @classmethod
    def over(cls, since: float, last: float, wanted: Wanted) -> "Grid":
        """The buckets of the wanted part of the time from `since` to `last`, both included.

        Raises:
          BucketsError: the width asked for is too small.
        """
        until = math.nextafter(last, math.inf)
        since = since if wanted.since is None else max(since, wanted.since)
        until = until if wanted.until is None else min(until, wanted.until)
        width = wanted.width or next((one for one in WIDTHS if (until - since) / one < _USUAL - 1), WIDTHS[-1])
        first, end = math.floor(since / width), math.floor(math.nextafter(until, -math.inf) / width)
        if end - first >= BUCKETS:
            raise BucketsError(math.ceil((until - since) / (BUCKETS - 1)))
        return cls(since, until, width, first, end - first + 1)

    def at(self, time: float) -> int:
        """The bucket of a time, from 0 on."""
        return math.floor(time / self.width) - self.first

    def holds(self, first: float, last: float) -> bool:
        """Whether one bucket has both times, within the range."""
        return self.since <= first and last < self.until and self.at(first) == self.at(last)

    def begin(self, bucket: int) -> float:
        """When a bucket begins."""
        return (self.first + bucket) * self.width

    def seconds(self, bucket: int) -> float:
        """The part of a bucket that is in the range."""
        begin = self.begin(bucket)
        part = min(self.until, begin + self.width) - max(self.since, begin)
        return part if part > 1e-3 else self.width


class Cell(NamedTuple):
    """What one line has in one bucket."""

    bucket: int
    steps: float
    values: float | None = None
    """Non-finite values."""
    norm_share: float | None = None
    first_step: int | None = None
    last_step: int | None = None
    first_time: float | None = None
    last_time: float | None = None


def line(of: SeriesOf, cells: Sequence[Cell], all_steps: Sequence[int], grid: Grid) -> SeriesLine:
    """The line of some cells, one for each bucket at most."""
    counts, values = [0] * grid.count, [0] * grid.count
    shares: list[float | None] = [None] * grid.count
    for cell in cells:
        counts[cell.bucket] = round(cell.steps)
        values[cell.bucket] = round(cell.values or 0)
        shares[cell.bucket] = cell.norm_share
    return SeriesLine(
        of=of,
        total=sum(counts),
        first_step=min((cell.first_step for cell in cells if cell.first_step is not None), default=None),
        last_step=max((cell.last_step for cell in cells if cell.last_step is not None), default=None),
        first_time=min((cell.first_time for cell in cells if cell.first_time is not None), default=None),
        last_time=max((cell.last_time for cell in cells if cell.last_time is not None), default=None),
        counts=counts,
        per_second=[_rounded(count / grid.seconds(n)) for n, count in enumerate(counts)],
        share=[_rounded(count / steps) if steps else None for count, steps in zip(counts, all_steps, strict=True)],
        values=values if of.parameter is not None else None,
        norm_share=shares if of.parameter is not None and any(share is not None for share in shares) else None,
    )


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
