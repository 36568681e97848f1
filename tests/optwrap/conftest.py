"""Settings for every test of the library: strict shapes, no warnings, several devices."""

import pathlib
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import jax
import pytest

from optwrap._monitor.monitor import Monitor
from optwrap._monitor.thread import Parts
from tests.optwrap.monitoring import StubExporter

# Before anything asks for a device: tests on a mesh need some.
jax.config.update("jax_num_cpu_devices", 8)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Make warnings errors, for the tests below this directory."""
    here = pathlib.Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.filterwarnings("error"))


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small chunks, so that the tests' trees have leaves in a chunk of their own and leaves that share one."""
    monkeypatch.setattr("optwrap._core.finite._CHUNK", 12)


@pytest.fixture(autouse=True)
def strict_ranks() -> Iterator[None]:
    """An operation that would silently repeat an array of lower rank fails."""
    with jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture
def strict_dtypes() -> Iterator[None]:
    """An operation that would silently widen a dtype fails."""
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture
def stub() -> Iterator[StubExporter]:
    """An exporter that keeps and adds up what it is sent."""
    server = StubExporter()
    yield server
    server.close()


@pytest.fixture
def make(stub: StubExporter) -> Iterator[Callable[..., Monitor]]:
    """Makes Monitors that report to `stub`, closes them after the test, and waits for their threads.

    A Monitor that was collected closes without waiting. If `stub` closed while its thread still reports, the thread
    would log that into the next test.
    """
    jax.devices()  # a Monitor reports once JAX has its devices
    made: list[weakref.ref[Monitor]] = []
    threads: list[threading.Thread] = []

    def monitor(**arguments: Any) -> Monitor:
        parts = Parts(environ={}, **arguments.pop("parts", {}))
        new = Monitor(**{"run": "r", "endpoint": stub.endpoint, "interval": 0.02, "_parts": parts, **arguments})
        made.append(weakref.ref(new))
        if new._lifecycle.worker is not None and new._lifecycle.worker.thread is not None:
            threads.append(new._lifecycle.worker.thread)
        return new

    yield monitor
    for reference in made:
        if (alive := reference()) is not None:
            alive.close()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive(), "a Monitor still reports"
