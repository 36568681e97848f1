"""What GET /v1/runs/{run}/steps answers."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal

from optwrap_exporter.wire.requests import ReplicaRecord, StepColumns
from optwrap_exporter.wire.times import Answer
from optwrap_exporter.wire.vocabulary import GOOD_OUTCOMES, OUTCOMES, OptionalNorms, Outcome


class BadSteps(Answer):
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
"""Every kind of step. An outcome has the same index as in OUTCOMES."""
NOT_FINITE_KINDS: Final[Mapping[Outcome, StepKind]] = MappingProxyType(
    {"applied": "accepted_not_finite", "accumulated": "accumulated_not_finite"}
)
"""The kind of a step with non-finite gradients, by a good outcome. Of other outcomes it is the outcome."""
IS_BAD: Final = tuple(kind not in GOOD_OUTCOMES for kind in STEP_KINDS)
"""For each of STEP_KINDS, whether its steps are bad: skipped, or with non-finite gradients."""


class StepBuckets(Answer):
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


class StepsAnswer(Answer):
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
