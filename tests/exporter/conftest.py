"""Fixtures of the exporter's tests."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

# A loaded machine must not fail a test: no deadline for a single example.
settings.register_profile("exporter", deadline=None)
settings.load_profile("exporter")

if TYPE_CHECKING:
    from optwrap_exporter.ledger.ledger import Ledger

    from tests.exporter.running import Served
    from tests.exporter.stores import Kept
    from tests.exporter.trainer import Trainer, TurnedClock


@pytest.fixture
def clock() -> "TurnedClock":
    """The exporter's clock, which the test turns."""
    from tests.exporter.trainer import TurnedClock

    return TurnedClock()


@pytest.fixture
def ledger(clock: "TurnedClock") -> "Ledger":
    """A ledger by that clock, without a store."""
    from optwrap_exporter.ledger.ledger import Ledger

    return Ledger(clock)


@pytest.fixture
def trainer(clock: "TurnedClock") -> "Trainer":
    """A training process by the same clock."""
    from tests.exporter.trainer import Trainer

    return Trainer(clock)


@pytest.fixture
def kept(tmp_path: Path) -> "Iterator[Kept]":
    """A store and its ledger."""
    # Here, so that tests of a single module need nothing else to work.
    from tests.exporter.stores import Kept

    made = Kept(tmp_path / "data")
    yield made
    made.store.close()


@pytest.fixture
def site(tmp_path: Path) -> "Iterator[Served]":
    """An exporter with nothing in it, on loopback, without a token."""
    from tests.exporter.running import served

    with served(tmp_path / "data") as running:
        yield running


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Served]":
    """One for all tests of a module that leave no trace in it, or look only at the trace they leave."""
    from tests.exporter.running import served

    with served(tmp_path_factory.mktemp("shared") / "data") as running:
        yield running
