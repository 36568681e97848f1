"""`Monitor`: reports from a training loop to the exporter. It never blocks the loop and never raises into it."""

import contextlib
import os
import types
from collections.abc import Callable
from typing import Final, Literal, Self, get_args

from optwrap._core.checks import integer
from optwrap._monitor.lifecycle import Lifecycle
from optwrap._monitor.local.record import StepRecord
from optwrap._monitor.local.serve import serve as serve_locally
from optwrap._monitor.local.table import table
from optwrap._monitor.log import LogOnce
from optwrap._monitor.one_optimizer import OneOptimizer
from optwrap._monitor.queue import Diagnosis, Ending, Flush, in_words
from optwrap._monitor.settings import Settings, read_token, resolve
from optwrap._monitor.thread import Parts
from optwrap._reading.rows import as_rows, on_host
from optwrap._reading.unpack import Layout, Reading
from optwrap._stop.decision import Decision
from optwrap._stop.policy import StopPolicy
from optwrap._stop.stop import Stop

_FinalState = Literal["finished", "failed", "stopped"]

_FINAL_STATES: Final = get_args(_FinalState)


class Monitor:
    """Reports the counters of an instrumented optimizer to an exporter, in its own thread.

    The Monitor sends a first report, the hello, as soon as it knows its process index, and then one every `interval`
    seconds, with or without new steps. The first bad step of a streak is reported at once. Training never depends on
    the exporter, which may be absent, hang, restart or refuse reports. Memory is bounded: step records can be dropped,
    those of good steps first, and every drop is counted; totals are never dropped. The logger "optwrap" gets one line
    when the exporter is lost, and one when it is back.

    A Monitor never initialises JAX's devices, so it may be made before `jax.distributed.initialize`. The hello waits
    until the program has initialised them, unless `process` is given (and `attempt`, for processes other than 0).

    Each instrumented optimizer needs its own Monitor and its own run. A new Monitor closes an earlier one of the same
    run in this process, so a notebook's cell can be run again; the run's totals are then those of both. After a fork
    the parent continues to report. The child reports only if it observes, as a newly started process does.

    As a context manager a Monitor closes as "failed" if an exception leaves the block, with the exception as the
    reason; as "stopped" if `should_stop` has returned a `Stop`; otherwise as "finished". If it is never closed, it
    closes in the same way when the interpreter exits, and waits at most 2 s for its last report. `sys.exit(status)`
    outside a block is not seen as a failure, because Python's exit handlers do not get the status: use the block, or
    call `close("failed")`.

    Args:
      run: the run's name, the same after a resume: 1 to 128 of `A-Z a-z 0-9 . _ : -`, beginning with a letter or digit.
        Default: the variable OPTWRAP_RUN.
      endpoint: the exporter: `http://HOST:PORT`, `https://HOST:PORT`, `unix:///PATH`, or "off". With "off" nothing is
        reported, no thread is started and no name is needed. Default: OPTWRAP_ENDPOINT, else http://127.0.0.1:10425.
      process: index of this process in the job, from 0. Default: `jax.process_index()`.
      attempt: name of this launch, the same in all its processes: 1 to 128 of `A-Z a-z 0-9 . _ : -`. Default:
        OPTWRAP_ATTEMPT, else Slurm's job, restart and step ids, else the id that process 0 publishes through
        `jax.distributed`, else an id of this process alone.
      token_file: path of a file that holds the exporter's token, read for every report. If it is missing or unreadable,
        that is logged once, and reports go without a token until it can be read. Default: OPTWRAP_TOKEN_FILE, else no
        token.
      ca_file: path of a file with the certificates, in PEM, that an https endpoint is checked against. It is read for
        every connection. Default: OPTWRAP_CA_FILE, else the certificates that the system trusts.
      interval: seconds between reports, above 0 and at most 3600. An exporter with many processes asks for fewer
        reports; the Monitor follows it, and still reports the first bad step of a streak at once.
      on_step: called with a `StepRecord` for each counted step, in order, in a thread of the Monitor's: for trackers,
        see `optwrap.trackers`. An exception in it is logged, once for each line that raises. If it is slower than the
        training, records are left out, and the next one says how many; training and reports never wait. It is called
        with the endpoint "off", too.
      counts_from: "zero" if this process began the training, so that the first reading counts all steps of its state:
        for a loop that returns its last state only. "first_reading" if the training was resumed: steps before the
        first reading are not counted. Default: the same, and if there are such steps, one line in the log says so.
      members: the size of an ensemble that is trained in one `jax.vmap`, at most 256. The first axis of each observed
        reading is the member, and each member is a run: `run.0`, `run.1`, ...
      replicated: whether all processes of the job train the same parameters, so that each step has the same outcome
        and norm in all of them. The exporter compares them, and reports processes that differ as diverged. Pass False
        if each process trains a copy of its own, as in local SGD: then they are not compared.
      serve: start an exporter at `endpoint`, an address of this machine, as a child that ends with this process, and
        print the link to its page. Needs the package optwrap-exporter. If something listens there, nothing is started.
        If it cannot be started, one line in the log says why. Waits until it listens, which takes a second or two.
      stop: when `should_stop` says that the training should stop; None for never. It needs no exporter.

    Raises:
      TypeError: `stop` is no `StopPolicy`, or `on_step` is not callable.
      ValueError: an argument or variable is wrong; the message says which one, its value and what is allowed.
    """

    def __init__(
        self,
        run: str | None = None,
        endpoint: str | None = None,
        process: int | None = None,
        *,
        attempt: str | None = None,
        token_file: str | os.PathLike[str] | None = None,
        ca_file: str | os.PathLike[str] | None = None,
        interval: float = 1.0,
        on_step: Callable[[StepRecord], object] | None = None,
        counts_from: Literal["first_reading", "zero"] | None = None,
        members: int | None = None,
        replicated: bool = True,
        serve: bool = False,
        stop: StopPolicy | None = None,
        _parts: Parts | None = None,
    ) -> None:
        if not (stop is None or isinstance(stop, StopPolicy)):
            raise TypeError(f"stop: got {stop!r}; allowed: an optwrap.StopPolicy, or None")
        if stop is not None and members is not None:
            raise ValueError(
                f"stop: got a StopPolicy with members={members!r}; allowed: one of them, because the members of an "
                "ensemble cannot stop one by one; decide by `latest(member)`"
            )
        if not (on_step is None or callable(on_step)):
            raise TypeError(f"on_step: got {on_step!r}; allowed: a callable that takes a StepRecord, or None")
        parts = _parts or Parts()
        self._once = LogOnce()
        self._decision = None if stop is None else Decision(stop, lambda observed: as_rows(on_host(observed)))
        self._stop: Stop | None = None
        """What `should_stop` returned last."""
        self._optimizer = OneOptimizer()
        self._settings = resolve(
            parts.environ,
            run=run,
            endpoint=endpoint,
            process=process,
            attempt=attempt,
            token_file=token_file,
            ca_file=ca_file,
            interval=interval,
            counts_from=counts_from,
            members=members,
            replicated=replicated,
            local=on_step is not None,
        )
        if self._settings is not None:
            self._check_token(self._settings)
            if serve and not self._settings.off and serve_locally(self._settings.endpoint):
                print(f"optwrap: {self._settings.endpoint.text.rstrip('/')}/?run={self._settings.runs[0]}")
        self._lifecycle = Lifecycle(self._settings, parts, on_step=on_step, decision=self._decision)

    def _repr_html_(self) -> str:
        """What a notebook shows: the link to the exporter, and the newest step."""
        runs = () if self._settings is None else self._settings.runs
        return table(self._settings, {run: self.latest(member) for member, run in enumerate(runs)})

    def __repr__(self) -> str:
        if self._settings is None:
            return "Monitor(off)"
        return f"Monitor(run={self._settings.run!r}, endpoint={self._settings.endpoint.text!r})"

    @property
    def layout(self) -> Layout | None:
        """The parameters' names, for `optwrap.unpack`; None until `init` or `update` is traced."""
        return self._optimizer.layout

    def latest(self, member: int = 0) -> Reading | None:
        """The newest reading that the device has computed, unpacked; None before the first, or if the Monitor is off.

        For your own logger: it never waits for the device. It is a moment behind the loop, because the Monitor's
        thread reads what was observed.

        Args:
          member: whose reading, with `Monitor(members=n)`.

        Raises:
          IndexError: there is no such member.
        """
        worker = self._lifecycle.worker
        if worker is None:
            return None
        accounts = worker.accounts
        if not 0 <= member < len(accounts):
            raise IndexError(f"latest: member is {member}; allowed: 0 to {len(accounts) - 1}")
        return accounts[member].latest

    @property
    def stop_policy(self) -> StopPolicy | None:
        """When `should_stop` says that the training should stop; None for never."""
        return None if self._decision is None else self._decision.policy

    def describe(self, layout: Layout, *, stepping: bool = False) -> None:
        """Receive the parameters' names. `instrument` calls this whenever `init` or `update` is traced.

        Args:
          layout: the parameters' paths.
          stepping: whether `update` is traced, and not `init`.

        Raises:
          ValueError: the `update` of another optimizer was traced before, and both existed then: the counts of one
            would be lost. An optimizer that was made later takes over, as in a notebook's cell that is run again.
        """
        if self._decision is not None:
            self._decision.describe(layout, stepping=stepping)
        self._optimizer.describe(layout, stepping=stepping, monitor=self)
        if self._lifecycle.worker is not None:
            self._lifecycle.worker.inbox.layout = self._optimizer.layout

    def observe(self, reading: object, /, **scalars: object) -> None:
        """Report one step, or several. Never blocks, not even for the device, and never raises.

        Observe the reading that each step returns, and nothing else. Do not observe a restored state: its last step
        would be counted again. Counters are cumulative: if a step is not observed, only its step record is missing.
        Counting starts just before the first reading, so steps before it are not counted; to observe only every n-th
        step, observe the reading of the fresh state first. Counters that fall, because an older state was restored,
        start a new incarnation. The same reading twice is counted once.

        With emit="callback" the step calls this.

        Args:
          reading: the result of `optwrap.reading`, uint32[words], on the host or on any devices, possibly still being
            computed; do not donate it. It may have any leading axes: they are time in row-major order (from lax.scan,
            nested or not; times are spread evenly since the last reading and marked as interpolated). An axis along
            which all rows are equal holds replicas of one step (from pmap). With `Monitor(members=n)` the first axis is
            the member. Anything else is ignored, with one line in the log; if it is a reading, its steps are reported
            as dropped.
          **scalars: numbers of this step to store and draw beside the norm: `loss=loss`. Each is a real number or a JAX
            or numpy array, read in the Monitor's thread; do not donate it. It has no axes, or the reading's leading
            axes: one number for each step, or for each replica, of which the mean is stored. At most 16 names of
            `[a-zA-Z_][a-zA-Z0-9_]{0,63}` in the life of a Monitor, injected hyperparameters included; a name that is
            used twice has the observed value. Anything else is ignored, with one line in the log for each name.
        """
        try:
            put = self._lifecycle.put or self._lifecycle.reopen()
            if put is not None:
                put(reading, scalars)
        except Exception as error:
            self._once.warn("observe", "optwrap: a reading of run %s was lost", self._lifecycle.run, error=error)

    def diagnose(self, cause: str, *, step: int | None = None, remedy: str | None = None, member: int = 0) -> None:
        """Report why a step went bad, as the event `diagnosed`. `Findings.report` calls this. It never blocks.

        Args:
          cause: one line of at most 256 characters.
          step: the number of the step, from 1; None if it is not known.
          remedy: what to do about it, likewise one line.
          member: whose step, with `Monitor(members=n)`.

        Raises:
          IndexError: there is no such member.
          TypeError: `step` is no integer.
          ValueError: `step` is less than 1.
        """
        if step is not None:
            step = int(integer("diagnose: step", step, 1, "pass the number of the step, or None"))  # type: ignore[arg-type]
        worker = self._lifecycle.worker
        if worker is None:
            return
        if not 0 <= member < len(worker.accounts):
            raise IndexError(f"diagnose: member is {member}; allowed: 0 to {len(worker.accounts) - 1}")
        worker.inbox.diagnoses.append((member, Diagnosis(step, cause, remedy)))
        worker.inbox.wakeup.set()

    def should_stop(self) -> Stop | None:
        """Whether the training should stop, as the policy `stop` says. Call it in the loop, after `observe`.

        It is decided in this process, from all readings observed but the last `StopPolicy.lag` ones; no exporter and no
        other process is asked. In data-parallel training all hosts get the same readings, so all of them get the same
        answer at the same step, if all observe every step and ask at the same place of the loop. Processes that train
        copies of their own may get different answers. It waits until the device has computed those readings. If the
        loop observes several times between two questions, `observe` waits in the same way.

        Returns:
          The `Stop`, or None; always None without a policy. Once there is a `Stop`, it stays the same until the loop
          has restored an older state, and a reading of that state is observed: then counting starts again.

        Raises:
          RuntimeError: the step of a reading failed (a `jax.errors.JaxRuntimeError`), or the reading was donated.
          ValueError: something that is no reading of this instrumentation was observed.
        """
        if self._decision is None:
            return None
        found = self._decision.decide()
        if self._lifecycle.worker is not None:
            self._lifecycle.worker.stop = found
        self._stop = found
        return found

    def flush(self, timeout: float = 5.0) -> bool:
        """Wait until the exporter has stored everything observed so far.

        Args:
          timeout: limit in seconds.

        Returns:
          True if everything is stored, or if the Monitor is off. False after the timeout or a refusal, and if step
          records have been dropped since the last `flush`: nothing will deliver them.
        """
        worker = self._lifecycle.worker
        if worker is None or worker.thread is None:
            return True
        if worker.inbox.closing is not None:
            return worker.inbox.done.wait(timeout) and worker.reporter.flushed
        flush = Flush()
        worker.inbox.flushes.append(flush)
        worker.inbox.wakeup.set()
        try:
            flush.done.wait(timeout)
        finally:
            # The reporting thread removes the flushes itself when it ends.
            with contextlib.suppress(ValueError):
                worker.inbox.flushes.remove(flush)
        return flush.succeeded

    def close(self, state: _FinalState | None = None, reason: str | None = None) -> None:
        """Report the end of the run, and stop. Waits at most 2 s. Closing again does nothing.

        Called in `on_step` it does not wait: `on_step` is still called for every step that was observed before, within
        the 2 s, and the last report is sent.

        Args:
          state: how the run ended. Default: "stopped" if `should_stop` has returned a `Stop`, otherwise "finished".
          reason: why, for those who watch the run: one line of at most 256 characters. Default for "stopped": that of
            the `Stop`.

        Raises:
          ValueError: `state` is not one of these.
        """
        if not (state is None or state in _FINAL_STATES):
            raise ValueError(f"close: state is {state!r}; allowed: {', '.join(map(repr, _FINAL_STATES))}, or None")
        self._lifecycle.close(Ending.of(state, reason, self._stop))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: types.TracebackType | None
    ) -> None:
        # sys.exit() and sys.exit(0) end a program that succeeded, and sys.exit(stop.exit_code) one that stopped.
        if error is None or (isinstance(error, SystemExit) and (not error.code or self._stop is not None)):
            self.close()
        else:
            self.close("failed", in_words(error))

    def _check_token(self, settings: Settings) -> None:
        if settings.token_file is not None:
            try:
                read_token(settings.token_file)
            except (OSError, ValueError) as error:
                self._once.warn(
                    "token",
                    "optwrap: cannot read the token file %s (%s); run %s is reported without a token until it can be "
                    "read",
                    settings.token_file,
                    error,
                    settings.run,
                )
