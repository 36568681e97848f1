"""Calls `on_step` for each step, in a thread of its own: a slow callable delays no report."""

import dataclasses
import threading
from collections import deque
from collections.abc import Callable
from typing import Final

from optwrap._monitor.local.record import StepRecord
from optwrap._monitor.log import LogOnce, origin

_MAX_WAITING: Final = 8192
"""Records that wait for the callable. A further one evicts the oldest, which is counted."""


class Caller:
    """Calls a function with each record, in order.

    An exception in it is logged once for each line that raises, and the next record is the next call. If it is slower
    than the training, the oldest records are lost, and the next record says how many.

    Args:
      on_step: the function.
      run: the run's name, for messages.
      size: limit of the waiting records.
    """

    def __init__(self, on_step: Callable[[StepRecord], object], run: str, size: int = _MAX_WAITING) -> None:
        self._on_step = on_step
        self._run = run
        self._once = LogOnce()
        self._waiting: deque[StepRecord] = deque()
        self._size = size
        self._lost = 0
        """Records lost since the last call."""
        self._changed = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None

    def put(self, record: StepRecord) -> None:
        """Hand over a record. Never waits for the function."""
        with self._changed:
            if self._closed:
                return
            if self._thread is None:
                thread = threading.Thread(target=self._call, name="optwrap-on-step", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:
                    # The process has reached its limit of threads, or is about to exit.
                    self._closed = True
                    self._once.warn("thread", "optwrap: on_step of run %s is not called: %s", self._run, error)
                    return
                self._thread = thread
            if len(self._waiting) == self._size:
                self._waiting.popleft()
                self._lost += 1
            self._waiting.append(record)
            self._changed.notify()

    @property
    def is_calling(self) -> bool:
        """Whether this is asked within the function, so that waiting for its end would be a deadlock."""
        return threading.current_thread() is self._thread

    def close(self, within: float) -> None:
        """Wait for the calls that are left, at most this many seconds. Those that do not fit are logged as lost."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(max(0.0, within))
        with self._changed:
            lost, self._waiting = self._lost + len(self._waiting), deque()
        if lost:
            self._once.warn("end", "optwrap: on_step of run %s was not called for the last %d steps", self._run, lost)

    def _call(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if not self._waiting:
                    return
                record, lost, self._lost = self._waiting.popleft(), self._lost, 0
            if lost:
                record = dataclasses.replace(record, lost=lost)
                self._once.warn(
                    "slow",
                    "optwrap: on_step of run %s is slower than the training; %d steps were left out, and so will be "
                    "others: each record's `lost` says how many",
                    self._run,
                    lost,
                )
            try:
                self._on_step(record)
            except (Exception, SystemExit) as error:  # sys.exit ends only the thread, and without a word
                self._once.warn(origin(error), "optwrap: on_step of run %s raised", self._run, error=error)
