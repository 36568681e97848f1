"""`StepRecord`: what `Monitor(on_step=...)` is called with."""

import dataclasses

from optwrap._reading.unpack import Reading


@dataclasses.dataclass(frozen=True)
class StepRecord:
    """One step that the Monitor has counted."""

    run: str
    """The run's name; that of the member's run with `Monitor(members=n)`."""
    time: float
    """When the step was observed, in seconds since 1970."""
    interpolated: bool
    """Whether `time` is an estimate, because several steps were observed at once."""
    reading: Reading
    """The step's own values, and the totals up to and including it."""
    lost: int = 0
    """Records that were left out just before this one, because `on_step` was too slow for them."""

    @property
    def step(self) -> int:
        """The step's number: 1 for the first call of `update` on this state."""
        return self.reading.step

    @property
    def outcome(self) -> str:
        """The step's outcome, such as "applied"."""
        outcome = self.reading.outcome
        assert outcome is not None, "a record is made of a step only"
        return outcome

    @property
    def finite(self) -> bool:
        """Whether all values of the incoming gradients were finite."""
        return self.reading.finite

    @property
    def norm(self) -> float:
        """Global L2 norm of the incoming gradients."""
        return self.reading.norm
