"""Mutated reports and bodies made to be expensive harm nothing: a short form of `make fuzz`."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.exporter.fuzz import campaign
from tests.exporter.fuzz.bombs import BOMBS, base
from tests.exporter.fuzz.victim import Victim, victim

HEADROOM = 5
"""Factor for the limits of processor time: the machine of a test run is busy."""


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    with victim(tmp_path_factory.mktemp("bombs") / "data") as running:
        running.client.post("/v1/reports", json={**base(), "run": "warm"})
        yield running


@pytest.mark.thin(3)
@pytest.mark.parametrize("name", BOMBS)
def test_a_body_made_to_be_expensive_is_refused_cheaply(target: Victim, name: str) -> None:
    """Whatever is in 4 MiB: 50 ms of processor time and 100 MB of memory."""
    body = BOMBS[name]()
    answer, cost = target.post(body)
    assert answer.status_code in {413, 422}, answer.text[:500]
    assert len(answer.content) < 100_000
    assert cost.bytes < campaign.MOST_BYTES
    if cost.seconds > HEADROOM * campaign.REFUSED_SECONDS:  # a tick of the exporter's own may have fallen into it
        _, cost = target.post(body)
    assert cost.seconds < HEADROOM * campaign.REFUSED_SECONDS


def test_mutated_reports_are_answered_as_documented_and_change_nothing_else(tmp_path: Path) -> None:
    """800 of them, of a real Monitor's shapes: their statuses, time, memory, another run, and /metrics."""
    found = campaign.run(tmp_path / "data", seed=1, reports=800, headroom=HEADROOM)
    assert found.wrong == []
    assert found.statuses[200] > 80, "too few got through to the ledger"
    assert found.statuses[422] > 80
