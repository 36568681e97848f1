"""A signal that comes in the midst of a host callback ends the process as it would anywhere else."""

import concurrent.futures
import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optwrap
from optwrap._reading.unpack import unpack
from optwrap._step.interrupts import in_callback, is_a_handlers, raise_later
from tests.optwrap.monitoring import StubExporter

JOB = """
import functools, os, signal, sys, time
import jax, jax.numpy as jnp, optax, optwrap
from optwrap._step.interrupts import in_callback

class Signalled(optwrap.Monitor):
    \"\"\"A Monitor in which SIGTERM comes while the second step's callback runs, before it has taken the reading.\"\"\"

    observed = 0

    def observe(self, reading, **how):
        self.observed += 1
        if self.observed == 2:
            print("in callback", in_callback(sys._getframe()))
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.2)
        super().observe(reading, **how)

signal.signal(signal.SIGTERM, lambda *_: sys.exit(43))
before = signal.getsignal(signal.SIGINT)
try:
    with Signalled("r", process=0, attempt="1") as monitor:
        tx = optwrap.instrument(optax.sgd(0.5), monitor, emit="callback")
        step = jax.jit(tx.update, donate_argnums=1)
        params = {"a": jnp.ones(3)}
        state = tx.init(params)
        for _ in range(2):
            _, state = step(params, state, params)
        jax.block_until_ready(state)
        time.sleep(30)
        print("it went on")
finally:
    print("handlers as before", signal.getsignal(signal.SIGINT) is before)
"""


def test_sigterm_in_the_midst_of_the_callback_ends_the_job_after_the_step(stub: StubExporter) -> None:
    """With the handler's own status, and the run reported as failed, that step included."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("OPTWRAP_", "SLURM_"))}
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", JOB],
        env={**environ, "OPTWRAP_ENDPOINT": stub.endpoint, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.stdout.splitlines() == ["in callback True", "handlers as before True"], ran.stderr
    assert ran.returncode == 43, ran.stderr
    assert stub.books.totals() == {"applied": 2}
    assert [step for _, step in stub.books.steps()] == [1, 2]
    assert stub.books.order[-1]["state"] == "failed"


class Wanted(BaseException):
    """What a program's own handler raises."""


@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN, signal.SIG_DFL])
def test_what_comes_later_comes_once_and_leaves_the_handler_as_it_was(handler: Any) -> None:
    """Also where Ctrl-C is ignored, as in a job that a shell has put into the background."""
    error = Wanted()

    def go_on() -> None:
        assert raise_later(error)
        time.sleep(30)

    before = signal.signal(signal.SIGINT, handler)
    try:
        with pytest.raises(Wanted) as raised:
            go_on()
        assert raised.value is error
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_it_waits_for_the_end_of_the_callback_that_the_main_thread_is_in() -> None:
    """In which the first tries to let it come fall."""
    inside = []

    def call(x: Any) -> Any:
        raise_later(Wanted())
        inside.append(in_callback(sys._getframe()))
        time.sleep(0.1)
        return np.asarray(x)

    def train() -> None:
        spec = jax.ShapeDtypeStruct((), np.float32)
        jax.block_until_ready(
            jax.jit(lambda x: jax.pure_callback(call, spec, x, vmap_method="sequential"))(np.float32(3))
        )
        time.sleep(30)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Wanted):  # and no error of JAX's
        train()
    assert inside == [True]
    assert not in_callback(sys._getframe())
    assert signal.getsignal(signal.SIGINT) is before


class TookTooLong(Exception):
    """What a program's own handler of an alarm raises: no BaseException, as such things mostly are."""


class Handler:
    """Handlers of every kind that Python takes."""

    def method(self, *_: Any) -> None:
        raise TookTooLong

    __call__ = method


class Hooked(np.ndarray[Any, Any]):
    """A reading that does something while it is observed."""

    act: Callable[[], None]

    def copy(self, order: Any = "C") -> Any:
        self.act()
        return super().copy(order)


def function(*_: Any) -> None:
    raise TookTooLong


HANDLERS: list[Callable[[int, Any], None]] = [
    function,
    Handler().method,
    Handler(),
    functools.partial(Handler.method, Handler()),
]


@pytest.fixture(params=HANDLERS, ids=["function", "method", "object", "partial"])
def alarm(request: pytest.FixtureRequest) -> Iterator[Callable[[], None]]:
    """What brings the signal of a handler that raises."""
    before = signal.signal(signal.SIGUSR1, request.param)
    yield lambda: signal.raise_signal(signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, before)


def test_an_exception_of_a_handler_comes_after_the_step(alarm: Callable[[], None]) -> None:
    """And not as a reading that was lost; the reading is there."""
    told = []

    class Alarmed:
        def describe(self, layout: Any, *, stepping: bool = False) -> None:
            pass

        def observe(self, reading: Any) -> None:
            told.append(reading)
            if len(told) == 1:
                alarm()

    tx = optwrap.instrument(optax.sgd(0.5), Alarmed(), emit="callback")
    params = {"a": jnp.ones(3)}

    def train() -> None:
        jax.block_until_ready(jax.jit(tx.update)(params, tx.init(params), params))
        time.sleep(30)

    with pytest.raises(TookTooLong):
        train()
    assert [unpack(np.asarray(reading)).step for reading in told] == [1, 1]


def test_a_monitor_hands_on_what_a_handler_raises(alarm: Callable[[], None], caplog: pytest.LogCaptureFixture) -> None:
    """And nothing else: what is raised by the reading itself is one line in the log."""

    def failing() -> None:
        raise TookTooLong

    reading = np.zeros(26, np.uint32).view(Hooked)
    with optwrap.Monitor("alarmed", "http://127.0.0.1:9", 0) as monitor:
        reading.act = alarm
        with pytest.raises(TookTooLong):
            monitor.observe(reading)
        assert not any("was lost" in record.getMessage() for record in caplog.records)
        reading.act = failing
        monitor.observe(reading)
    assert sum("was lost" in record.getMessage() for record in caplog.records) == 1


def test_only_what_a_handler_raised_is_taken_for_a_handlers(alarm: Callable[[], None]) -> None:
    """A failure that is like it in type alone is not; and no thread but the main one has handlers."""
    with pytest.raises(TookTooLong) as raised:
        alarm()
    assert is_a_handlers(raised.value)
    assert not is_a_handlers(TookTooLong())
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        assert not pool.submit(is_a_handlers, raised.value).result()
