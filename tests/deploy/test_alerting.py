"""From a NaN in a jitted step to somebody's pocket: job, exporter, Prometheus and Alertmanager, all of them real."""

import time
from pathlib import Path
from typing import Any

import httpx
import jax
import jax.numpy as jnp
import optax
import pytest

import optwrap
from tests.conftest import RunningExporter
from tests.deploy import alertmanager as alertmanagers
from tests.deploy import prometheus as prometheuses
from tests.deploy.alertmanager import Told

pytestmark = [pytest.mark.programs("prometheus", "prometheus-alertmanager")]

RUN = "lm-7b:alerting.test_1"
LIMIT = 6


class Training:
    """A jitted optimizer behind a guard, stepped by the test."""

    def __init__(self, monitor: optwrap.Monitor) -> None:
        self.monitor = monitor
        tx = optwrap.instrument(optwrap.apply_if_finite(optax.adam(1e-3), LIMIT), monitor)
        self.params: Any = {"decoder": {"w": jnp.ones(3)}, "embed": jnp.ones(2)}
        self.state = tx.init(self.params)

        @jax.jit
        def step(params: Any, state: Any, gradients: Any) -> tuple[Any, Any, jax.Array]:
            updates, state = tx.update(gradients, state, params)
            return optax.apply_updates(params, updates), state, optwrap.reading(state)

        self._step = step

    def step(self, times: int, value: float) -> None:
        """So many steps whose gradients for decoder/w are this value."""
        for _ in range(times):
            gradients = {"decoder": {"w": jnp.full(3, value)}, "embed": jnp.ones(2)}
            self.params, self.state, reading = self._step(self.params, self.state, gradients)
            self.monitor.observe(reading)
        assert self.monitor.flush(30)


def test_a_streak_reaches_who_reads_then_who_is_woken_and_is_over_when_it_is(
    exporter: RunningExporter, tmp_path: Path
) -> None:
    """Half the limit warns, the limit wakes, each with the run and the number; what ends is told as well.

    One NaN alone tells nobody, and no other alert comes up: the guard never gives up here.
    """
    for name in ("alertmanager", "prometheus"):
        (tmp_path / name).mkdir()
    with (
        alertmanagers.running(tmp_path / "alertmanager") as alertmanager,
        prometheuses.running(tmp_path / "prometheus", [exporter.url], alertmanager.address) as prometheus,
        optwrap.Monitor(run=RUN, endpoint=exporter.url, interval=0.2) as monitor,
    ):
        training = Training(monitor)

        def counted(count: int) -> None:
            prometheus.wait_until(f'optwrap_guard_not_finite_count{{run="{RUN}"}} == {count}')

        def wait_for(severity: str, status: str) -> Told:
            return alertmanager.wait_for(
                f"{severity} {status}", lambda told: (told.labels["severity"], told.status) == (severity, status)
            )

        # Enough steps, seen from zero on, that those skipped below are no large share.
        prometheus.wait_until(f'optwrap_steps_total{{run="{RUN}"}} == 0')
        training.step(400, 1.0)
        prometheus.wait_until(f'optwrap_steps_total{{run="{RUN}"}} == 400')
        training.step(1, jnp.nan)
        counted(1)
        training.step(5, 1.0)
        counted(0)
        time.sleep(2 * prometheuses.SCRAPE_INTERVAL)
        assert prometheus.instant(f'count_over_time(ALERTS{{run="{RUN}"}}[5m])') == []

        training.step(LIMIT // 2, jnp.nan)
        warned = wait_for("warning", "firing")
        assert warned.receiver == "read"
        assert warned.labels == {"alertname": "OptwrapNotFiniteStreak", "run": RUN, "severity": "warning"}
        assert warned.annotations["summary"] == (
            f"{RUN}: {LIMIT // 2} calls in a row with gradients that are not finite, "
            f"of the {LIMIT} that apply_if_finite rejects"
        )
        assert warned.annotations["dashboard_url"] == f"http://localhost:3000/d/optwrap-run?var-run={RUN}"
        url, _, anchor = warned.annotations["runbook_url"].partition("#")
        assert f'<h2 id="{anchor}">OptwrapNotFiniteStreak</h2>' in httpx.get(url, trust_env=False).text

        training.step(LIMIT - LIMIT // 2, jnp.inf)
        woken = wait_for("critical", "firing")
        assert woken.receiver == "wake"
        assert woken.labels == {"alertname": "OptwrapNotFiniteStreak", "run": RUN, "severity": "critical"}
        assert woken.annotations["summary"].startswith(f"{RUN}: {LIMIT} calls in a row ")

        training.step(5, 1.0)
        over = wait_for("critical", "resolved")
        assert (over.receiver, over.labels) == ("wake", woken.labels)
        assert {told.labels["alertname"] for told in alertmanager.told} == {"OptwrapNotFiniteStreak"}
        assert {told.labels["run"] for told in alertmanager.told} == {RUN}
        assert jnp.isfinite(training.params["decoder"]["w"]).all()
