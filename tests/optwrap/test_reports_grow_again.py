"""Reports that had to become smaller after a 413 grow again, as far as they are let through."""

import pytest

from optwrap._monitor.sending import outbox
from tests.optwrap.simulated_monitor import SimulatedMonitor
from tests.optwrap.test_large_reports import every, limited, simulated

PARAMETERS = 100
GROW_AFTER = 5


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few reports instead of 64, to be quick."""
    monkeypatch.setattr(outbox, "_GROW_AFTER", GROW_AFTER)


def largest_after(sim: SimulatedMonitor, reports: int) -> int:
    """Let a Monitor report so often, one bad step each time; the most names in one of the last reports."""
    before = len(sim.books.order)
    while len(sim.books.order) < before + reports:
        sim.step("skipped_not_finite", every(sim))
        sim.run(1.0)
    return max(len(report["totals"]["parameters"]) for report in sim.books.order[-2:])


def test_reports_name_all_parameters_again_once_the_proxy_is_gone() -> None:
    sim = simulated(PARAMETERS, length=200)
    ok = sim.network.post
    limited(sim, 9_000)
    assert largest_after(sim, 10) < PARAMETERS // 2
    sim.network.post = ok  # type: ignore[method-assign]
    assert largest_after(sim, 30 * GROW_AFTER) == PARAMETERS
    assert sim.books.dropped() == {"steps": 0, "bad_steps": 0}


def test_a_limit_that_stays_costs_a_few_refusals_and_no_record() -> None:
    sim = simulated(PARAMETERS, length=200)
    refused = limited(sim, 9_000)
    largest_after(sim, 10)
    at_first = len(refused)
    largest_after(sim, 30 * GROW_AFTER)
    assert 0 < len(refused) - at_first < 40, "one or two for each of 30 times that reports grew"
    assert sim.books.dropped() == {"steps": 0, "bad_steps": 0}
    steps = [step for _, step in sim.books.steps()]
    assert sorted(steps) == list(range(1, len(steps) + 1))
