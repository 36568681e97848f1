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
    from tests.exporter.running import Served
    from tests.exporter.stores import Kept


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
