"""The demo's sizes, limits and faults, in full and in short."""

import dataclasses
from typing import Final

from examples.demo.faults import Damage, Fault

EVERY_K: Final = 4
"""Mini-steps per gradient step."""
MAX_NORM: Final = 1000.0
"""Steps whose gradient norm is at least this are always skipped; undamaged batches stay below 10."""
MIN_RATIO: Final = 10.0
"""A norm below this many times the level is never skipped; small batches of text differ a lot."""
REBASE_AFTER: Final = 8
"""Large steps in a row after which the guard takes their norms for a new level."""
MAX_CONSECUTIVE_ERRORS: Final = 8
"""Consecutive non-finite steps after which the guard gives up; as many as the longest streak below."""
STOP_AFTER: Final = 8
"""Consecutive non-finite steps after which the training stops, and goes back to a checkpoint."""
SAVE_EVERY: Final = 20
"""Steps from one checkpoint to the next: more than from the last clean step to the stop."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """One version of the demo."""

    steps: int
    """Micro-steps."""
    batch: int
    """Records per micro-step."""
    context: int
    """Length of the input in characters."""
    layers: int
    heads: int
    width: int
    learning_rate: float
    """The schedule's peak."""
    warmup_steps: int
    """Gradient steps until that peak, or a tenth of them all in a shorter run. Not a share of a longer run: the faults
    would meet a model whose norms are still those of its start, and the new level would be no spike."""
    faults: tuple[Fault, ...]
    """In the order of their steps; those after `steps` have no effect."""


FULL: Final = Settings(
    steps=1000,
    batch=8,
    context=64,
    layers=4,
    heads=4,
    width=96,
    learning_rate=0.006,
    warmup_steps=25,
    faults=(
        Fault(first=152, count=1, layer=2, damage=Damage.STUCK_BIT),
        Fault(first=353, count=5, layer=1, damage=Damage.STUCK_BIT),
        Fault(first=540, count=1, layer=3, damage=Damage.WRONG_TYPE),
        Fault(first=671, count=2, layer=0, damage=Damage.STRAY_WRITE),
        Fault(first=760, count=12, layer=2, damage=Damage.AS_BYTES),
        Fault(first=851, count=1, layer=1, damage=Damage.STUCK_BIT),
        Fault(first=912, count=STOP_AFTER, layer=3, damage=Damage.STUCK_BIT),
    ),
)
"""A single fault, a streak, a norm spike, two more in a row, a new level, a late one, and a streak that stops it."""

QUICK: Final = Settings(
    steps=80,
    batch=4,
    context=32,
    layers=2,
    heads=2,
    width=32,
    learning_rate=0.02,
    warmup_steps=2,
    faults=(
        Fault(first=9, count=1, layer=1, damage=Damage.STUCK_BIT),
        Fault(first=19, count=4, layer=0, damage=Damage.STUCK_BIT),
        Fault(first=32, count=1, layer=1, damage=Damage.WRONG_TYPE),
        Fault(first=41, count=2, layer=0, damage=Damage.STRAY_WRITE),
        Fault(first=44, count=STOP_AFTER, layer=1, damage=Damage.STUCK_BIT),
        Fault(first=62, count=11, layer=1, damage=Damage.AS_BYTES),
        Fault(first=300, count=3, layer=1, damage=Damage.STUCK_BIT),
        Fault(first=900, count=2, layer=0, damage=Damage.WRONG_TYPE),
        Fault(first=1500, count=1, layer=1, damage=Damage.STUCK_BIT),
    ),
)
"""The same kinds of fault within 80 steps of a smaller model; further ones are for runs with more steps."""
