"""What a training process sends: the models of POST /v1/reports (docs/reference/wire.md).

The models are strict: they check every bound and forbid unknown fields. `wire.consistency` checks that fields do not
contradict each other. No later code validates a report again.

A wrong report must cost no more than a right one: every collection has a limit, and its validation ends at the first
wrong item. `wire.size` and `wire.fields` refuse what pydantic would spend too much on.
"""

from typing import Annotated, Any, Final, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from optwrap_exporter.wire.errors import inconsistent
from optwrap_exporter.wire.vocabulary import (
    LARGEST,
    MOST_PARAMETERS,
    MOST_RECORDS,
    MOST_REPLICAS,
    MOST_SCALARS,
    Attempt,
    Count,
    Incarnation,
    Norm,
    Norms,
    OptionalNorms,
    OptionalScalars,
    Outcome,
    Parameter,
    Process,
    ReplicaNumber,
    Run,
    ScalarName,
    State,
    Step,
    Text,
    Time,
)


def _absent(value: object) -> bool:
    return value is None


def _empty(value: list[Any] | dict[str, Any]) -> bool:
    return not value


# A default of [] would be copied by Python for every report.
_EMPTY: Final[Any] = Field(default_factory=list, json_schema_extra={"default": []})

_NO_SCALARS: Final[Any] = Field(default_factory=dict, json_schema_extra={"default": {}})

_Item = TypeVar("_Item")
Records = Annotated[list[_Item], Field(max_length=MOST_RECORDS, fail_fast=True)]
"""A list with at most one item for each step record, offender or replica record."""


class _Request(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, ser_json_inf_nan="strings")


class Outcomes(_Request):
    """Number of steps by outcome."""

    applied: Count
    accumulated: Count
    skipped_not_finite: Count
    skipped_large: Count
    skipped_other: Count
    accepted_not_finite: Count

    @property
    def total(self) -> int:
        """Steps in all."""
        return (
            self.applied
            + self.accumulated
            + self.skipped_not_finite
            + self.skipped_large
            + self.skipped_other
            + self.accepted_not_finite
        )


class ReplicaSteps(_Request):
    """How often one replica was the first with non-finite gradients."""

    replica: ReplicaNumber | None
    """The replica's index. Null: the sum over all replicas without an entry of their own."""
    process: Process | None = None
    """The process of the replica's first device; null if unknown."""
    device: Text | None = None
    """The replica's devices by platform and id: `tpu:5`, or of several `tpu:4-7` or `cpu:1,5`."""
    steps: Annotated[int, Field(ge=1, le=LARGEST)]


class Counters(_Request):
    """Cumulative counters of the optimizer's state: the type of `totals` and `at_start`."""

    steps: Count
    gradient_steps: Count
    not_finite_steps: Count
    outcomes: Outcomes
    parameters: Annotated[dict[Parameter, Count], Field(max_length=MOST_PARAMETERS, fail_fast=True)]
    """Steps in which the parameter's gradient was non-finite, in the tree's order: at most 4,096 parameters, those with
    the most such steps. Parameters at zero are left out. The Monitor counts them from the start of the incarnation, so
    its `at_start` has none; other clients may give the counts of that time there, as for every counter."""
    parameter_steps: Annotated[Count | None, Field(exclude_if=_absent)] = None
    """The sum over all parameters, also over those that `parameters` does not name. Absent if it names all."""
    replicas: Annotated[list[ReplicaSteps], Field(max_length=MOST_REPLICAS, fail_fast=True, exclude_if=_empty)] = _EMPTY
    """First non-finite replicas. The Monitor counts them from the start of the incarnation: its `at_start` has none."""

    @model_validator(mode="after")
    def _add_up(self) -> Self:
        outcomes = self.outcomes
        total = outcomes.total
        if self.steps != total:
            raise inconsistent("steps", f"the sum of the outcomes, {total}", self.steps)
        expected = outcomes.applied + outcomes.accepted_not_finite
        if self.gradient_steps != expected:
            raise inconsistent("gradient_steps", f"applied + accepted_not_finite, {expected}", self.gradient_steps)
        if self.not_finite_steps > self.steps:
            raise inconsistent("not_finite_steps", f"at most steps, {self.steps}", self.not_finite_steps)
        named = sum(self.parameters.values())
        if self.parameter_steps is not None and self.parameter_steps < named:
            raise inconsistent("parameter_steps", f"at least the sum of parameters, {named}", self.parameter_steps)
        if not self.replicas:
            return self
        seen: set[tuple[object, ...]] = set()
        for index, one in enumerate(self.replicas):
            key = (one.replica, one.process, one.device)
            if key in seen:
                raise inconsistent(f"replicas[{index}]", "each replica once", f"{key} again")
            seen.add(key)
        return self


class Source(_Request):
    """The machine and the software of a process. Until the devices are known: `""`, 0 devices, 1 process."""

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
    """Current values of the optimizer's state. A gauge is absent if no wrapper of the optimizer has it."""

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
    guard_rebases: _OptionalCount = None
    guard_would_skip_steps: _OptionalCount = None
    update_norm: Annotated[Norm | None, _LEFT_OUT] = None
    """Global L2 norm of the update that the last step applied; absent if it applied none."""


class StepColumns(_Request):
    """Step records as columns of one length."""

    step: Records[Step] = []
    time: Records[Time] = []
    outcome: Records[Outcome] = []
    finite: Records[bool] = []
    """Whether all incoming gradients were finite."""
    norm: Norms = []
    """Global L2 norm of the incoming gradients."""
    mini_step: Records[Count | None] = []
    """Position in the accumulation window; null without accumulation."""
    interpolated: Annotated[Records[bool] | None, Field(exclude_if=_absent)] = None
    """Whether the time is an estimate, as for the steps of one scan. Absent if no time is."""
    update_norm: Annotated[OptionalNorms | None, Field(exclude_if=_absent)] = None
    """Global L2 norm of the update that the step applied; null if it applied none. Absent if no step has one."""
    scalars: Annotated[
        dict[ScalarName, OptionalScalars], Field(max_length=MOST_SCALARS, fail_fast=True, exclude_if=_empty)
    ] = _NO_SCALARS
    """The loss and other numbers by name; null where a step has none. Absent if there are none."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        for name in ("time", "outcome", "finite", "norm", "mini_step", "interpolated", "update_norm"):
            self._check_length(name, getattr(self, name))
        for name, column in self.scalars.items():
            self._check_length(f"scalars.{name}", column)
        return self

    def _check_length(self, name: str, column: list[Any] | None) -> None:
        if column is not None and len(column) != len(self.step):
            raise inconsistent(name, f"as many entries as step, {len(self.step)}", f"{len(column)} entries")

    def __len__(self) -> int:
        return len(self.step)


class Offender(_Request):
    """One parameter in one bad step: its gradient was non-finite, or it had a large share of the norm.

    It has either `not_finite` or `norm_share`.
    """

    step: Step
    parameter: Parameter
    not_finite: Annotated[Annotated[int, Field(ge=1, le=LARGEST)] | None, _LEFT_OUT] = None
    """Number of non-finite values in its gradient."""
    norm_share: Annotated[Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None, _LEFT_OUT] = None
    """Its share of the squared norm, of a step whose gradients were finite. The client sends the three largest."""


class UnnamedOffenders(_Request):
    """The parameters with non-finite gradients in one step that `offenders` does not name."""

    step: Step
    parameters: Annotated[int, Field(ge=1, le=LARGEST)]
    """Number of them."""
    not_finite: Annotated[int, Field(ge=1, le=LARGEST)]
    """Number of non-finite values in their gradients."""


class ReplicaRecord(_Request):
    """The replicas whose own gradients, before the mean, were non-finite in one step."""

    step: Step
    replica: ReplicaNumber
    """The first of them."""
    process: Process | None = None
    """The process of that replica's first device; null if unknown."""
    device: Text | None = None
    """That replica's devices, as in ReplicaSteps; null if unknown."""
    count: Annotated[int, Field(ge=1, le=2**31)]
    """Number of non-finite replicas."""
    of: Annotated[int, Field(ge=1, le=2**31)] | None = None
    """Number of all replicas; null if unknown."""


class Diagnosis(_Request):
    """Why a step went bad, as `optwrap.autopsy` found it."""

    step: Annotated[Step | None, _LEFT_OUT] = None
    """The step; absent if it is not known."""
    cause: Text
    """What made the first non-finite value, and where."""
    remedy: Annotated[Text | None, _LEFT_OUT] = None
    """What usually helps; absent if nothing is known."""


class Dropped(_Request):
    """Step records that the client dropped since the incarnation began."""

    steps: Count
    """Records of good steps."""
    bad_steps: Count
    """Records of all other steps."""


class Report(_Request):
    """One report of one training process: the body of POST /v1/reports."""

    run: Run
    process: Process
    incarnation: Incarnation
    attempt: Attempt
    seq: Annotated[int, Field(ge=1, le=LARGEST)]
    """Number of the report within its incarnation."""
    oldest_held: Annotated[int, Field(ge=1, le=LARGEST)]
    """The smallest seq that the client still holds."""
    interval: Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)]
    """Seconds from one report to the next."""
    sent_at: Time
    """Seconds since 1970 by the client's clock."""
    state: State
    reason: Annotated[Text | None, _LEFT_OUT] = None
    """Why the run ended, in one line; absent before its end, and if it is not known."""
    last_clean_step: _OptionalCount = None
    """Of a run that stopped: the step to roll back to, by the optimizer's own count; absent if it is not known."""
    source: Source
    replicated: Annotated[bool, Field(exclude_if=bool)] = True
    """Whether all processes of the attempt train the same parameters, so that their outcomes and norms must agree."""
    totals: Counters
    at_start: Counters
    """The totals when the incarnation began: the same in all its reports."""
    gauges: Gauges = Gauges()
    steps: StepColumns = StepColumns()
    offenders: Records[Offender] = []
    """Within a step non-finite parameters in the tree's order, or the largest share first."""
    unnamed: Annotated[Records[UnnamedOffenders], Field(exclude_if=_empty)] = _EMPTY
    replicas: Annotated[Records[ReplicaRecord], Field(exclude_if=_empty)] = _EMPTY
    diagnoses: Annotated[Records[Diagnosis], Field(exclude_if=_empty)] = _EMPTY
    """Each is in one report only."""
    dropped: Dropped = Dropped(steps=0, bad_steps=0)
