"""The words and bounds of the wire: enumerations, limits, and the types of single fields."""

import hashlib
import math
from collections.abc import Iterable
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import AfterValidator, Field, GetCoreSchemaHandler, PlainSerializer
from pydantic_core import core_schema

Outcome = Literal[
    "applied", "accumulated", "skipped_not_finite", "skipped_large", "skipped_other", "accepted_not_finite"
]
State = Literal["starting", "running", "finished", "failed", "stopped"]
AttemptState = Literal["starting", "running", "finished", "failed", "stopped", "lost"]
Health = Literal[
    "conflict",
    "diverged",
    "gave_up",
    "failed",
    "stopped",
    "stale",
    "stalled",
    "starved",
    "skipping",
    "starting",
    "degraded",
    "finished",
    "ok",
]
IncidentKind = Literal["conflict", "diverged", "gave_up", "failed", "stopped", "stale", "stalled", "starved", "skipped"]
IncidentState = Literal["open", "closed", "acknowledged"]
EventKind = Literal[
    "skipped",
    "accepted_not_finite",
    "streak_started",
    "streak_ended",
    "rebased",
    "starved",
    "stalled",
    "stale",
    "started",
    "resumed",
    "finished",
    "failed",
    "stopped",
    "conflict",
    "diverged",
    "diagnosed",
]
SkipReason = Literal["not_finite", "large", "other"]
LostReason = Literal["skipped", "redone", "starved"]
"""Why steps were lost (`ledger.lost`)."""
Scope = Literal["host", "job"]
"""What an exporter hears: `host` the processes of its own host, `job` all processes of a job."""

OUTCOMES: Final[tuple[Outcome, ...]] = get_args(Outcome)
"""Every outcome of a step. The store writes an outcome as its index here."""
GOOD_OUTCOMES: Final[frozenset[Outcome]] = frozenset({"applied", "accumulated"})
"""Outcomes of steps that went as planned. They make no events."""
GRADIENT_STEPS: Final[frozenset[Outcome]] = frozenset({"applied", "accepted_not_finite"})
"""Outcomes of steps in which the inner optimizer ran."""
SKIP_REASONS: Final[dict[Outcome, SkipReason]] = {
    "skipped_not_finite": "not_finite",
    "skipped_large": "large",
    "skipped_other": "other",
}
"""Why a step was skipped, by its outcome."""
ENDED: Final[frozenset[State]] = frozenset({"finished", "failed", "stopped"})
"""States after which a process reports no more steps."""
HEALTHS: Final[tuple[Health, ...]] = get_args(Health)
"""Every health, worst first. If several hold, the first one is shown."""
EVENT_KINDS: Final[tuple[EventKind, ...]] = get_args(EventKind)
INCIDENT_KINDS: Final[tuple[IncidentKind, ...]] = get_args(IncidentKind)
"""Every kind of incident, worst first."""
INCIDENT_STATES: Final[tuple[IncidentState, ...]] = get_args(IncidentState)
INCIDENT_OF: Final[dict[Health, IncidentKind]] = {
    **{health: health for health in get_args(Health) if health in get_args(IncidentKind)},
    "skipping": "skipped",
}
"""The kind of incident that a health belongs to. The other healths are no trouble."""
LOST_REASONS: Final[tuple[LostReason, ...]] = get_args(LostReason)
SCOPES: Final[tuple[Scope, ...]] = get_args(Scope)

LARGEST: Final = 2**53
"""The largest count. JSON numbers above it are not exact in every language."""
LATEST: Final = 4_102_444_800.0
"""The latest time that a report may carry: 2100-01-01 in seconds since 1970."""
MOST_PARAMETERS: Final = 4096
"""The most parameters that the totals of a report name."""
MOST_RECORDS: Final = 8192
"""The most step records, offenders and replica records in one report, each."""
MOST_REPLICAS: Final = 256
"""The most replicas that the totals of a report name."""
MOST_SCALARS: Final = 16
"""The most scalars in one report, and of one process."""
SATURATED: Final = 2**32 - 1
"""The library's counters stop here. A counter that has stopped cannot be compared with the others."""


def is_good(outcome: str, finite: bool) -> bool:
    """Whether a step went as planned, and its gradients were finite. All other steps are bad."""
    return finite and outcome in GOOD_OUTCOMES


def all_good(outcomes: Iterable[str], finite: Iterable[bool]) -> bool:
    """Whether all steps of these columns are good. Faster than `is_good` of each."""
    return GOOD_OUTCOMES.issuperset(outcomes) and all(finite)


def own_attempt(incarnation: str) -> str:
    """The attempt of a process whose launch is unknown, by the id of its first incarnation.

    It is not the id itself: attempts are published, and who knows an incarnation's id can report under it.
    """
    return hashlib.sha256(incarnation.encode()).hexdigest()[:16]


NOT_FINITE_NUMBERS: Final = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_NO_CONTROLS: Final = r"^[^\x00-\x1f\x7f-\x9f]*$"

NotFinite = Literal["NaN", "Infinity", "-Infinity"]


def to_json_number(value: float) -> float | NotFinite:
    """The number as the wire carries it: a finite one as itself, a non-finite one as its name."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _number(value: float | str) -> float:
    return NOT_FINITE_NUMBERS[value] if isinstance(value, str) else value


def _names(values: Iterable[float]) -> list[float | NotFinite]:
    return [value if math.isfinite(value) else to_json_number(value) for value in values]


def _optional_names(values: Iterable[float | None]) -> list[float | NotFinite | None]:
    return [value if value is None or math.isfinite(value) else to_json_number(value) for value in values]


def _numbers(values: Iterable[Any]) -> list[Any]:
    return [NOT_FINITE_NUMBERS[value] if isinstance(value, str) else value for value in values]


Count = Annotated[int, Field(ge=0, le=LARGEST)]
Step = Annotated[int, Field(ge=1, le=LARGEST)]
Time = Annotated[float, Field(ge=0, le=LATEST, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Run = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$")]
Incarnation = Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-]{1,64}$")]
Attempt = Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-]{1,128}$")]
Process = Annotated[int, Field(ge=0, le=65_535)]
Parameter = Annotated[str, Field(min_length=1, max_length=1024, pattern=_NO_CONTROLS)]
"""A parameter's path, as `jax.tree_util.keystr(path, simple=True, separator="/")` writes it."""
ScalarName = Annotated[str, Field(pattern=r"^[a-zA-Z_][a-zA-Z0-9_]{0,63}$")]
Text = Annotated[str, Field(max_length=256, pattern=_NO_CONTROLS)]
ReplicaNumber = Annotated[int, Field(ge=0, le=2**31)]
"""A replica's index along the replica axes, row-major, from 0."""


class _NumberOnTheWire:
    """Reads a number from JSON as a number or a name; from Python also as a non-finite float.

    Args:
      least: the smallest finite value; None for any.
    """

    def __init__(self, least: float | None) -> None:
        self._least = least

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        del source
        wire = handler.generate_schema(Annotated[float, Field(ge=self._least, allow_inf_nan=False)] | NotFinite)

        def named(value: Any) -> Any:
            return to_json_number(value) if isinstance(value, float) else value

        return core_schema.json_or_python_schema(
            json_schema=wire, python_schema=core_schema.no_info_before_validator_function(named, wire)
        )


_WireNorm = Annotated[float, _NumberOnTheWire(0)]
_WireScalar = Annotated[float, _NumberOnTheWire(None)]
Norm = Annotated[
    _WireNorm,
    AfterValidator(_number),
    PlainSerializer(to_json_number, return_type=float | NotFinite, when_used="json"),
]
"""A norm. In Python a float, NaN and infinities included; in JSON a number or a name."""
Number = Annotated[
    _WireScalar,
    AfterValidator(_number),
    PlainSerializer(to_json_number, return_type=float | NotFinite, when_used="json"),
]
"""A number, as Norm; it may be negative."""
Norms = Annotated[
    list[_WireNorm],
    Field(max_length=MOST_RECORDS, fail_fast=True),
    AfterValidator(_numbers),
    PlainSerializer(_names, return_type=list[float | NotFinite], when_used="json"),
]
_OPTIONAL: Final = PlainSerializer(_optional_names, return_type=list[float | NotFinite | None], when_used="json")
OptionalNorms = Annotated[
    list[_WireNorm | None], Field(max_length=MOST_RECORDS, fail_fast=True), AfterValidator(_numbers), _OPTIONAL
]
"""Norms, null where there is none."""
OptionalScalars = Annotated[
    list[_WireScalar | None], Field(max_length=MOST_RECORDS, fail_fast=True), AfterValidator(_numbers), _OPTIONAL
]
"""Numbers, null where there is none. In Python floats, NaN and infinities included."""
