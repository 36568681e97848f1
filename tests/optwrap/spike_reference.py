"""The rule of `skip_spikes` in plain Python and float64, from its description: the truth for its tests."""

import dataclasses
import math


@dataclasses.dataclass
class Reference:
    """The guard over one sequence of norms."""

    spreads: float = 7.5
    min_ratio: float = 3.0
    rebase_after: int = 32
    max_norm: float = math.inf

    level: float = 0.0
    spread: float = 0.0
    previous: float = 0.0
    seen: int = 0
    doubt: float = 0.0
    pending: float = 0.0
    rebases: int = 0
    limit: float = math.inf

    def step(self, norm: float) -> str:
        """What becomes of a step with this norm: "taken", "large" or "not finite"."""
        ratio = max(math.exp(self.spreads * max(self.spread, 0.02)), self.min_ratio, 20.0 if self.seen < 64 else 0.0)
        self.limit = min(self.max_norm, math.exp(self.level) * ratio if self.seen >= 10 else math.inf)
        if not math.isfinite(norm):
            return "not finite"
        if norm >= self.max_norm:
            return "large"
        if norm == 0:
            return "taken"
        y = math.log(norm)
        if norm >= self.limit:
            return self._spike(y)
        self.doubt = max(0.0, self.doubt - 0.25)
        if self.seen:
            difference = min(abs(y - self.previous), math.log(ratio))
            share = max(0.01, 1 / self.seen)
            self.spread = math.sqrt((1 - share) * self.spread**2 + share * difference**2 / 2)
        self.seen += 1
        self.level += max(0.03, 1 / self.seen) * (y - self.level)
        self.previous = y
        return "taken"

    def _spike(self, y: float) -> str:
        if self.doubt == 0:
            self.pending = y
        self.doubt += 1
        self.pending += (y - self.pending) / self.doubt
        if self.doubt < self.rebase_after:
            return "large"
        self.level = self.previous = self.pending
        self.doubt = 0.0
        self.rebases += 1
        return "taken"
