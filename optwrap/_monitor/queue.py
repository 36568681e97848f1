"""The data shared by the training loop and the reporting thread: a bounded queue of readings, and some signals."""

import contextlib
import itertools
import queue
import threading
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple, Self

import numpy as np

from optwrap._reading.unpack import Layout
from optwrap._stop.stop import Stop

MOST_DIAGNOSES: Final = 8
"""Diagnoses that wait, and that one report carries."""


class Item(NamedTuple):
    """One call of `observe`."""

    number: int
    """1, 2, ... in the order of the calls."""
    observed: object
    """The argument of `observe`."""
    time: float
    """Seconds since 1970."""
    scalars: Mapping[str, object] = MappingProxyType({})
    """The further arguments of `observe`."""


class Diagnosis(NamedTuple):
    """Why a step went bad, as `Findings.report` says it."""

    step: int | None
    cause: str
    remedy: str | None


class Ending(NamedTuple):
    """How the run ended."""

    state: str
    """"finished", "failed" or "stopped"."""
    reason: str | None = None
    last_clean_step: int | None = None
    """The step to roll back to, if it stopped."""

    @classmethod
    def of(cls, state: str | None, reason: str | None, stop: Stop | None) -> Self:
        """The ending in this state, or by default in the one that follows from the decision to stop."""
        if stop is None or state not in (None, "stopped"):
            return cls(state or "finished", reason)
        return cls("stopped", reason or stop.reason, stop.last_clean_step)


def in_words(error: BaseException) -> str:
    """An exception by its type and message, as a reason."""
    return "".join(traceback.format_exception_only(error))


class Closing(NamedTuple):
    """How the run ended, and the deadline of the last report."""

    ending: Ending
    deadline: float
    """Monotonic seconds."""


class Flush:
    """A call of `Monitor.flush` that waits for the reporting thread."""

    def __init__(self) -> None:
        self.started = False
        """Whether the reporting thread has seen it."""
        self.done = threading.Event()
        self.succeeded = False
        """Whether everything observed so far is acknowledged; valid once `done` is set."""


class Wakeup:
    """Wakes the reporting thread; `set` is safe in signal handlers and finalizers.

    A threading.Event is not: if a signal handler interrupts `Event.set` and calls it again, the thread waits for a lock
    that it holds itself. SimpleQueue.put is reentrant.
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[None] = queue.SimpleQueue()

    def set(self) -> None:
        """Wake the waiting thread. If none is waiting, the next `wait` returns at once."""
        if self._queue.empty():
            self._queue.put(None)

    def wait(self, timeout: float) -> None:
        """Wait at most `timeout` seconds for `set`; return at once if it was called since the last `wait`."""
        with contextlib.suppress(queue.Empty):
            self._queue.get(timeout=timeout)


class Inbox:
    """The queue of observed readings, and the requests to flush and to close. No method needs a lock.

    Args:
      size: limit of the queued readings; a further one evicts the oldest, because counters are cumulative and the
        newest reading has them all.
      time: returns seconds since 1970.
    """

    # `put` runs in the training loop between two steps, with cold caches: few attributes, no dictionary.
    __slots__ = (
        *("_numbers", "_time", "_wake_every", "closing", "diagnoses", "done", "first", "flushes", "items", "layout"),
        "wakeup",
    )

    def __init__(self, size: int, time: Callable[[], float]) -> None:
        self.items: deque[tuple[int, object, float, Mapping[str, object]]] = deque(maxlen=size)
        """The fields of an Item, as plain tuples."""
        self.first: Item | None = None
        """The first item ever put. Counting starts from it, so it is kept here, where later items cannot evict it."""
        self.layout: Layout | None = None
        """The parameters' names; None until an instrumentation describes them."""
        self.closing: Closing | None = None
        self.diagnoses: deque[tuple[int, Diagnosis]] = deque(maxlen=MOST_DIAGNOSES)
        """Each with the number of its account."""
        self.flushes: deque[Flush] = deque()
        self.wakeup = Wakeup()
        self.done = threading.Event()
        """Set when the reporting thread has ended."""
        self._time = time
        self._numbers = itertools.count(1)
        self._wake_every = max(1, size // 2)

    def put(self, observed: object, scalars: Mapping[str, object] = MappingProxyType({})) -> None:
        """Append a reading and its scalars. Wakes the reporting thread only if many are waiting."""
        # The caller may reuse its arrays, and the array of a host callback is valid only during the call.
        if isinstance(observed, np.ndarray):
            observed = observed.copy()
        if scalars:
            scalars = {name: one.copy() if isinstance(one, np.ndarray) else one for name, one in scalars.items()}
        number = next(self._numbers)
        item = (number, observed, self._time(), scalars)
        if number == 1:
            self.first = Item._make(item)
        self.items.append(item)
        if not number % self._wake_every:
            self.wakeup.set()

    def take(self) -> Item | None:
        """Remove and return the oldest item; None if the queue is empty."""
        try:
            return Item._make(self.items.popleft())
        except IndexError:
            return None
