"""What the exporter answers. Non-finite floats are the strings "NaN", "Infinity" and "-Infinity" in JSON."""

from typing import Annotated, Any, Final, Generic, Literal, TypeVar

from pydantic import Field
from pydantic.json_schema import SkipJsonSchema

from optwrap_exporter.wire.requests import Gauges, Offender, ReplicaRecord, StepColumns
from optwrap_exporter.wire.times import Answer as _Answer
from optwrap_exporter.wire.times import Instant
from optwrap_exporter.wire.vocabulary import (
    OUTCOMES,
    AttemptState,
    EventKind,
    Health,
    IncidentKind,
    IncidentState,
    OptionalNorms,
    Outcome,
)

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
    since: float
    """Its first report."""
    until: float
    """Its last report."""
    state: AttemptState
    """The last state its processes reported; `lost` if they went silent or were replaced without reporting an end."""


class ProcessRow(_Answer):
    """One process of the run."""

    process: int
    host: str
    health: Health
    since: float
    """When that health began."""
    last_report: float
    totals: ProcessTotals
    gauges: Gauges


class RunSummary(_Answer):
    """One run in the list of runs."""

    run: str
    health: Health
    since: float
    """When that health began."""
    reason: str | None
    """Why it failed or stopped, by the first process that says so; null if no process did, or all run again."""
    last_clean_step: int | None
    """If it stopped, the step to roll back to, by the optimizer's own count; null if that is not known."""
    first_report: float
    last_report: float
    totals: Totals
    unseen: int
    """Steps of the optimizer's state that no stored report covers."""
    unseen_not_finite: int
    """How many of them had non-finite gradients, as far as that is known."""
    process_count: int
    """Number of processes of the job, as the job reports it."""
    processes: int
    """Number of processes that report."""


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


class RunDetail(_Answer):
    """Everything about one run: GET /v1/runs/{run}. Times are seconds since 1970 by the exporter's clock."""

    run: str
    health: Health
    since: float
    """When that health began."""
    reason: str | None
    """Why it failed or stopped, by the first process that says so; null if no process did, or all run again."""
    last_clean_step: int | None
    """If it stopped, the step to roll back to, by the optimizer's own count; null if that is not known."""
    first_report: float
    last_report: float
    totals: Totals
    """Counted over all attempts; never falls."""
    state_totals: Totals
    """The counters of the optimizer's state now; falls after a rollback."""
    unseen: int
    """Steps of the optimizer's state that no stored report covers."""
    unseen_not_finite: int
    """How many of them had non-finite gradients, as far as that is known."""
    gauges: Gauges
    scalars: dict[str, float]
    """The last finite value of each scalar."""
    parameters: list[ParameterRow]
    """Worst first."""
    replicas: list[ReplicaRow]
    """Worst first; empty if the optimizer is given no `replica_flags`."""
    dropped: DroppedTotals
    attempts: list[AttemptRow]
    processes: list[ProcessRow]
    left_out: LeftOutOfRun


class BadSteps(_Answer):
    """Bad steps in a row of which only some are shown: of each outcome the first and the last."""

    since: int
    """The first of them."""
    until: int
    """The last of them."""
    total: int
    outcomes: dict[Outcome, int]
    """Their number by outcome; outcomes without any are left out."""


StepKind = Literal[Outcome, "accumulated_not_finite"]
STEP_KINDS: Final[tuple[StepKind, ...]] = (*OUTCOMES, "accumulated_not_finite")


class StepBuckets(_Answer):
    """All steps of a range in buckets of equal length, as columns of one length. Buckets without steps are left out.

    A step that was taken again, after a rollback or in another attempt, counts each time.
    """

    axis: Literal["step", "time"]
    width: float
    """Step numbers or seconds in a bucket. The first and the last bucket may cover less."""
    since: list[int] | None
    """Where each bucket begins; null along time."""
    until: list[int] | None
    """The last step number of each bucket; null along time."""
    first_time: list[float]
    """When the earliest step of each bucket was taken."""
    last_time: list[float]
    """When the latest step of each bucket was taken."""
    norm_min: OptionalNorms
    """The smallest finite norm of each bucket, of good and bad steps; null if it has none."""
    norm_median: OptionalNorms
    """The median of these norms: of an even number of them, the lower of the two in the middle."""
    norm_max: OptionalNorms
    kinds: dict[StepKind, list[int]]
    """Steps of each bucket by kind, which add up to all of them; kinds without any are left out. The kind is the
    outcome, but an accumulated step with non-finite gradients is `accumulated_not_finite`, and an applied one
    `accepted_not_finite`."""


class StepsAnswer(_Answer):
    """The answer of GET /v1/runs/{run}/steps."""

    run: str
    process: int
    since: int | None
    """First step asked for; null means from the first stored step."""
    until: int | None
    """Last step asked for; null means to the last stored step."""
    total: int
    """Number of step records stored in that range."""
    sampled: bool
    """Whether good steps were left out to keep to `points`."""
    bad: int
    """Number of bad step records stored in that range: skipped, or with non-finite gradients."""
    thinned: list[BadSteps]
    """Where bad steps were left out, because there are more than the answer can hold. Empty if all are shown."""
    columns: StepColumns
    replicas: list[ReplicaRecord]
    """Replica records of the steps shown. Like a step, one can be there twice."""
    replicas_left_out: int
    """Number of replica records of the steps shown that are left out."""
    buckets: StepBuckets | None = None
    """All steps of the range, good and bad; null unless they are asked for."""


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


class IncidentReplica(_Answer):
    """The first replica with non-finite gradients in the first bad step."""

    replica: int
    process: int | None
    """The process of its first device; null if unknown."""
    device: str | None
    """Its devices, as in ReplicaRow; null if unknown."""


class Incident(_Answer):
    """One trouble of a run, from all processes that reported it. Times are seconds since 1970 by the exporter's clock.

    Every process of an attempt reports the same bad steps: here each step counts once.
    """

    id: int
    run: str
    kind: IncidentKind
    state: IncidentState
    """`closed`: it is over. `acknowledged`: somebody said so; this is final."""
    attempt: str
    """The attempt in which it began."""
    processes: list[int]
    """The first 64 processes that it is about. Of `diverged` those that differ from most others."""
    process_count: int
    """Number of processes that it is about."""
    opened: Instant
    """When it began."""
    updated: Instant
    """When it last changed because of what a process did or did not do."""
    closed: Instant | None
    """When it was over; null while it lasts."""
    acknowledged: Instant | None
    first_step: int | None
    """The first step that it is about; null if it is about none."""
    last_step: int | None
    steps: int
    """Number of bad steps; 0 if it is not about steps."""
    applied: int
    """How many of them gave non-finite values to the optimizer."""
    parameter: str | None
    """The first parameter with non-finite gradients in the first of those steps."""
    replica: IncidentReplica | None
    host: str | None
    """The host of the first of these processes; null if it is about the whole run."""
    device: str | None
    """The kind of device of a process that diverged; else null."""
    last_clean_step: int | None
    """Roll back to this step or an earlier one; null if no rollback is needed, or the step is not known."""
    outcomes: list[Outcome]
    """What became of its bad steps."""
    reason: str | None
    """Why a process failed or stopped, as it reported."""
    summary: str
    """All of this in one sentence."""
    runbook: str | None
    """The heading of the runbook that says what to do; null if there is none."""


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
