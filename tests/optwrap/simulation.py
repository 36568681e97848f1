"""Optimizers and their wrappers in plain numpy. Each part returns the outcome of its call.

The ground truth for `instrument`, which sees only the states before and after a call. Here nothing is inferred: each
part is called with its actual input, and returns the outcome. Gradients are dicts of float32 arrays.
"""

import copy
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

Leaves = dict[str, np.ndarray[Any, Any]]

SEVERITY = ("accumulated", "applied", "skipped_other", "skipped_large", "skipped_not_finite", "accepted_not_finite")


def most_severe(outcomes: list[str | None]) -> str | None:
    """The most severe outcome of several parts side by side; None if none of them has an outcome."""
    known = [outcome for outcome in outcomes if outcome is not None]
    return max(known, key=SEVERITY.index) if known else None


def is_finite(leaves: Leaves) -> bool:
    return all(bool(np.isfinite(leaf).all()) for leaf in leaves.values())


def zeros(leaves: Leaves) -> Leaves:
    return {name: np.zeros_like(leaf) for name, leaf in leaves.items()}


@dataclasses.dataclass
class Result:
    """The updates and the outcome of one call of a part."""

    updates: Leaves
    outcome: str | None = None
    """None for a part without a wrapper."""


class Part:
    """A transformation; `inside` are the transformations that it wraps."""

    inside: "tuple[Part, ...]" = ()

    def __call__(self, given: Leaves) -> Result:
        raise NotImplementedError

    def walk(self) -> "Iterator[Part]":
        yield self
        for part in self.inside:
            yield from part.walk()

    def windowed(self, names: set[str]) -> set[str]:
        """The leaves of its input that go into a window."""
        return set().union(*(part.windowed(names) for part in self.inside))

    def around(self, given: Leaves, result: Result) -> Result:
        """`result`, corrected by the updates for the transformations around and beside the wrappers in this part."""
        outcome = result.outcome
        moved = {name for name, leaf in result.updates.items() if leaf.any()} - self.windowed(set(given))
        if outcome == "accumulated" and moved:
            outcome = "applied"
        suspect = not is_finite(given) or (outcome is not None and outcome.startswith("skipped"))
        if outcome is not None and suspect and not is_finite(result.updates):
            outcome = "accepted_not_finite"
        return dataclasses.replace(result, outcome=outcome)


class Adam(Part):
    """A simplified adam: once an element has got NaN or Inf, its updates are NaN for ever."""

    def __init__(self) -> None:
        self.spoilt: dict[str, Any] = {}

    def __call__(self, given: Leaves) -> Result:
        for name, leaf in given.items():
            self.spoilt[name] = self.spoilt.get(name, False) | ~np.isfinite(leaf)
        return Result({name: np.where(self.spoilt[name], np.nan, -0.001).astype(np.float32) for name in given})


@dataclasses.dataclass
class Elementwise(Part):
    """A stateless transformation."""

    function: Callable[[Any], Any]

    def __call__(self, given: Leaves) -> Result:
        return Result({name: np.asarray(self.function(leaf), np.float32) for name, leaf in given.items()})


class Guard(Part):
    """apply_if_finite."""

    def __init__(self, inner: Part, limit: int, declared: bool, gives_up: bool = True) -> None:
        self.inside = (inner,)
        self.limit = limit
        self.declared = declared
        self.gives_up = gives_up
        self.count = 0

    def __call__(self, given: Leaves) -> Result:
        finite = is_finite(given)
        self.count = 0 if finite else self.count + 1
        if finite or (self.gives_up and self.count > self.limit):
            result = self.inside[0](given)
            return Result(result.updates, result.outcome or ("applied" if finite else "accepted_not_finite"))
        return Result(zeros(given), "skipped_not_finite")


@dataclasses.dataclass(frozen=True)
class Skipping:
    """A skip function: "not_finite", "large" from a squared norm on, or "negative" for a reason of its own."""

    kind: str | None
    max_squared_norm: float

    def why(self, given: Leaves) -> str | None:
        """The outcome of gradients that it skips; None for others."""
        if not self._skips(given):
            return None
        if not is_finite(given):
            return "skipped_not_finite"
        return "skipped_large" if self.kind == "large" else "skipped_other"

    def _skips(self, given: Leaves) -> bool:
        match self.kind:
            case "not_finite":
                return not is_finite(given)
            case "large":
                return not sum(float(np.sum(leaf * leaf)) for leaf in given.values()) < self.max_squared_norm
            case "negative":
                return bool(next(iter(given.values())).flat[0] < 0)
        return False

    @property
    def norm_limit(self) -> float | None:
        return self.max_squared_norm**0.5 if self.kind == "large" else None


class SkipIf(Part):
    """skip_if."""

    def __init__(self, inner: Part, skipping: Skipping) -> None:
        self.inside = (inner,)
        self.skipping = skipping

    def __call__(self, given: Leaves) -> Result:
        finite = is_finite(given)
        if (why := self.skipping.why(given)) is not None:
            return Result(zeros(given), why)
        result = self.inside[0](given)
        return Result(result.updates, result.outcome or ("applied" if finite else "accepted_not_finite"))


class Window(Part):
    """MultiSteps: optwrap's, or with `leaky` optax's, which blends by multiplication."""

    def __init__(self, inner: Part, every_k: Callable[[int], int], skipping: Skipping, leaky: bool) -> None:
        self.inside = (inner,)
        self.every_k = every_k
        self.skipping = skipping
        self.leaky = leaky
        self.mini_step = 0
        self.gradient_step = 0
        self.accumulated: Leaves = {}

    def __call__(self, given: Leaves) -> Result:
        if (why := self.skipping.why(given)) is not None:
            return Result(zeros(given), why)
        if not self.accumulated or (self.mini_step == 0 and not self.leaky):
            self.accumulated = zeros(given)
        share = np.float32(self.mini_step + 1)
        window = {name: acc + (given[name] - acc) / share for name, acc in self.accumulated.items()}
        k = self.every_k(self.gradient_step)
        emit = self.mini_step == k - 1 if self.leaky else self.mini_step >= k - 1
        self.mini_step = (self.mini_step + 1) % k if self.leaky else 0 if emit else self.mini_step + 1
        if emit:
            self.gradient_step += 1
            self.accumulated = {name: 0 * leaf for name, leaf in window.items()} if self.leaky else {}
            result = self.inside[0](window)
            outcome = result.outcome or ("applied" if is_finite(window) else "accepted_not_finite")
            return Result(result.updates, outcome)
        self.accumulated = window
        updates = zeros(given)
        if self.leaky:
            updates = {name: 0 * leaf for name, leaf in copy.deepcopy(self.inside[0])(window).updates.items()}
        return Result(updates, "accumulated" if is_finite(updates) else "accepted_not_finite")

    def windowed(self, names: set[str]) -> set[str]:
        return names


class Lookahead(Part):
    """The fast half of lookahead."""

    def __init__(self, inner: Part, period: int, declared: bool) -> None:
        self.inside = (inner,)
        self.period = period
        self.declared = declared
        self.steps_since_sync = 0

    def __call__(self, given: Leaves) -> Result:
        self.steps_since_sync = (self.steps_since_sync + 1) % self.period
        return self.inside[0](given)


class Masked(Part):
    """Only the leaves named are transformed."""

    def __init__(self, inner: Part, names: set[str]) -> None:
        self.inside = (inner,)
        self.names = names

    def __call__(self, given: Leaves) -> Result:
        result = self.inside[0]({name: leaf for name, leaf in given.items() if name in self.names})
        return dataclasses.replace(result, updates={**given, **result.updates})

    def windowed(self, names: set[str]) -> set[str]:
        return self.inside[0].windowed(names & self.names)


class Chain(Part):
    """Its parts one after another."""

    def __init__(self, *parts: Part) -> None:
        self.inside = parts

    def __call__(self, given: Leaves) -> Result:
        results, passed_on = [], given
        for part in self.inside:
            results.append(part(passed_on))
            passed_on = results[-1].updates
        return self.around(given, Result(passed_on, most_severe([result.outcome for result in results])))


@dataclasses.dataclass
class Step:
    """The expected reading after one call."""

    outcome: str
    finite: bool
    norm: float
    nonfinite_parameters: dict[str, int]
    outcomes: dict[str, int]
    not_finite_steps: int
    parameters: dict[str, int]
    gauges: dict[str, int | float]


def simulate(optimizer: Part, gradients: list[Leaves]) -> list[Step]:
    """The readings that the instrumented `optimizer` should give for these calls."""
    outcomes = dict.fromkeys(SEVERITY, 0)
    parameters: dict[str, int] = {}
    streak = peak = not_finite_steps = 0
    steps = []
    for given in gradients:
        finite = is_finite(given)
        result = optimizer.around(given, optimizer(given))
        outcome = result.outcome or ("applied" if finite else "accepted_not_finite")
        nonfinite_parameters = {
            name: int(np.sum(~np.isfinite(leaf))) for name, leaf in given.items() if not is_finite({"": leaf})
        }
        outcomes[outcome] += 1
        not_finite_steps += not finite
        streak = 0 if finite else streak + 1
        peak = max(peak, streak)
        parameters = {name: parameters.get(name, 0) + (name in nonfinite_parameters) for name in given}
        norm = float(np.sqrt(sum(np.sum(np.square(leaf.astype(np.float64))) for leaf in given.values())))
        steps.append(
            Step(
                outcome=outcome,
                finite=finite,
                norm=norm,
                nonfinite_parameters=nonfinite_parameters,
                outcomes=dict(outcomes),
                not_finite_steps=not_finite_steps,
                parameters={name: times for name, times in parameters.items() if times},
                gauges={"not_finite_streak": streak, "not_finite_streak_peak": peak, **_gauges(optimizer)},
            )
        )
    return steps


def _gauges(optimizer: Part) -> dict[str, int | float]:
    gauges: dict[str, int | float] = {}
    parts = list(optimizer.walk())
    guards = [part for part in parts if isinstance(part, Guard)]
    if guards:
        nearest = min(guards, key=lambda guard: guard.limit - guard.count)
        if nearest.declared:
            gauges |= {"guard_not_finite_limit": nearest.limit, "guard_not_finite_count": nearest.count}
        else:
            gauges["guard_not_finite_count"] = max(guard.count for guard in guards)
    for window in [part for part in parts if isinstance(part, Window)][:1]:
        gauges |= {"mini_step": window.mini_step, "gradient_step": window.gradient_step}
        if not window.leaky:
            gauges["every_k"] = window.every_k(window.gradient_step)
    for part in parts:
        if isinstance(part, SkipIf | Window):
            limit = None if isinstance(part, Window) and part.leaky else part.skipping.norm_limit
            if limit is not None:
                gauges["gradient_norm_limit"] = limit
            if limit is not None or isinstance(part, Window):
                break
    for lookahead in [part for part in parts if isinstance(part, Lookahead)][:1]:
        gauges["steps_since_sync"] = lookahead.steps_since_sync
        if lookahead.declared:
            gauges["sync_period"] = lookahead.period
    return gauges
