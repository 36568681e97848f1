"""What goes wrong with the stored data, when, and what must come of it.

Nothing here knows of gradients. A fault damages the bytes of one stored block: the targets of one layer's probe in one
batch. What that does to the loss and to the optimizer is for the training to find out.
"""

import dataclasses
import enum
from collections.abc import Callable, Iterable
from typing import Final

import numpy as np

from examples.demo.data import Array, StoredBatch


class Outcome(enum.StrEnum):
    """What the gradients of a damaged batch come to."""

    NOT_FINITE = "overflows"
    """A value overflows on the way to the gradient."""
    LARGE = "finite, far too large"
    """Every value is finite, and the norm is far beyond any that the training has."""


def _stuck_bit(block: Array) -> Array:
    """Bit 30 of every word reads as 1: a line of the bus is stuck.

    It is the top bit of a float32's exponent: a share of 0.5 becomes 1.7e38. That is finite, so a check on the host
    lets it through; divided by its standard deviation on the device it is not.
    """
    damaged = block.copy()
    damaged[3::4] |= 0x40
    return damaged


def _wrong_type(block: Array) -> Array:
    """A float32 column decoded as int32, as by a reader with last year's schema: a share of 0.5 becomes 1.06e9."""
    return block.view("<i4").astype("<f4").view(block.dtype)


_STRAY: Final = b"Buffer I/O error on dev sda1, logical block 120431, lost async page write\n"


def _stray_write(block: Array) -> Array:
    """Another file's text was written over the column: read as a float32, four letters are 1e20 to 1e35.

    The gradients stay finite, and the squares in their norm overflow: the norm is infinite.
    """
    return np.resize(np.frombuffer(_STRAY, block.dtype), block.shape)


class Damage(enum.Enum):
    """The ways in which a block is damaged: what it is called, what it does, what comes of it."""

    STUCK_BIT = ("stuck bit", _stuck_bit, Outcome.NOT_FINITE)
    WRONG_TYPE = ("floats decoded as integers", _wrong_type, Outcome.LARGE)
    STRAY_WRITE = ("log file written over the column", _stray_write, Outcome.LARGE)

    def __init__(self, title: str, damage: Callable[[Array], Array], outcome: Outcome) -> None:
        self.title = title
        self.damage = damage
        self.outcome = outcome


@dataclasses.dataclass(frozen=True)
class Fault:
    """One damage, to one layer's targets, in one batch or several in a row."""

    first: int
    """The first micro-step with it; the training's first step is 1."""
    count: int
    """Micro-steps in a row."""
    layer: int
    """The layer whose targets are damaged."""
    damage: Damage

    def covers(self, step: int) -> bool:
        """Whether micro-step `step` has this fault."""
        return self.first <= step < self.first + self.count


def damaged(stored: StoredBatch, step: int, faults: Iterable[Fault]) -> StoredBatch:
    """The batch of micro-step `step` as it comes from storage: with the faults that cover this step."""
    for fault in faults:
        if fault.covers(step):
            blocks = list(stored.ahead)
            blocks[fault.layer] = fault.damage.damage(blocks[fault.layer])
            stored = dataclasses.replace(stored, ahead=tuple(blocks))
    return stored
