"""What the exporter answers about incidents."""

from optwrap_exporter.wire.times import Answer, Instant
from optwrap_exporter.wire.vocabulary import IncidentKind, IncidentState, Outcome


class IncidentReplica(Answer):
    """The first replica with non-finite gradients in the first bad step."""

    replica: int
    process: int | None
    """The process of its first device; null if unknown."""
    device: str | None
    """Its devices, as in ReplicaRow; null if unknown."""


class Incident(Answer):
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
    first_applied_step: int | None
    """The first of those; null if there is none, or it has no record."""
    gave_up: Instant | None
    """When the exporter first heard of one; null if there is none."""
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
    times: int
    """How many launches in a row failed at about this step for this reason; 1 for every other kind."""
    summary: str
    """All of this in one sentence."""
    runbook: str | None
    """The heading of the runbook that says what to do; null if there is none."""
