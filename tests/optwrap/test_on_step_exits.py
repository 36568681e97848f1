"""`Monitor(on_step=...)` with a callable that ends the thread it is called in, as `sys.exit` does."""

import logging

import pytest

from optwrap._monitor.local.callback import Caller
from optwrap._monitor.local.record import StepRecord
from optwrap._reading.unpack import Reading, Totals


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
