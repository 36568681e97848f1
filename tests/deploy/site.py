"""A site for tests: real exporters, Prometheus with the rules, Alertmanager, and jobs that train."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import optax

import optwrap
from tests.conftest import RunningExporter
from tests.deploy import alertmanager as alertmanagers
from tests.deploy import prometheus as prometheuses
from tests.deploy.alertmanager import Alertmanager, Notified
from tests.deploy.prometheus import Prometheus

LIMIT: Final = 6
"""Calls that the guard of a `Training` rejects in a row."""


class Training:
    """A jitted optimizer, stepped by the test.

    Args:
      monitor: reports its steps.
      guarded: whether apply_if_finite guards it.
    """

    def __init__(self, monitor: optwrap.Monitor, *, guarded: bool = True) -> None:
        self.monitor = monitor
        inner = optax.adam(1e-3)
        tx = optwrap.instrument(optwrap.apply_if_finite(inner, LIMIT) if guarded else inner, monitor)
        self.params: Any = {"decoder": {"w": jnp.ones(3)}, "embed": jnp.ones(2)}
        self.state = tx.init(self.params)

        @jax.jit
        def step(params: Any, state: Any, gradients: Any) -> tuple[Any, Any, jax.Array]:
            updates, state = tx.update(gradients, state, params)
            return optax.apply_updates(params, updates), state, optwrap.reading(state)

        self._step = step

    def step(self, times: int, value: float) -> None:
        """Take steps whose gradients of decoder/w have this value."""
        for _ in range(times):
            gradients = {"decoder": {"w": jnp.full(3, value)}, "embed": jnp.ones(2)}
            self.params, self.state, reading = self._step(self.params, self.state, gradients)
            self.monitor.observe(reading)
        assert self.monitor.flush(30)


class Site(NamedTuple):
    """The running programs, shared by tests. Each test has its own runs."""

    exporter: RunningExporter
    other: RunningExporter
    """An exporter that a test may break, as long as it mends it."""
    prometheus: Prometheus
    alertmanager: Alertmanager

    def wait_for(self, alert: str, run: str, status: str, **labels: str) -> Notified:
        """The notification of this alert for this run; with the run "" of an alert that has none."""
        wanted = {"alertname": alert, "run": run, **labels}
        return self.alertmanager.wait_for(
            f"{alert} {status}",
            lambda alert: alert.status == status and wanted.items() <= ({"run": ""} | alert.labels).items(),
        )

    def notified_of(self, run: str) -> set[str]:
        """The alerts of a run that were notified so far."""
        return {alert.labels["alertname"] for alert in self.alertmanager.notified if alert.labels.get("run") == run}

    def firing(self, run: str) -> set[str]:
        """The alerts of a run that fire now, muted or not."""
        found = self.prometheus.instant(f'ALERTS{{run="{run}", alertstate="firing"}}')
        return {labels["alertname"] for labels, _ in found}

    def ever(self, run: str) -> set[str]:
        """The alerts of a run that were pending or firing within the last ten minutes."""
        found = self.prometheus.instant(f'count_over_time(ALERTS{{run="{run}"}}[10m])')
        return {labels["alertname"] for labels, _ in found}


@contextmanager
def running(directory: Path, *further: str) -> Iterator[Site]:
    """Run a site.

    Args:
      directory: an empty directory.
      *further: URLs of exporters that the test itself runs, and that Prometheus shall scrape, too.
    """
    for name in ("alertmanager", "prometheus"):
        (directory / name).mkdir()
    exporters: list[RunningExporter] = []
    try:
        exporters += [RunningExporter(directory / name, "--scope", "job") for name in ("exporter", "other")]
        urls = [*(one.url for one in exporters), *further]
        with (
            alertmanagers.running(directory / "alertmanager") as alertmanager,
            prometheuses.running(directory / "prometheus", urls, alertmanager.address) as prometheus,
        ):
            exporter, other = exporters
            yield Site(exporter, other, prometheus, alertmanager)
    finally:
        for one in exporters:
            one.stop()
