"""Fixtures of the exporter's tests."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.exporter.running import Served


@pytest.fixture
def site(tmp_path: Path) -> "Iterator[Served]":
    """An exporter with nothing in it, on loopback, without a token."""
    # Here, so that tests of a single module need nothing else to work.
    from tests.exporter.running import served

    with served(tmp_path / "data") as running:
        yield running
