"""The faults: which stored data is damaged, how, and in which batches.

A fault damages the bytes of one stored block: the targets of one layer's probe in one batch. It does not touch
gradients; the training turns the damaged targets into bad ones.
"""

import dataclasses
import enum
from collections.abc import Callable, Iterable
from typing import Final

import numpy as np

from examples.demo.data import Array, StoredBatch


class Outcome(enum.StrEnum):
    """What the gradients of a damaged batch are."""

    NOT_FINITE = "overflows"
    """A value overflows on the way to the gradient."""
    LARGE = "finite, far too large"
    """Every value is finite, and the norm is far larger than any of an undamaged batch."""
    NEW_LEVEL = "finite, too large until the guard rebases"
    """Every value is finite, and the norm is so large that the guard skips it, and below its absolute limit."""


def _stuck_bit(block: Array) -> Array:
    """Bit 30 of every word reads as 1: a line of the bus is stuck.

    It is the top bit of a float32's exponent: a share of 0.5 becomes 1.7e38. That is finite, so it passes a check on
    the host. On the device it is divided by a standard deviation and overflows.
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


def _as_bytes(block: Array) -> Array:
    """Shares stored as 0 to 255 instead of 0 to 1, by a writer that scales them to a byte."""
    return (block.view("<f4") * np.float32(255)).view(block.dtype)


class Damage(enum.Enum):
    """The kinds of damage to a block: title, function, and what the gradients become."""

    STUCK_BIT = ("stuck bit", _stuck_bit, Outcome.NOT_FINITE)
    WRONG_TYPE = ("floats decoded as integers", _wrong_type, Outcome.LARGE)
    STRAY_WRITE = ("log file written over the column", _stray_write, Outcome.LARGE)
    AS_BYTES = ("shares stored as 0 to 255", _as_bytes, Outcome.NEW_LEVEL)

    def __init__(self, title: str, damage: Callable[[Array], Array], outcome: Outcome) -> None:
        self.title = title
        self.damage = damage
        self.outcome = outcome


@dataclasses.dataclass(frozen=True)
class Fault:
    """Damage to one layer's targets, in one or several consecutive batches."""

    first: int
    """The first batch with it; the first batch is 1. Until batches are left out, micro-step n takes batch n."""
    count: int
    """Number of consecutive batches."""
    layer: int
    """The layer whose targets are damaged."""
    damage: Damage

    def covers(self, batch: int) -> bool:
        """Whether the batch of this number has this fault."""
        return self.first <= batch < self.first + self.count


def damaged(stored: StoredBatch, number: int, faults: Iterable[Fault]) -> StoredBatch:
    """The stored batch, with the faults of the batch of this number."""
    for fault in faults:
        if fault.covers(number):
            blocks = list(stored.ahead)
            blocks[fault.layer] = fault.damage.damage(blocks[fault.layer])
            stored = dataclasses.replace(stored, ahead=tuple(blocks))
    return stored
