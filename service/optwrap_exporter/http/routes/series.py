"""GET /v1/runs/{run}/series: steps counted in buckets of time."""

from collections.abc import Iterator
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request, Response

from optwrap_exporter.http.errors import refused
from optwrap_exporter.http.query.csv_answer import CONTENT, csv_answer, wants_csv
from optwrap_exporter.http.query.limiter import Limiter
from optwrap_exporter.http.query.parameters import ProcessNumber, RunName, Since, Until, seconds, time_range
from optwrap_exporter.http.query.responses import UNKNOWN, answer, unknown_process, unknown_run, within_limit
from optwrap_exporter.http.query.routing import limited
from optwrap_exporter.ledger.ledger import Ledger
from optwrap_exporter.store.steps.grid import BUCKETS, BucketsError, Wanted
from optwrap_exporter.store.store import Store
from optwrap_exporter.wire.series import By, SeriesAnswer
from optwrap_exporter.wire.times import SUFFIX, rfc3339
from optwrap_exporter.wire.vocabulary import Parameter

_COLUMNS: Final = (
    *("time", f"time{SUFFIX}", "steps", "kind", "parameter", "replica", "process", "device"),
    *("count", "per_second", "share", "values", "norm_share"),
)


def router(store: Store, ledger: Ledger, limiter: Limiter) -> APIRouter:
    """The route of the series."""
    routes = APIRouter(tags=["queries"], route_class=limited(limiter))

    @routes.get("/v1/runs/{run}/series", response_model=SeriesAnswer, responses={**CONTENT, **UNKNOWN})
    def get_series(
        request: Request,
        run: RunName,
        *,
        by: Annotated[By, Query(description="What to count the steps by.", examples=["outcome"])] = "outcome",
        bucket: Annotated[
            str | None,
            Query(
                max_length=32,
                description="Width of a bucket: seconds, or a number with s, m, h or d. By default chosen.",
                examples=["1h", "60"],
            ),
        ] = None,
        since: Since = None,
        until: Until = None,
        process: ProcessNumber = None,
        parameter: Annotated[
            list[Parameter], Query(max_length=100, description="By parameter: only this one. Repeat it for more.")
        ] = [],  # noqa: B006 - FastAPI copies it
        limit: Annotated[int, Query(ge=1, le=500, description="The most lines; those with the most steps.")] = 20,
    ) -> Response:
        """Count the steps of one process in buckets of time: by outcome, parameter or replica.

        By parameter it counts the steps in which the gradient of the parameter was non-finite, by replica those in
        which the replica was the first with non-finite gradients. So one request says how many steps were skipped in
        each hour of the last day for which reason, or when a parameter went bad. A CSV has a row for each bucket of
        each line.
        """
        lead = ledger.lead(run)
        if lead is None:
            raise unknown_run(run)
        if process is not None and not ledger.has(run, process):
            raise unknown_process(run, process)
        if parameter and by != "parameter":
            raise refused(422, "parameter", parameter[0], "no parameter, unless by is `parameter`")
        times = time_range(since, until, ledger.clocks.now())
        wanted = Wanted(by, times.since, times.until, seconds("bucket", bucket), tuple(parameter), limit)
        try:
            found = store.series(run, lead if process is None else process, wanted)
        except BucketsError as error:
            raise refused(
                422, "bucket", bucket, f"at least {error.least:g} s: the range may have at most {BUCKETS} buckets"
            ) from None

        def shown(share: float) -> Response:
            lines = found.lines[: max(1, int(len(found.lines) * share))]
            cut = found.model_copy(update={"lines": lines, "left_out": found.left_out + len(found.lines) - len(lines)})
            return csv_answer(_COLUMNS, _rows(cut)) if wants_csv(request) else answer(cut)

        return within_limit(shown)

    return routes


def _rows(found: SeriesAnswer) -> Iterator[list[Any]]:
    times = [(time, rfc3339(time)) for time in found.times]
    for one in found.lines:
        of = one.of
        empty = [None] * len(times)
        for time, steps, *cells in zip(
            times,
            found.steps,
            one.counts,
            one.per_second,
            one.share,
            one.values or empty,
            one.norm_share or empty,
            strict=True,
        ):
            yield [*time, steps, of.kind, of.parameter, of.replica, of.process, of.device, *cells]
