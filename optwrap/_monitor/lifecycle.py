"""`Lifecycle`: starts a Monitor's thread, starts another one after a fork, and ends it."""

import functools
import os
import weakref
from collections.abc import Callable, Mapping
from typing import Final

from optwrap._monitor.local.record import StepRecord
from optwrap._monitor.log import LogOnce
from optwrap._monitor.queue import Ending
from optwrap._monitor.settings import Settings
from optwrap._monitor.thread import Parts, Worker
from optwrap._stop.decision import Decision

Put = Callable[[object, Mapping[str, object]], None]
"""Takes a reading and its scalars."""


class Lifecycle:
    """The life of one Monitor, from its first thread until it is closed, or a newer Monitor of its run takes over.

    Args:
      settings: the Monitor's settings; None if it is off.
      parts: the Monitor's parts.
      on_step: called with the record of each step, in another thread.
      decision: observes every reading, too; None without a policy.
    """

    def __init__(
        self,
        settings: Settings | None,
        parts: Parts,
        *,
        on_step: Callable[[StepRecord], object] | None,
        decision: Decision | None,
    ) -> None:
        self._settings: Final = settings
        self._parts = parts
        self._on_step = on_step
        self._decision = decision
        self._once = LogOnce()
        self._closed = False
        self._superseded = False
        """Whether a newer Monitor of this run has closed this one."""
        self.put = self._puts(None)
        """Takes a reading; None if there is nobody to take it, or no thread yet after a fork."""
        self.worker: Worker | None = None
        """Reports the readings; None if the Monitor is off, or no thread can be started."""
        if settings is not None:
            self.worker = self._new_worker(settings)
            self._start(self.worker)
            if hasattr(os, "register_at_fork"):
                os.register_at_fork(after_in_child=functools.partial(_after_fork, weakref.ref(self)))

    def reopen(self) -> Put | None:
        """Start the thread in a forked child; returns `put`, None if the Monitor is off or closed."""
        if self.worker is not None:
            if self._superseded:
                self._once.warn(
                    "closed",
                    "optwrap: a newer Monitor of run %s in this process has closed this one; readings observed here "
                    "from now on are ignored; give each optimizer a Monitor with a run of its own",
                    self.run,
                )
            elif self._closed:
                self._once.warn(
                    "closed",
                    "optwrap: the Monitor of run %s is closed; readings observed from now on are ignored",
                    self.run,
                )
            else:
                self._start(self.worker)
        return self.put

    def close(self, ending: Ending) -> None:
        """End the thread, as `Worker.close` does, and take no more readings. Closing again does nothing."""
        self.put = None
        if not self._closed:
            self._closed = True
            if self.worker is not None:
                self.worker.close(ending)

    @property
    def run(self) -> str:
        """The run's name; empty if the Monitor is off."""
        return "" if self._settings is None else self._settings.run

    def _new_worker(self, settings: Settings) -> Worker:
        superseded = functools.partial(_supersede, weakref.ref(self))
        return Worker(settings, self._parts, on_step=self._on_step, superseded=superseded)

    def _start(self, worker: Worker) -> None:
        try:
            worker.start()
        except RuntimeError as error:
            # The process has reached its limit of threads, or is about to exit.
            self._once.warn("thread", "optwrap: run %s is not reported: %s", self.run, error)
            self.worker = None
            return
        # The worker knows neither this nor the Monitor: when they are collected, its thread has to be ended.
        weakref.finalize(self, worker.close_soon).atexit = False
        self.put = self._puts(worker.inbox.put)

    def _puts(self, put: Put | None) -> Put | None:
        """What takes a reading: the decision to stop, if there is a policy, after `put`."""
        decision = self._decision
        if decision is None:
            return put

        def decide(reading: object, scalars: Mapping[str, object]) -> None:
            if put is not None:
                put(reading, scalars)
            decision.observe(reading)

        return decide

    def _reset_after_fork(self) -> None:
        """In a forked child: replace the parent's thread, locks, readings and connection by new ones."""
        if self.worker is not None and not self._closed and self._settings is not None:
            self.put = None
            parent, self.worker = self.worker, self._new_worker(self._settings)
            self.worker.inbox.layout = parent.inbox.layout
            parent.transport.abandon()


def _after_fork(reference: weakref.ref[Lifecycle]) -> None:
    if (lifecycle := reference()) is not None:
        lifecycle._reset_after_fork()


def _supersede(reference: weakref.ref[Lifecycle]) -> None:
    if (lifecycle := reference()) is not None:
        lifecycle._superseded = lifecycle._closed = True
        lifecycle.put = None
