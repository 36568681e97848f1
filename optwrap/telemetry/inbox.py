"""What the training loop's threads and the reporting thread share, and nothing else."""

import itertools
import threading
from collections import deque
from typing import NamedTuple

import numpy as np

from optwrap.telemetry.reading import Layout


class Item(NamedTuple):
    """What was observed, as it was."""

    number: int
    """1, 2, ... by the order of observing."""
    observed: object
    time: float
    """Seconds since 1970."""
    layout: Layout | None
    """The Monitor's at that time."""
    restored: bool | None


class Closing(NamedTuple):
    """How the run ended, and until when that may be reported."""

    state: str
    deadline: float
    """Monotonic seconds."""


class Flush:
    """Somebody waits until everything observed so far is acknowledged."""

    def __init__(self) -> None:
        self.begun = False
        self.over = threading.Event()
        self.reached = False


class Inbox:
    """Where readings wait for the reporting thread, and how it is woken; every operation is atomic by itself.

    Args:
      size: how many observed readings wait at most; beyond it the oldest goes. What is counted is cumulative, so the
        newest is the one to keep.
    """

    def __init__(self, size: int) -> None:
        self.items: deque[Item] = deque(maxlen=size)
        self.layout: Layout | None = None
        self.closing: Closing | None = None
        self.flushes: deque[Flush] = deque()
        self.wake = threading.Event()
        self.over = threading.Event()
        """Set when the reporting thread has ended."""
        self._numbers = itertools.count(1)
        self._many = max(1, size // 2)

    def put(self, observed: object, now: float, restored: bool | None) -> None:
        """Leave a reading for the reporting thread, which need not hurry unless many wait."""
        if isinstance(observed, np.ndarray):
            # An array of the host's may be changed by its owner, or be a view of what a callback was lent.
            observed = observed.copy()
        self.items.append(Item(next(self._numbers), observed, now, self.layout, restored))
        if len(self.items) >= self._many and not self.wake.is_set():
            self.wake.set()
