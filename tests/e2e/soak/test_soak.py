"""Short forms of `make soak` and `make kills`."""

from pathlib import Path

import pytest

from tests.e2e.soak.day import growth, soak
from tests.e2e.soak.kills import kills


@pytest.mark.timeout(300)
def test_memory_stays_flat_over_the_hours_of_a_job_and_its_totals_are_right(tmp_path: Path) -> None:
    """Three simulated hours of two processes, restarted six times; records are kept for half an hour."""
    hours = soak(tmp_path, hours=3, processes=2, restart_minutes=29, retention_hours=0.5)
    assert len(hours) == 3
    assert growth(hours) < 1.1
    assert hours[2].database < 2 * hours[0].database


@pytest.mark.timeout(300)
def test_nothing_is_lost_or_counted_twice_while_the_exporter_is_killed(tmp_path: Path) -> None:
    assert kills(tmp_path, minutes=0.25, processes=2, rate=30, pause=(0.0, 1.5), away=(0.0, 0.5)) > 0
