"""What the exporter answers. Non-finite floats are the strings "NaN", "Infinity" and "-Infinity" in JSON."""

from typing import Annotated, Any, Final, Generic, TypeVar

from pydantic import Field
from pydantic.json_schema import SkipJsonSchema

from optwrap_exporter.wire.incident import Incident
from optwrap_exporter.wire.requests import Gauges, Offender, ReplicaRecord, StepColumns
from optwrap_exporter.wire.times import Answer as _Answer
from optwrap_exporter.wire.times import Instant
from optwrap_exporter.wire.vocabulary import AttemptState, EventKind, Health, IncidentKind, LostReason, Number, Outcome

ANSWER_BYTES: Final = 2 << 20
"""The most bytes of an answer, and of what a stream sends to a client that reconnects. /metrics is not limited."""


class Acknowledgement(_Answer):
    """The answer to a report."""

    acknowledged: int
    """Every report from oldest_held to this seq is stored. It is oldest_held - 1 if that report is not stored."""
    interval: float
    """Seconds until the next report that the exporter asks for: the client's own interval, or more if the exporter has
    many clients."""
    duplicate: Annotated[SkipJsonSchema[bool], Field(exclude=True)] = False
    """Whether the report was stored before. For the exporter's own metrics; not on the wire."""


class Skipped(_Answer):
    """Skipped steps by reason."""

    not_finite: int
    large: int
    other: int


class Totals(_Answer):
    """Cumulative counts."""

    steps: int
    gradient_steps: int
    outcomes: dict[Outcome, int]
    skipped: Skipped
    not_finite_steps: int
    accepted_not_finite: int


class ProcessTotals(_Answer):
    """Cumulative counts of one process. There may be thousands of processes, so sums are left out."""

    steps: int
    outcomes: dict[Outcome, int]
    """Outcomes without any steps are left out."""
    not_finite_steps: int


class ParameterRow(_Answer):
    """One parameter whose gradients were non-finite."""

    parameter: str
    steps: int
    """Steps in which its gradient was non-finite, by the optimizer's counter."""
    values: int
    """Non-finite values in its gradients, as far as step records were received."""
    first_step: int | None
    """First such step, as far as step records were received."""
    last_step: int | None
    """Last such step, as far as step records were received."""


class ReplicaRow(_Answer):
    """One replica that was the first with non-finite gradients."""

    replica: int | None
    """The replica's index. Null: the sum over all replicas without an entry of their own."""
    process: int | None
    """The process of its first device; null if unknown."""
    device: str | None
    """Its devices by platform and id: `tpu:5`, or of several `tpu:4-7` or `cpu:1,5`; null if unknown."""
    steps: int
    """Steps in which it was the first."""
    first_step: int | None
    """First such step, as far as step records were received."""
    last_step: int | None
    """Last such step, as far as step records were received."""


class DroppedTotals(_Answer):
    """Step records that are missing, by who dropped them."""

    steps: int
    """Records of good steps that clients dropped."""
    bad_steps: int
    """Records of all other steps that clients dropped."""
    not_stored: int
    """Records that the exporter received but has no room for."""


class AttemptRow(_Answer):
    """One launch of the run. Times are the exporter's."""

    attempt: str
    since: Instant
    """Its first report."""
    until: Instant
    """Its last report."""
    state: AttemptState
    """The last state its processes reported; `lost` if they went silent or were replaced without reporting an end."""
    reason: str | None
    """Why it failed or stopped, by a process that says so: of an exception its type and message."""
    start_step: int | None
    """The step of the optimizer's state at which it started; null until that is known."""


class RowFigure(_Answer):
    """A value, and what it is of."""

    value: Number
    step: int | None
    """The step that it is of, by the optimizer's own count; null if that is not known."""
    time: float
    """When it was reported, by the exporter's clock."""


class Figure(RowFigure):
    """A value, and what it is of."""

    time: Instant
    """When it was reported, by the exporter's clock."""


class SkippedRecently(_Answer):
    """How many of the last steps were skipped."""

    steps: int
    """The number of steps looked at: the last 1,000, rounded up to whole reports, or all if there are fewer."""
    skipped: int


def _nothing(value: object) -> bool:
    return not value


class ProcessRow(_Answer):
    """One process of the run. There may be thousands, so the times of a row are Unix seconds only."""

    process: int
    host: str
    health: Health
    since: float
    """When that health began."""
    summary: Annotated[str | None, Field(exclude_if=_nothing)]
    """What is wrong with it, in one sentence; left out if it is ok."""
    last_report: float
    totals: ProcessTotals
    gauges: Gauges
    norm: RowFigure | None
    """The gradient norm of its last step."""
    acknowledged: Annotated[bool, Field(exclude_if=_nothing)]
    """Whether somebody has acknowledged the incidents of its health. Else left out."""


class _Run(_Answer):
    """What the list of runs and the answer of one run have in common. Times are by the exporter's clock."""

    run: str
    health: Health
    since: Instant
    """When that health began. Of `stale` it is the last report, of `stalled` the last step."""
    summary: str
    """What is wrong, with which process, and what to do, in one sentence. Its durations are as of the answer."""
    runbook: str | None
    """The heading of the runbook for this health (deploy/runbooks.md); null if there is none."""
    reason: str | None
    """Why it failed or stopped, by the first process that says so; null if no process did, or all run again."""
    last_clean_step: int | None
    """Roll back to this step or an earlier one, by the optimizer's own count. Null if that is not known, and if it
    neither gave up nor diverged, failed or stopped."""
    first_report: Instant
    last_report: Instant
    totals: Totals
    """Counted over all attempts; never falls."""
    unseen: int
    """Steps of the optimizer's state that no stored report covers."""
    unseen_not_finite: int
    """How many of them had non-finite gradients, as far as that is known."""
    process_count: int
    """Number of processes of the job, as the job reports it."""
    missing: int | None
    """Number of processes of the job that have not reported; null with `--scope host`, where they report elsewhere."""
    gauges: Gauges
    """Of the leading process: the lowest one that reports."""
    norm: Figure | None
    """The gradient norm of its last step."""
    update_norm: Figure | None
    """The last finite norm of an update that was applied."""
    scalars: dict[str, Figure]
    """The last value of each scalar, NaN and infinities included."""
    steps_per_second: float | None
    """Null unless a step came lately: a dead, ended or stalled run has none."""
    last_step: int | None
    """The last step of the optimizer's state now; null before the first one."""
    last_step_time: Instant | None
    """When that step was reported; null if it was taken before this exporter heard of it."""
    skipped_recently: SkippedRecently
    lost_steps: dict[LostReason, int]
    """Steps that brought nothing, by reason, of the process that lost the most."""
    lost_seconds: dict[LostReason, float]
    """The time that they took."""
    attempts_total: int
    """Number of launches so far."""
    incidents_open: dict[IncidentKind, int]
    """Number of open incidents by kind; kinds without any are left out."""
    acknowledged: bool
    """Whether somebody has acknowledged every incident of its health. False if its health is no trouble."""
    archived: bool
    """Whether somebody has hidden it."""


class RunSummary(_Run):
    """One run in the list of runs. Times are seconds since 1970 by the exporter's clock."""

    processes: int
    """Number of processes that have reported in this launch."""


class LeftOutOfRun(_Answer):
    """How many entries of each list an answer leaves out, so that it keeps within 2 MiB."""

    parameters: int = 0
    """The least bad ones."""
    replicas: int = 0
    """The least bad ones."""
    attempts: int = 0
    """The oldest ones."""
    processes: int = 0
    """Healthy ones first, from the last on."""
    incidents: int = 0
    """The oldest ones. Of those that are over only the last ones are counted: /v1/runs/{run}/incidents has all."""


class RunDetail(_Run):
    """Everything about one run: GET /v1/runs/{run}. Times are seconds since 1970 by the exporter's clock."""

    state_totals: Totals
    """The counters of the optimizer's state now; falls after a rollback."""
    parameters: list[ParameterRow]
    """Worst first."""
    replicas: list[ReplicaRow]
    """Worst first; empty if the optimizer is given no `replica_flags`."""
    dropped: DroppedTotals
    attempts: list[AttemptRow]
    processes: list[ProcessRow]
    incidents: list[Incident]
    """Open ones first, then the newest first; at most 20."""
    left_out: LeftOutOfRun


class Event(_Answer):
    """Something that happened to a process."""

    id: int
    run: str
    process: int
    kind: EventKind
    time: Instant
    """Of a step by the client's clock, else by the exporter's."""
    step: int | None
    attempt: str
    detail: dict[str, Any]


class LeftOutOfReport(_Answer):
    """How many records a message leaves out, so that it keeps within 2 MiB. GET /v1/runs/{run}/steps has them."""

    steps: int = 0
    offenders: int = 0
    replicas: int = 0
    events: int = 0


class Gap(_Answer):
    """What a stream leaves out for a client that is too far behind: the stream's `gap` event."""

    after: int
    """The revision after which messages are left out."""
    until: int
    """The last revision that is left out."""
    messages: int
    """Number of `report` events that are left out."""


class ReportMessage(_Answer):
    """What one transaction added: the stream's `report` event."""

    run: str
    process: int
    revision: int
    steps: StepColumns
    offenders: list[Offender]
    replicas: list[ReplicaRecord]
    events: list[Event]
    left_out: LeftOutOfReport


Item = TypeVar("Item")


class Page(_Answer, Generic[Item]):
    """One page of a list."""

    items: list[Item]
    cursor: str | None
    """Pass it back for the next page; null on the last page."""
