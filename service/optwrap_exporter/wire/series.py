"""What GET /v1/runs/{run}/series answers."""

from typing import Literal

from optwrap_exporter.wire.times import Answer, Instant

By = Literal["outcome", "parameter", "replica"]


class SeriesOf(Answer):
    """What one line of a series counts. Only the fields that belong to `by` are there."""

    kind: str | None = None
    """By outcome: the outcome. An accumulated step with non-finite gradients is `accumulated_not_finite`."""
    parameter: str | None = None
    replica: int | None = None
    """The replica's index. With process and device null: the replicas without an entry of their own."""
    process: int | None = None
    device: str | None = None


class SeriesLine(Answer):
    """Counts of one outcome, parameter or replica. The lists have an entry for each bucket."""

    of: SeriesOf
    total: int
    """Steps in the whole range: with this outcome, with a non-finite gradient of this parameter, or in which this
    replica was the first with non-finite gradients."""
    first_step: int | None
    """The first of these steps; null if there is none. By outcome it is not known."""
    last_step: int | None
    first_time: Instant | None
    """When the first of these steps was taken, by the client's clock."""
    last_time: Instant | None
    counts: list[int]
    per_second: list[float]
    """Steps per second of the part of the bucket that is in the range."""
    share: list[float | None]
    """The part of all steps of the bucket; null if it has none."""
    values: list[int] | None = None
    """By parameter: non-finite values."""
    norm_share: list[float | None] | None = None
    """By parameter: the largest share of the squared norm in a step that was skipped as too large; null if no such step
    names the parameter."""


class SeriesAnswer(Answer):
    """Steps counted in buckets of time, by the client's clock."""

    run: str
    process: int
    by: By
    bucket: float | None
    """Seconds in a bucket. Buckets begin at multiples of it since 1970. Null if no width was asked for and there are no
    steps."""
    since: Instant | None = None
    """The beginning of the range: what was asked for, but not before the first step; null if there are no steps."""
    until: Instant | None = None
    """The end of the range: what was asked for, or just after the last step."""
    times: list[Instant]
    """When each bucket begins."""
    steps: list[int]
    """All steps of each bucket. A step that was taken again counts each time."""
    lines: list[SeriesLine]
    """The largest total first."""
    left_out: int = 0
    """Number of lines that are left out: those with the smallest totals."""
    sampled: float | None = None
    """Null if every step was counted. Else the counts by parameter or replica are an estimate from this share of the
    bad steps, because there are too many."""
