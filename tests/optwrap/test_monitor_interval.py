"""The Monitor reports as often as the exporter asks for, within its own settings."""

import itertools
import json
from collections.abc import Callable

import pytest

from optwrap._monitor.sending.transport import Answer
from tests.optwrap.monitoring import PARAMETERS
from tests.optwrap.simulated_monitor import SimulatedMonitor


def asked(sim: SimulatedMonitor, interval: str) -> None:
    """Let the exporter's answers have this JSON as their `interval`, from now on."""
    post = type(sim.network).post

    def posting(body: bytes, *, within: float | None = None, meanwhile: Callable[[], None] | None = None) -> Answer:
        answer = post(sim.network, body, within=within, meanwhile=meanwhile)
        if answer.status != 200:
            return answer
        acknowledged = json.loads(answer.body)["acknowledged"]
        return Answer(200, f'{{"acknowledged": {acknowledged}, "interval": {interval}}}'.encode())

    sim.network.post = posting  # type: ignore[method-assign]


def reports(sim: SimulatedMonitor, seconds: float) -> list[float]:
    """When the reports of the next seconds were sent."""
    before = len(sim.books.order)
    sim.run(seconds)
    return [report["sent_at"] for report in sim.books.order[before:]]


def test_the_monitor_reports_as_rarely_as_it_is_asked_to() -> None:
    """With jitter: the processes of a pod must not all report together."""
    sim = SimulatedMonitor()
    asked(sim, "20.0")
    sent = reports(sim, 2000)
    gaps = [after - before for before, after in itertools.pairwise(sent)]
    assert 90 <= len(sent) <= 110
    assert all(15 <= gap <= 25.2 for gap in gaps)
    assert max(gaps) - min(gaps) > 5


def test_a_bad_step_does_not_wait_for_a_long_interval() -> None:
    sim = SimulatedMonitor()
    asked(sim, "600")
    sim.run(1)
    for _ in range(3):
        sim.step()
    sim.run(10)
    before = len(sim.books.steps())
    sim.step("skipped_not_finite", {PARAMETERS[0]: 1})
    sim.run(0.5)
    assert len(sim.books.steps()) == before + 4


def test_the_monitor_returns_to_its_own_interval_when_the_exporter_asks_for_it() -> None:
    sim = SimulatedMonitor()
    asked(sim, "20.0")
    sim.run(60)
    asked(sim, "1.0")
    sim.run(30)
    assert 9 <= len(reports(sim, 10)) <= 11


@pytest.mark.parametrize(
    "interval",
    ["0", "0.999", "-1", "3600.1", "1e999", "NaN", "Infinity", '"20"', "null", "true", "[20]", "{}", "1" + "0" * 400],
)
def test_an_interval_out_of_range_is_ignored(interval: str) -> None:
    """The last valid one holds."""
    sim = SimulatedMonitor()
    asked(sim, interval)
    assert 10 <= len(reports(sim, 10.05)) <= 11
    asked(sim, "20")
    sim.run(60)
    asked(sim, interval)
    assert 4 <= len(reports(sim, 100)) <= 7


def test_an_interval_is_forgotten_when_the_exporter_is_gone_for_long() -> None:
    """The next one may be another, which asks for nothing."""
    sim = SimulatedMonitor()
    asked(sim, "300")
    sim.run(400)
    sim.network.mode = "down"
    sim.run(1000)
    sim.network.mode = "up"
    asked(sim, "null")
    sim.run(60)
    assert 9 <= len(reports(sim, 10)) <= 11


def test_a_busy_exporter_is_not_a_gone_one() -> None:
    sim = SimulatedMonitor()
    asked(sim, "300")
    sim.run(400)
    sim.network.mode = "busy"
    sim.run(1000)
    sim.network.mode = "up"
    asked(sim, "null")
    sim.run(60)
    assert len(reports(sim, 100)) <= 1


def test_flush_and_the_end_of_the_run_do_not_wait_for_a_long_interval() -> None:
    sim = SimulatedMonitor()
    asked(sim, "3600")
    sim.run(1)
    sim.step()
    began = sim.now
    sim.finish()
    assert sim.now - began < 2
    assert sim.books.order[-1]["state"] == "finished"
