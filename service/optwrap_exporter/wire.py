"""The contract: what a training process may send, and what the exporter answers (docs/reference/wire.md).

Requests (`Report` and its parts) are strict: every bound is checked here, unknown fields are refused, and nothing
behind this module validates again. Responses are plain models; floats that are not finite travel as the strings
"NaN", "Infinity" and "-Infinity" in both directions.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final, Generic, Literal, Self, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    PlainSerializer,
    ValidationError,
    model_validator,
)
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import core_schema

from optwrap_exporter import consistency
from optwrap_exporter.consistency import wrong

Verdict = Literal[
    "applied", "accumulated", "skipped_not_finite", "skipped_large", "skipped_other", "accepted_not_finite"
]
State = Literal["starting", "running", "finished", "failed"]
AttemptState = Literal["starting", "running", "finished", "failed", "lost"]
Health = Literal[
    "conflict",
    "gave_up",
    "failed",
    "finished",
    "stale",
    "stalled",
    "starved",
    "skipping",
    "starting",
    "degraded",
    "ok",
]
EventKind = Literal[
    "skipped",
    "accepted_not_finite",
    "streak_started",
    "streak_ended",
    "starved",
    "stalled",
    "stale",
    "started",
    "resumed",
    "finished",
    "failed",
    "conflict",
    "diverged",
]
VERDICTS: Final[tuple[Verdict, ...]] = get_args(Verdict)
"""What can become of a step, in the order in which `counts.Counts` keeps them."""
HEALTHS: Final[tuple[Health, ...]] = get_args(Health)
"""Every health; of several that hold the first counts, so this is also the order from worst to best."""
EVENT_KINDS: Final[tuple[EventKind, ...]] = get_args(EventKind)

LARGEST: Final = 2**53
"""The largest counter: beyond it JSON numbers are not exact everywhere."""
LATEST: Final = 4_102_444_800.0
"""The latest time a clock may show: 2100-01-01, in seconds since 1970."""
MOST_PARAMETERS: Final = 100_000
"""Parameters in one mapping, offenders and step records in one report."""

_NOT_FINITE: Final = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_NO_CONTROLS: Final = r"^[^\x00-\x1f\x7f-\x9f]*$"

NotFinite = Literal["NaN", "Infinity", "-Infinity"]


def spelled(value: float) -> float | NotFinite:
    """A number as JSON can carry it: itself, or the name of what is not finite."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _number(value: float | str) -> float:
    return _NOT_FINITE[value] if isinstance(value, str) else value


def _names(values: Iterable[float]) -> list[float | NotFinite]:
    return [spelled(value) for value in values]


def _numbers(values: Iterable[float | str]) -> list[float]:
    return [_NOT_FINITE[value] if isinstance(value, str) else value for value in values]


Count = Annotated[int, Field(ge=0, le=LARGEST)]
Step = Annotated[int, Field(ge=1, le=LARGEST)]
Time = Annotated[float, Field(ge=0, le=LATEST, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Run = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$")]
Epoch = Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-]{1,64}$")]
Attempt = Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-]{1,128}$")]
Process = Annotated[int, Field(ge=0, le=65_535)]
Parameter = Annotated[str, Field(min_length=1, max_length=1024, pattern=_NO_CONTROLS)]
"""A parameter's path, as `jax.tree_util.keystr` writes it with simple separators."""
Text = Annotated[str, Field(max_length=256, pattern=_NO_CONTROLS)]


class _AsSent:
    """A norm's form on the wire; Python code may give nan and inf as the floats that they are."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        del source
        wire = handler.generate_schema(Annotated[float, Field(ge=0, allow_inf_nan=False)] | NotFinite)

        def named(value: Any) -> Any:
            return spelled(value) if isinstance(value, float) else value

        return core_schema.json_or_python_schema(
            json_schema=wire, python_schema=core_schema.no_info_before_validator_function(named, wire)
        )


_Sent = Annotated[float, _AsSent()]
Norm = Annotated[
    _Sent, AfterValidator(_number), PlainSerializer(spelled, return_type=float | NotFinite, when_used="json")
]
"""A norm: a float once validated, NaN and infinities included; those are strings in JSON."""
Norms = Annotated[
    list[_Sent],
    Field(max_length=MOST_PARAMETERS),
    AfterValidator(_numbers),
    PlainSerializer(_names, return_type=list[float | NotFinite], when_used="json"),
]


def _absent(value: object) -> bool:
    return value is None


def _empty(value: list[Any]) -> bool:
    return not value


class _Request(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, ser_json_inf_nan="strings")


class _Response(BaseModel):
    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings", json_schema_serialization_defaults_required=True)


# --- what a training process sends ------------------------------------------------------------------------------------


class Verdicts(_Request):
    """Steps by verdict; their sum is the number of steps."""

    applied: Count
    accumulated: Count
    skipped_not_finite: Count
    skipped_large: Count
    skipped_other: Count
    accepted_not_finite: Count


ReplicaNumber = Annotated[int, Field(ge=0, le=2**31)]
"""A replica's place along the axes of the replicas, row-major."""


class ReplicaSteps(_Request):
    """One replica of data-parallel training, and in how many steps it was the first that was not finite."""

    replica: ReplicaNumber | None
    """Null: all those that are not told apart."""
    process: Process | None = None
    """Of its first device; null where it is not known where the replica is."""
    device: Text | None = None
    """Its devices by platform and id: `tpu:5`; of several `tpu:4-7`, `cpu:1,5`."""
    steps: Annotated[int, Field(ge=1, le=LARGEST)]


class Counters(_Request):
    """Cumulative counts as the optimizer's state has them: the wire's `totals`, `at_start` and `base`."""

    steps: Count
    gradient_steps: Count
    not_finite_steps: Count
    verdicts: Verdicts
    parameters: Annotated[dict[Parameter, Count], Field(max_length=MOST_PARAMETERS)]
    """Steps in which the parameter's gradient was not finite, in the tree's order; those at zero are left out."""
    replicas: Annotated[list[ReplicaSteps], Field(max_length=MOST_PARAMETERS, exclude_if=_empty)] = []
    """Replicas that were the first whose own gradients were not finite: counted by the client since the epoch began."""

    @model_validator(mode="after")
    def _add_up(self) -> Self:
        verdicts = self.verdicts
        total = sum(getattr(verdicts, name) for name in VERDICTS)
        if self.steps != total:
            raise wrong("steps", f"the sum of the verdicts, {total}", self.steps)
        reached = verdicts.applied + verdicts.accepted_not_finite
        if self.gradient_steps != reached:
            raise wrong("gradient_steps", f"applied + accepted_not_finite, {reached}", self.gradient_steps)
        if self.not_finite_steps > self.steps:
            raise wrong("not_finite_steps", f"at most steps, {self.steps}", self.not_finite_steps)
        consistency.check_replicas(self.replicas)
        return self


class Source(_Request):
    """What the process runs on."""

    host: Text
    platform: Text
    device_kind: Text
    device_count: Annotated[int, Field(ge=0, le=2**31)]
    process_count: Annotated[int, Field(ge=1, le=65_536)]
    jax_version: Text
    optwrap_version: Text


_LEFT_OUT: Final = Field(exclude_if=_absent)
_OptionalCount = Annotated[Count | None, _LEFT_OUT]


class Gauges(_Request):
    """Where the optimizer's state stands now; what has no such wrapper is absent."""

    not_finite_streak: _OptionalCount = None
    not_finite_streak_peak: _OptionalCount = None
    guard_not_finite_count: _OptionalCount = None
    guard_not_finite_limit: _OptionalCount = None
    mini_step: _OptionalCount = None
    every_k: _OptionalCount = None
    gradient_norm: Annotated[Norm | None, _LEFT_OUT] = None
    gradient_norm_limit: Annotated[Annotated[float, Field(ge=0, allow_inf_nan=False)] | None, _LEFT_OUT] = None
    steps_since_sync: _OptionalCount = None
    sync_period: _OptionalCount = None


class StepColumns(_Request):
    """Step records, column by column, all of one length."""

    step: Annotated[list[Step], Field(max_length=MOST_PARAMETERS)] = []
    time: Annotated[list[Time], Field(max_length=MOST_PARAMETERS)] = []
    verdict: Annotated[list[Verdict], Field(max_length=MOST_PARAMETERS)] = []
    finite: Annotated[list[bool], Field(max_length=MOST_PARAMETERS)] = []
    """Whether the incoming gradients were all finite."""
    norm: Norms = []
    mini_step: Annotated[list[Count | None], Field(max_length=MOST_PARAMETERS)] = []
    interpolated: Annotated[
        Annotated[list[bool], Field(max_length=MOST_PARAMETERS)] | None, Field(exclude_if=_absent)
    ] = None
    """Where given: whether the time was estimated (steps of one scan)."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        for name in ("time", "verdict", "finite", "norm", "mini_step", "interpolated"):
            column = getattr(self, name)
            if column is not None and len(column) != len(self.step):
                raise wrong(name, f"as many entries as step has, {len(self.step)}", f"{len(column)} entries")
        return self

    def __len__(self) -> int:
        return len(self.step)


class Offender(_Request):
    """One parameter that was not finite in one step."""

    step: Step
    parameter: Parameter
    not_finite: Annotated[int, Field(ge=1, le=LARGEST)]
    """How many of its values were not finite."""


class ReplicaRecord(_Request):
    """Which replicas' own gradients were not finite in one step, before their mean."""

    step: Step
    replica: ReplicaNumber
    """The first of them."""
    process: Process | None = None
    device: Text | None = None
    """Where that one is, as in ReplicaSteps."""
    count: Annotated[int, Field(ge=1, le=2**31)]
    """How many they were."""
    of: Annotated[int, Field(ge=1, le=2**31)] | None = None
    """How many there are; null where that is not known."""


class Dropped(_Request):
    """Records that the client had to drop, absolute within the epoch."""

    steps: Count
    bad_steps: Count


class Report(_Request):
    """One report of one training process: POST /v1/reports."""

    run: Run
    process: Process
    epoch: Epoch
    attempt: Attempt
    seq: Annotated[int, Field(ge=1, le=LARGEST)]
    oldest_held: Annotated[int, Field(ge=1, le=LARGEST)]
    interval: Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)]
    sent_at: Time
    state: State
    source: Source
    totals: Counters
    at_start: Counters
    base: Counters | None = None
    gauges: Gauges = Gauges()
    steps: StepColumns = StepColumns()
    offenders: Annotated[list[Offender], Field(max_length=MOST_PARAMETERS)] = []
    replicas: Annotated[list[ReplicaRecord], Field(max_length=MOST_PARAMETERS, exclude_if=_empty)] = []
    dropped: Dropped = Dropped(steps=0, bad_steps=0)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        consistency.check(self)
        return self


# --- what the exporter answers ----------------------------------------------------------------------------------------


class Acknowledgement(_Response):
    """Answer to a report."""

    acknowledged: int
    """Everything from the report's oldest_held to this seq is durable; below oldest_held where nothing is."""
    base: Counters | None
    """What the exporter had counted for this process before this epoch; null where that is nothing."""
    duplicate: Annotated[SkipJsonSchema[bool], Field(exclude=True)] = False
    """Whether it was stored before: for the exporter's own metrics, not on the wire."""


class ErrorDetail(_Response):
    """One thing wrong with a request."""

    field: str
    value: str
    allowed: str


class ErrorBody(_Response):
    """The body of every answer that is an error."""

    detail: list[ErrorDetail]


class Skipped(_Response):
    """Skipped steps by reason."""

    not_finite: int
    large: int
    other: int


class Totals(_Response):
    """Cumulative counts as the API shows them."""

    steps: int
    gradient_steps: int
    verdicts: dict[Verdict, int]
    skipped: Skipped
    not_finite_steps: int
    accepted_not_finite: int


class ParameterRow(_Response):
    """One parameter that has been not finite."""

    parameter: str
    steps: int
    """Steps in which it was, by the optimizer's own counter."""
    values: int
    """Values that were, as far as records came."""
    first_step: int | None
    last_step: int | None


class ReplicaRow(_Response):
    """One replica of data-parallel training that was the first whose own gradients were not finite."""

    replica: int | None
    """Its place along the axes of the replicas; null: all those that are not told apart."""
    process: int | None
    """Of its first device; null where that is not known."""
    device: str | None
    """Its devices by platform and id: `tpu:5`; of several `tpu:4-7`, `cpu:1,5`."""
    steps: int
    """Steps in which it was the first."""
    first_step: int | None
    """As far as records came."""
    last_step: int | None


class DroppedTotals(_Response):
    """Records that are missing, by who dropped them."""

    steps: int
    bad_steps: int
    not_stored: int
    """Step records that reached the exporter and for which its store had no room, at once or later."""


class AttemptRow(_Response):
    """One launch of the run; times by the exporter's clock."""

    attempt: str
    since: float
    until: float
    """Its last report."""
    state: AttemptState
    """As its processes said last; `lost`: silent, or replaced by another attempt, without having said how it ended."""


class ProcessRow(_Response):
    """One process of the run."""

    process: int
    host: str
    health: Health
    since: float
    epoch: str
    last_report: float
    totals: Totals
    gauges: Gauges


class RunSummary(_Response):
    """One run in the list of runs."""

    run: str
    health: Health
    since: float
    first_report: float
    last_report: float
    totals: Totals
    process_count: int
    """How many processes the job says it has."""
    processes: int
    """How many of them report."""


class RunDetail(_Response):
    """One run, whole: GET /v1/runs/{run}. Times in seconds since 1970, by the exporter's clock."""

    run: str
    health: Health
    since: float
    first_report: float
    last_report: float
    totals: Totals
    """Seen to run, monotonic."""
    state_totals: Totals
    """What the optimizer's state says now; may go back."""
    unseen: int
    """Steps that the state has lived and nobody reported."""
    gauges: Gauges
    parameters: list[ParameterRow]
    """Worst first."""
    replicas: list[ReplicaRow]
    """Worst first; none where the optimizer is given no `replica_flags`."""
    dropped: DroppedTotals
    attempts: list[AttemptRow]
    processes: list[ProcessRow]


class StepsAnswer(_Response):
    """GET /v1/runs/{run}/steps."""

    run: str
    process: int
    since: int | None
    """First step that was asked for; null: from the first there is."""
    until: int | None
    """Last step that was asked for; null: to the last there is."""
    total: int
    """Step records stored in that range."""
    sampled: bool
    """Whether good steps were left out to keep to `points`; bad ones never are."""
    columns: StepColumns
    replicas: list[ReplicaRecord]
    """Those of these steps to which replicas brought what is not finite; like a step, one may be there twice."""


class Event(_Response):
    """Something that happened."""

    id: int
    run: str
    process: int
    kind: EventKind
    time: float
    """Of the step by the client's clock where there is a step, else by the exporter's."""
    step: int | None
    attempt: str
    detail: dict[str, Any]


class ReportMessage(_Response):
    """What one committed change added: the stream's `report` event."""

    run: str
    process: int
    revision: int
    steps: StepColumns
    offenders: list[Offender]
    replicas: list[ReplicaRecord]
    events: list[Event]


Item = TypeVar("Item")


class Page(_Response, Generic[Item]):
    """One page of a list."""

    items: list[Item]
    cursor: str | None
    """Give it back to get the next page; null on the last one."""


# --- errors -----------------------------------------------------------------------------------------------------------

_LONGEST: Final = 200


def shown(value: object, longest: int = _LONGEST) -> str:
    """`value` for an error message: printable, and at most `longest` characters."""
    text = value if isinstance(value, str) else repr(value)
    text = text[: longest + 1]  # of the megabytes that a report may hold, no more than is shown
    text = "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)
    return text if len(text) <= longest else text[: longest - 1] + "…"


def field_of(location: Iterable[int | str]) -> str:
    """`("steps", "norm", 3)` as `steps.norm[3]`; the whole body is `body`."""
    field = ""
    for part in location:
        name = part if part != "" else '""'
        field += f"[{name}]" if isinstance(name, int) else f".{name}" if field else name
    return shown(field) or "body"


def error_details(error: ValidationError, most: int = 20) -> list[ErrorDetail]:
    """What is wrong, in the API's words: field, value (shortened) and what is allowed; at most `most` entries.

    A value that fits none of several forms (a norm that is neither a number nor "NaN") is one entry, not one for each.
    """
    found: dict[str, tuple[str, list[str]]] = {}
    for item in error.errors(include_url=False):
        context: Mapping[str, Any] = item.get("ctx", {})
        location = _plain(item["loc"])
        if "field" in context:
            location = (*location, context["field"])
        value = shown(context.get("value", item["input"]))
        match item["type"]:
            case "missing":
                value, allowed = "absent", "this field to be there"
            case "extra_forbidden":
                allowed = "no field of this name: leave it out"
            case "string_pattern_mismatch":
                allowed = f"a string that matches {context['pattern']}"
            case _:
                allowed = str(context.get("allowed", item["msg"])).removeprefix("Input should be ")
        _, forms = found.setdefault(field_of(location), (value, []))
        if allowed not in forms:
            forms.append(allowed)
    return [
        ErrorDetail(field=field, value=value, allowed=shown(", or ".join(forms), 1000))
        for field, (value, forms) in list(found.items())[:most]
    ]


def _plain(location: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """The location without what pydantic adds: which member of a union it tried, and that a key was meant."""
    if location[-1:] == ("[key]",):
        return location[:-1]
    if len(location) > 1 and (location[-2] == "gradient_norm" or location[-3:-2] == ("norm",)):
        return location[:-1]
    return location
