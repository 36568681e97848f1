"""The host's half: from a training loop to the exporter, without the loop ever waiting or failing for it."""

import atexit
import contextlib
import dataclasses
import functools
import os
import secrets
import sys
import threading
import types
import weakref
from collections.abc import Callable, Mapping
from typing import Final, Literal, Self

from optwrap._monitor.account import Account
from optwrap._monitor.log import Once, log
from optwrap._monitor.queue import Closing, Flush, Inbox
from optwrap._monitor.settings import Settings, resolve
from optwrap._monitor.source import JaxSource, Source
from optwrap._monitor.thread import Clock, Reporter
from optwrap._monitor.transport import HttpTransport, Transport
from optwrap._reading.unpack import Layout

_STATES: Final = ("finished", "failed")
_PATIENCE: Final = 2.0
"""Seconds for which the end of a run, or of the process, waits for the last report."""
_MARGIN: Final = 0.2
"""Of these, what the reporting thread gets less, so that it is over when the waiting is."""


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a Monitor is made of, for tests to put in something else."""

    environ: Mapping[str, str] = dataclasses.field(default_factory=lambda: os.environ)
    clock: Clock = dataclasses.field(default_factory=Clock)
    transport: Callable[[Settings], Transport] = lambda settings: HttpTransport(settings.endpoint, settings.token_file)
    source: Callable[[Settings], Source] = lambda settings: JaxSource(settings.process, settings.attempt)
    new_id: Callable[[], str] = lambda: secrets.token_hex(8)
    """Makes the id of an incarnation."""
    queue_size: int = 2048
    """Readings that wait for the reporting thread, at most."""


class Monitor:
    """Reports what an instrumented optimizer counts to an exporter, from a thread of its own.

    A hello goes out as soon as it is known who reports, and from then on a report every `interval`, steps or none. What
    happens to reports is no concern of the training: the exporter may be absent, hang, restart or refuse; memory is
    bounded (step records go, ordinary ones before bad ones, and are counted as dropped; totals never do); one line of
    the logger "optwrap" says when the exporter is lost, and one when it is back.

    A Monitor never initialises JAX's devices, so it may be made before `jax.distributed.initialize`. Unless it is told
    `process` (and, for processes other than 0, `attempt`) its hello waits until the program has initialised them.

    One instrument, one Monitor, one run: a program with two optimizers has two of each. A process that forks goes on
    reporting; its child reports nothing unless it observes, and then as a start of its own.

    As a context manager it closes itself: as "failed" if an exception leaves the block, else as "finished". A Monitor
    that was never closed closes itself when the interpreter exits, as "failed" if that is because of an exception that
    nobody caught, and waits 2 s at most for its last report. `sys.exit` with a status is no such exception, and leaves
    nothing behind that an exit handler could see: where it matters, use the block, or close with "failed".

    Args:
      run: the run's name, the same after a resume: 1 to 128 of `A-Z a-z 0-9 . _ : -`, beginning with a letter or digit.
        Default: the variable OPTWRAP_RUN.
      endpoint: the exporter: `http://HOST:PORT`, `unix:///PATH`, or "off": then nothing is reported, no thread started
        and no name needed. Default: OPTWRAP_ENDPOINT, else http://127.0.0.1:10425.
      process: this process's index in the job, from 0. Default: `jax.process_index()`.
      attempt: what all processes of this launch call it: 1 to 128 of `A-Z a-z 0-9 . _ : -`. Default: OPTWRAP_ATTEMPT,
        else Slurm's job, restart and step ids, else what process 0 tells the others through the service of
        `jax.distributed`, else an id of this process's own.
      token_file: path of a file that holds the exporter's token. Default: OPTWRAP_TOKEN_FILE, else none.
      interval: seconds between reports, above 0 and at most 3600.

    Raises:
      ValueError: an argument or variable is wrong; the message says which, the value and what is allowed.
    """

    def __init__(
        self,
        run: str | None = None,
        endpoint: str | None = None,
        process: int | None = None,
        *,
        attempt: str | None = None,
        token_file: str | os.PathLike[str] | None = None,
        interval: float = 1.0,
        _parts: Parts | None = None,
    ) -> None:
        self._parts = parts = _parts or Parts()
        self._once = Once()
        self._put: Callable[[object, bool | None], None] | None = None
        """Where `observe` leaves a reading; None while it is off, closed, or without a thread after a fork."""
        self._closed = False
        self._source: weakref.ref[object] | None = None
        """The instrumentation whose step was traced last."""
        self._settings = resolve(
            parts.environ,
            run=run,
            endpoint=endpoint,
            process=process,
            attempt=attempt,
            token_file=token_file,
            interval=interval,
        )
        self._work: _Work | None = None
        if self._settings is not None:
            self._work = _Work(self._settings, parts)
            self._start()
            if hasattr(os, "register_at_fork"):
                os.register_at_fork(after_in_child=functools.partial(_after_fork, weakref.ref(self)))

    def __repr__(self) -> str:
        if self._settings is None:
            return "Monitor(off)"
        return f"Monitor(run={self._settings.run!r}, endpoint={self._settings.endpoint.text!r})"

    def describe(self, layout: Layout, *, stepping: bool = False) -> None:
        """Say what an instrumentation's parameters are called. `instrument` does, whenever it is traced.

        Args:
          layout: their paths.
          stepping: whether it is a step that is traced, and not the optimizer's `init`.
        """
        if self._work is None:
            return
        before = self._work.inbox.layout
        if before is not None and before == layout and layout.replicas is None:
            # `init` is traced again whenever an instrumentation around this one is, and knows of no replicas.
            layout = dataclasses.replace(layout, replicas=before.replicas)
        self._work.inbox.layout = layout
        self._work.inbox.stepping |= stepping
        another = stepping and self._is_another(layout)
        if before is not None and before != layout:
            self._once.warn(
                "layout",
                "optwrap: a second instrumentation reports to the Monitor of run %s, which from now on takes none but "
                "its readings; give each instrument its own Monitor",
                self._run,
            )
        elif another:
            self._once.warn(
                "another",
                "optwrap: two instrumentations with the same parameters report to the Monitor of run %s; where both "
                "train, what is counted is wrong; give each instrument its own Monitor",
                self._run,
            )

    def observe(self, reading: object, *, restored: bool | None = None) -> None:
        """Report one step, or several. Never waits, not even for the device, and never raises.

        (What a signal's handler raises in the main thread meanwhile does come out, as it would anywhere.)

        The counters are cumulative: a step that is not observed is missing from the step records and from nothing else.
        Counters that went back (the training was rolled back to an earlier state) begin a new incarnation by themselves; the
        last reading once more is passed over.

        Observe a restored state once before the loop, `monitor.observe(optwrap.reading(opt_state), restored=True)`, to
        tell where its counters stand. Otherwise the first reading is taken for that of the first step, and all before
        it for what earlier attempts have done: observe a fresh state, too, where only every n-th step is observed.

        With emit="callback" the step observes by itself.

        Args:
          reading: what `optwrap.reading` returned, uint32[words], of the host or of any devices, computed or still
            being computed; do not donate it. With a leading axis, uint32[n, words]: n steps in a row (from lax.scan;
            their times are spread evenly since the last reading, and marked as interpolated), or n equal rows,
            replicas of one step (from pmap). Whatever else it is, is passed over with one line in the log.
          restored: whether this is a state that was restored and has not stepped since: it says where the counters
            stand and is no step. By default that is assumed of a first reading that is observed before the step was
            traced, which the `instrument` that was given this Monitor tells it; say it where the step was compiled
            ahead of time.
        """
        try:
            put = self._put or self._admit()
            if put is not None:
                put(reading, restored)
        except Exception as error:
            self._once.warn("observe", "optwrap: a reading of run %s was lost", self._run, error=error)

    def flush(self, timeout: float = 5.0) -> bool:
        """Wait until the exporter has everything observed so far.

        Args:
          timeout: seconds, at most.

        Returns:
          Whether it has, durably; True where nothing is reported at all.
        """
        work = self._work
        if work is None or work.thread is None:
            return True
        if work.inbox.closing is not None:
            return work.inbox.over.wait(timeout) and work.reporter.delivered
        flush = Flush()
        work.inbox.flushes.append(flush)
        work.inbox.bell.ring()
        try:
            flush.over.wait(timeout)
        finally:
            # At its end the thread takes them all out itself.
            with contextlib.suppress(ValueError):
                work.inbox.flushes.remove(flush)
        return flush.reached

    def close(self, state: Literal["finished", "failed"] = "finished") -> None:
        """Report the end of the run, and stop. Waits 2 s at most. Closing again does nothing.

        Args:
          state: how the run ended.

        Raises:
          ValueError: it is no such state.
        """
        if state not in _STATES:
            raise ValueError(f"close: state is {state!r}; allowed: {' or '.join(map(repr, _STATES))}")
        self._put = None
        if not self._closed:
            self._closed = True
            if self._work is not None:
                self._work.close(state)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: types.TracebackType | None
    ) -> None:
        # sys.exit() and sys.exit(0) are how a program says that all is well.
        well = error is None or (isinstance(error, SystemExit) and not error.code)
        self.close("finished" if well else "failed")

    def _is_another(self, layout: Layout) -> bool:
        """Whether it is of another instrumentation than the last whose step was traced, and that one still lives."""
        last, self._source = self._source and self._source(), layout.source
        return last is not None and layout.source is not None and last is not layout.source()

    @property
    def _run(self) -> str:
        return "" if self._settings is None else self._settings.run

    def _admit(self) -> Callable[[object, bool | None], None] | None:
        """Where a reading may be left although the Monitor is not simply open."""
        if self._work is not None:
            if self._closed:
                self._once.warn(
                    "closed", "optwrap: the Monitor of run %s is closed; what it observes is lost", self._run
                )
            else:
                self._start()
        return self._put

    def _start(self) -> None:
        assert self._work is not None
        try:
            self._work.start()
        except RuntimeError as error:
            # The process has as many threads as it may, or is about to exit.
            self._once.warn("thread", "optwrap: run %s is not reported: %s", self._run, error)
            self._work = None
            return
        # A Monitor that is dropped stops its thread, which knows nothing of it.
        weakref.finalize(self, self._work.let_go).atexit = False
        self._put = self._work.inbox.put

    def _restart(self) -> None:
        """Begin anew in a forked child: without the parent's thread, locks, readings and connection."""
        self._put = None
        if self._work is not None and not self._closed and self._settings is not None:
            parent, self._work = self._work, _Work(self._settings, self._parts)
            self._work.inbox.layout, self._work.inbox.stepping = parent.inbox.layout, parent.inbox.stepping
            parent.transport.abandon()


class _Reporting(threading.Thread):
    """The reporting thread, which can be told from others among all threads of the process."""

    def __init__(self, run: Callable[[], None], who: Settings, inbox: Inbox) -> None:
        super().__init__(target=run, name="optwrap-monitor", daemon=True)
        self._who = who
        self._inbox = inbox

    def rivals(self, other: threading.Thread) -> bool:
        """Whether another thread reports the same, and is not about to end."""
        if not isinstance(other, _Reporting) or other._inbox.closing is not None:
            return False
        mine, others = self._who, other._who
        return (mine.run, mine.endpoint, mine.process) == (others.run, others.endpoint, others.process)


class _Work:
    """What goes on behind a Monitor; it does not know the Monitor, so that one can be dropped while this goes on."""

    def __init__(self, settings: Settings, parts: Parts) -> None:
        self.clock = parts.clock
        self._who = settings
        self.inbox = Inbox(parts.queue_size, parts.clock.time)
        self.transport = parts.transport(settings)
        self.reporter = Reporter(
            settings,
            self.inbox,
            Account(parts.new_id),
            transport=self.transport,
            source=parts.source(settings),
            clock=self.clock,
        )
        self.thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._process = os.getpid()

    def start(self) -> None:
        with self._starting:
            if self.thread is None:
                thread = _Reporting(self._run, self._who, self.inbox)
                if any(thread.rivals(other) for other in threading.enumerate()):
                    log.warning(
                        "optwrap: a second Monitor of this process reports run %s to %s, which will be shown as a "
                        "conflict; close the first one, or give each a run of its own",
                        self._who.run,
                        self._who.endpoint.text,
                    )
                thread.start()
                self.thread = thread
                atexit.register(self._at_exit)

    def close(self, state: str) -> None:
        if self.thread is not None:
            if self.inbox.closing is None:
                self.inbox.closing = Closing(state, self.clock.monotonic() + _PATIENCE - _MARGIN)
            self.inbox.bell.ring()
            self.inbox.over.wait(_PATIENCE)

    def let_go(self) -> None:
        # This may run wherever the garbage collector does, the reporting thread included: nothing here waits.
        if self.inbox.closing is None:
            self.inbox.closing = Closing("finished", self.clock.monotonic() + _PATIENCE)
            self.inbox.bell.ring()

    def _run(self) -> None:
        try:
            self.reporter.run()
        finally:
            atexit.unregister(self._at_exit)

    def _at_exit(self) -> None:
        # A forked child inherits the parent's exit handlers, but not its thread.
        if os.getpid() == self._process and not self.inbox.over.is_set():
            uncaught = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
            self.close("finished" if uncaught is None else "failed")


def _after_fork(monitor: weakref.ref[Monitor]) -> None:
    alive = monitor()
    if alive is not None:
        alive._restart()
