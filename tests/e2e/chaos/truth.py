"""The truth: which faults a seed puts into which step, and what has to be counted, in numpy alone.

The trainer takes its gradients from here, too. tests/optwrap/simulation.py simulates the optimizer.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

import numpy as np

from tests.optwrap.simulation import Adam, Guard, Leaves, Part, Skipping, Step, Window, simulate

SHAPES: Final = {"a": (8,), "b": (2, 8), "c": (16,)}
"""The last axis of each can be sharded over eight devices."""
LARGE: Final = 1e3
"""The norm from which a window that skips large updates skips."""

_MOST_STEPS: Final = 20_000
_VALUES: Final = (np.nan, np.inf, -np.inf, 1e4)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The optimizer of a run."""

    kind: Literal["guard", "window", "guard around window", "window around guard"]
    limit: int
    """Errors in a row that the guard rejects."""
    every_k: int
    skip: Literal["not_finite", "large"] | None

    def part(self) -> Part:
        """The optimizer, in numpy."""

        def guard(inner: Part) -> Part:
            return Guard(inner, self.limit, declared=True)

        def window(inner: Part) -> Part:
            return Window(inner, lambda _: self.every_k, Skipping(self.skip, LARGE**2), leaky=False)

        match self.kind:
            case "guard":
                return guard(Adam())
            case "window":
                return window(Adam())
            case "guard around window":
                return guard(window(Adam()))
            case "window around guard":
                return window(guard(Adam()))


@functools.cache
def _faults(seed: int, launch: int) -> "np.ndarray[tuple[int, int], np.dtype[np.int64]]":
    """For each step: whether it has a fault (faults come in streaks), the leaf, the number of values, which value."""
    rng = np.random.default_rng([seed, launch])
    bad = np.zeros(_MOST_STEPS, bool)
    starts = np.flatnonzero(rng.random(_MOST_STEPS) < 0.06)
    for start, length in zip(starts, rng.geometric(0.5, len(starts)), strict=True):
        bad[start : start + length] = True
    leaf = rng.integers(len(SHAPES), size=_MOST_STEPS)
    return np.stack([bad, leaf, rng.integers(1, 4, _MOST_STEPS), rng.integers(len(_VALUES), size=_MOST_STEPS)], axis=1)


def gradients(seed: int, launch: int, step: int) -> Leaves:
    """The gradients of a step. They differ between launches."""
    bad, leaf, count, value = _faults(seed, launch)[step]
    norm = np.float32(1 + (step % 64) / 64)
    leaves = {name: np.full(shape, norm, np.float32) for name, shape in SHAPES.items()}
    if bad:
        leaves[list(SHAPES)[leaf]].reshape(-1)[:count] = _VALUES[value]
    return leaves


class Piece(NamedTuple):
    """A part of a state's history: the steps of one launch up to `until`."""

    launch: int
    until: int


def past(path: Sequence[Piece], until: int) -> tuple[Piece, ...]:
    """A state's history up to one of its steps, as of a checkpoint."""
    kept = [piece for piece in path if piece.until < until]
    rest = path[len(kept) :]
    return (*kept, Piece(rest[0].launch, until)) if rest else tuple(kept)


def lived(seed: int, recipe: Recipe, path: Sequence[Piece]) -> list[Step]:
    """The counters after each step of a state's history."""
    given: list[Leaves] = []
    for piece in path:
        given += [gradients(seed, piece.launch, step) for step in range(len(given) + 1, piece.until + 1)]
    with np.errstate(all="ignore"):
        return simulate(recipe.part(), given)
