"""GET /v1/runs/{run}/steps: the step records of one process."""

from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request, Response

from optwrap_exporter.http.errors import refused
from optwrap_exporter.http.query.csv_answer import CONTENT, csv_answer, wants_csv
from optwrap_exporter.http.query.limiter import Limiter
from optwrap_exporter.http.query.parameters import ProcessNumber, RunName
from optwrap_exporter.http.query.responses import UNKNOWN, answer, unknown_process, unknown_run, within_limit
from optwrap_exporter.http.query.routing import limited
from optwrap_exporter.ledger.ledger import Ledger
from optwrap_exporter.store.steps.downsample import Axis
from optwrap_exporter.store.store import Store
from optwrap_exporter.wire.step_answers import StepsAnswer
from optwrap_exporter.wire.vocabulary import LARGEST

MOST_POINTS: Final = 20_000
"""The most good steps that may be asked for."""
MOST_BUCKETS: Final = 2_000
"""The most buckets that may be asked for."""
_MOST_BAD: Final = 8_000
"""Bad steps beyond this number are thinned."""
_MOST_REPLICAS: Final = 2_000

StepNumber = Annotated[int | None, Query(ge=0, le=LARGEST, description="First or last step to return.")]


def router(store: Store, ledger: Ledger, limiter: Limiter) -> APIRouter:
    """The route of the steps."""
    routes = APIRouter(tags=["queries"], route_class=limited(limiter))

    @routes.get("/v1/runs/{run}/steps", response_model=StepsAnswer, responses={**CONTENT, **UNKNOWN})
    def get_steps(
        request: Request,
        run: RunName,
        *,
        since: StepNumber = None,
        until: StepNumber = None,
        points: Annotated[
            int,
            Query(ge=2, le=MOST_POINTS, description="The most good steps to return; fewer if the answer is too large."),
        ] = 2000,
        process: ProcessNumber = None,
        axis: Annotated[
            Axis, Query(description="The axis along which steps are downsampled, or cut into buckets.")
        ] = "step",
        buckets: Annotated[
            int | None, Query(ge=1, le=MOST_BUCKETS, description="Also return all steps in at most so many buckets.")
        ] = None,
    ) -> Response:
        """Get the step records of one process.

        If there are more than `points` good steps, they are downsampled. If there are more than 8,000 bad steps, they
        are thinned: each of 1,000 parts of the range shows the first and the last of each outcome, and `thinned` has
        the number of all of them. Ask for a shorter range to get all. `buckets` has every step, counted by kind, and
        the smallest, the median and the largest norm of each bucket. As CSV, the headers `optwrap-total` and
        `optwrap-shown` have the number of steps in the range and in the answer.
        """
        lead = ledger.lead(run)
        if lead is None:
            raise unknown_run(run)
        if since is not None and until is not None and since > until:
            raise refused(422, "until", until, f"at least since, {since}")
        if process is not None and not ledger.has(run, process):
            raise unknown_process(run, process)
        of = lead if process is None else process
        as_csv = wants_csv(request)

        def found(share: float) -> Response:
            steps = store.steps(
                run,
                of,
                since=since,
                until=until,
                points=max(2, int(points * share)),
                axis=axis,
                most_bad=int(_MOST_BAD * share),
                most_replicas=int(_MOST_REPLICAS * share),
                buckets=buckets,
            )
            return _table(steps) if as_csv else answer(steps)

        return within_limit(found)

    return routes


def _table(steps: StepsAnswer) -> Response:
    """The columns as CSV, each scalar as a column `scalar.name`."""
    columns: dict[str, Any] = steps.columns.model_dump(mode="json")
    columns |= {f"scalar.{name}": column for name, column in columns.pop("scalars", {}).items()}
    headers = {"optwrap-total": str(steps.total), "optwrap-shown": str(len(steps.columns))}
    return csv_answer(list(columns), zip(*columns.values(), strict=True), headers)
