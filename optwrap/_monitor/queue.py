"""What the training loop's threads and the reporting thread share, and nothing else."""

import contextlib
import itertools
import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from optwrap._reading.unpack import Layout


class Item(NamedTuple):
    """What was observed, as it was."""

    number: int
    """1, 2, ... by the order of observing."""
    observed: object
    time: float
    """Seconds since 1970."""
    stepping: bool
    """Whether a step had been traced by then: before that no step can have run."""
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


class Bell:
    """Wakes the reporting thread. Unlike an Event it may be rung wherever Python may call anything.

    A signal handler or a finalizer can run in the midst of an Event's own `set`, in the same thread, and would wait
    there for a lock that this thread holds. A SimpleQueue is made for that.
    """

    def __init__(self) -> None:
        self._rung: queue.SimpleQueue[None] = queue.SimpleQueue()

    def ring(self) -> None:
        """Wake whoever waits, or whoever waits next."""
        if self._rung.empty():
            self._rung.put(None)

    def wait(self, timeout: float) -> None:
        """Wait until the bell is rung, or was since the last time; or `timeout` seconds."""
        with contextlib.suppress(queue.Empty):
            self._rung.get(timeout=timeout)


class Inbox:
    """Where readings wait for the reporting thread, and how it is woken; every operation is atomic by itself.

    Args:
      size: how many observed readings wait at most; beyond it the oldest goes. What is counted is cumulative, so the
        newest is the one to keep.
      time: seconds since 1970.
    """

    # Between two steps the processor has forgotten all of this; what `put` touches is what it costs.
    __slots__ = (
        "_every",
        "_numbers",
        "_time",
        "bell",
        "closing",
        "first",
        "flushes",
        "items",
        "layout",
        "over",
        "stepping",
    )

    def __init__(self, size: int, time: Callable[[], float]) -> None:
        self.items: deque[tuple[int, object, float, bool, bool | None]] = deque(maxlen=size)
        """The fields of an Item each."""
        self.first: Item | None = None
        """The first of all, which tells where the counters stood; here those that follow cannot overwrite it."""
        self.layout: Layout | None = None
        self.stepping = False
        self.closing: Closing | None = None
        self.flushes: deque[Flush] = deque()
        self.bell = Bell()
        self.over = threading.Event()
        """Set when the reporting thread has ended."""
        self._time = time
        self._numbers = itertools.count(1)
        self._every = max(1, size // 2)

    def put(self, observed: object, restored: bool | None) -> None:
        """Leave a reading for the reporting thread, which need not hurry unless many wait."""
        if isinstance(observed, np.ndarray):
            # An array of the host's may be changed by its owner, or be a view of what a callback was lent.
            observed = observed.copy()
        number = next(self._numbers)
        item = (number, observed, self._time(), self.stepping, restored)
        if number == 1:
            self.first = Item._make(item)
        self.items.append(item)
        if not number % self._every:
            self.bell.ring()

    def take(self) -> Item | None:
        """The oldest reading that waits."""
        try:
            return Item._make(self.items.popleft())
        except IndexError:
            return None
