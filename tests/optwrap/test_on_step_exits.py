"""`Monitor(on_step=...)` with a callable that ends something: the thread it is called in, or its Monitor."""

import logging
import time
from collections.abc import Callable

import numpy as np
import pytest

from optwrap._monitor.local.callback import Caller
from optwrap._monitor.local.record import StepRecord
from optwrap._monitor.monitor import Monitor
from optwrap._reading.unpack import Reading, Totals
from tests.optwrap.monitoring import StubExporter, Training, counts, log_lines


def record(step: int) -> StepRecord:
    totals = Totals({"applied": step, "accepted_not_finite": 0}, 0, {})
    return StepRecord("lm", 0.0, False, Reading(totals, "applied", True, 1.0, {}, {}))


def test_a_callable_that_exits_is_logged_and_called_again(caplog: pytest.LogCaptureFixture) -> None:
    """A tracker that calls `sys.exit` must not end the calls for all later steps without a word."""
    seen = []

    def on_step(record: StepRecord) -> None:
        seen.append(record.step)
        if record.step == 1:
            raise SystemExit(1)

    caller = Caller(on_step, "lm")
    with caplog.at_level(logging.WARNING, "optwrap"):
        caller.put(record(1))
        caller.put(record(2))
        caller.close(10)
    assert seen == [1, 2]
    assert [line.getMessage() for line in caplog.records] == ["optwrap: on_step of run lm raised"]


@pytest.mark.parametrize("end", ["close", "a new Monitor"])
def test_a_callable_that_closes_its_monitor_is_called_for_every_observed_step(
    end: str, stub: StubExporter, make: Callable[..., Monitor], caplog: pytest.LogCaptureFixture
) -> None:
    """And the reports of these steps arrive. `close` there waits for nothing: nothing would come of it."""
    seen: list[int] = []
    waited: list[float] = []

    def on_step(record: StepRecord) -> None:
        seen.append(record.step)
        if record.step == 1:
            began = time.monotonic()
            if end == "close":
                monitor.close()
            else:
                make(process=0)
            waited.append(time.monotonic() - began)

    monitor, training = make(on_step=on_step, process=0), Training()
    monitor.describe(training.layout)
    monitor.observe(np.stack([np.array(training.step().words()) for _ in range(6)]))
    worker = monitor._lifecycle.worker
    assert worker is not None
    assert worker.inbox.done.wait(60)
    assert seen == [1, 2, 3, 4, 5, 6]
    assert waited[0] < 1
    assert stub.books.totals() == counts(training)
    assert not [line for line in log_lines(caplog) if "on_step" in line]
