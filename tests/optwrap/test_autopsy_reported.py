"""Findings reach the exporter, each once."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import optwrap
from optwrap._monitor.queue import Diagnosis
from optwrap._monitor.sending.transport import Answer
from tests.optwrap.monitoring import StubExporter, Training
from tests.optwrap.simulated_monitor import SimulatedMonitor

BAD = np.array([-1.0, 1.0], np.float32)


def diagnoses(stub: StubExporter) -> list[dict[str, Any]]:
    """Those of all reports that were accepted."""
    return [one for report in stub.books.order for one in report.get("diagnoses", ())]


def test_causes_are_reported_once(make: Callable[..., optwrap.Monitor], stub: StubExporter) -> None:
    monitor = make(interval=0.02)
    monitor.observe(Training().step().words())
    findings = optwrap.autopsy(jnp.sqrt, BAD)
    findings.report(monitor, step=3)
    findings.report(monitor)
    assert monitor.flush()
    first, second = diagnoses(stub)
    assert first["step"] == 3
    assert first["cause"].startswith("sqrt returned nan")
    assert "below 0" in first["remedy"]
    assert "step" not in second
    monitor.observe(Training().step().step().words())
    assert monitor.flush()
    assert len(diagnoses(stub)) == 2


def test_a_report_that_is_too_large_is_made_smaller_and_keeps_its_diagnoses() -> None:
    sim = SimulatedMonitor()
    refused: list[bytes] = []
    post = sim.network.post

    def picky(body: bytes, **within: Any) -> Answer:
        if not refused and b"diagnoses" in body:
            refused.append(body)
            return Answer(413, b"{}")
        return post(body, **within)

    sim.network.post = picky  # type: ignore[method-assign]
    sim.step("skipped_not_finite", {"head": 1})
    sim.step("skipped_not_finite", {"head": 1})
    sim.inbox.diagnoses.append((0, Diagnosis(1, "why", None)))
    sim.run(5)
    assert len(refused) == 1
    assert [report["diagnoses"] for report in sim.books.order if "diagnoses" in report] == [
        [{"step": 1, "cause": "why"}]
    ]


def test_nothing_is_reported_of_a_healthy_function_and_wrong_steps_are_refused(
    make: Callable[..., optwrap.Monitor], stub: StubExporter
) -> None:
    monitor = make()
    optwrap.autopsy(jnp.sqrt, -BAD * BAD + 1).report(monitor)
    assert monitor.flush()
    assert diagnoses(stub) == []
    with pytest.raises(ValueError, match="diagnose: step must be an integer from 1"):
        monitor.diagnose("why", step=0)
    with pytest.raises(IndexError, match="diagnose: member is 1"):
        monitor.diagnose("why", member=1)
