"""From a NaN in a jitted step to a notification, with a real job, exporter, Prometheus and Alertmanager."""

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx
import jax
import jax.numpy as jnp
import optax
import pytest

import optwrap
from tests.conftest import RunningExporter
from tests.deploy import alertmanager as alertmanagers
from tests.deploy import prometheus as prometheuses
from tests.deploy.alertmanager import Alertmanager, Notified
from tests.deploy.places import ALERTS
from tests.deploy.prometheus import Prometheus
from tests.exporter.running import Job
from tests.polling import wait_until

# One group, because each worker of a parallel run would start all programs.
pytestmark = [pytest.mark.programs("prometheus", "prometheus-alertmanager"), pytest.mark.xdist_group("alerting")]

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
        """Take steps whose gradients of decoder/w have this value."""
        for _ in range(times):
            gradients = {"decoder": {"w": jnp.full(3, value)}, "embed": jnp.ones(2)}
            self.params, self.state, reading = self._step(self.params, self.state, gradients)
            self.monitor.observe(reading)
        assert self.monitor.flush(30)


class Site(NamedTuple):
    """The running programs, shared by the tests of this file. Each test has its own runs."""

    exporter: RunningExporter
    prometheus: Prometheus
    alertmanager: Alertmanager

    def wait_for(self, alert: str, run: str, status: str, **labels: str) -> Notified:
        """The notification of this alert for this run."""
        wanted = {"alertname": alert, "run": run, **labels}
        return self.alertmanager.wait_for(
            f"{alert} {status}", lambda alert: alert.status == status and wanted.items() <= alert.labels.items()
        )

    def notified_of(self, run: str) -> set[str]:
        """The alerts of a run that were notified so far."""
        return {alert.labels["alertname"] for alert in self.alertmanager.notified if alert.labels.get("run") == run}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    exporter = RunningExporter(tmp_path_factory.mktemp("exporter") / "data")
    try:
        with (
            alertmanagers.running(tmp_path_factory.mktemp("alertmanager")) as alertmanager,
            prometheuses.running(
                tmp_path_factory.mktemp("prometheus"), [exporter.url], alertmanager.address
            ) as prometheus,
        ):
            yield Site(exporter, prometheus, alertmanager)
    finally:
        exporter.stop()


def test_streak_warns_then_becomes_critical_then_resolves(site: Site) -> None:
    """Half the limit warns and the limit is critical, each with the run and the count; the end is notified, too.

    A single NaN raises no alert, and no other alert fires, as the guard never gives up here.
    """
    run = "lm-7b:alerting.test_1"
    with optwrap.Monitor(run=run, endpoint=site.exporter.url, interval=0.2) as monitor:
        training = Training(monitor)

        def counted(count: int) -> None:
            site.prometheus.wait_until(f'optwrap_guard_not_finite_count{{run="{run}"}} == {count}')

        # Many steps, counted from zero, so that the skipped steps below are a small share.
        site.prometheus.wait_until(f'optwrap_steps_total{{run="{run}"}} == 0')
        training.step(400, 1.0)
        site.prometheus.wait_until(f'optwrap_steps_total{{run="{run}"}} == 400')
        training.step(1, jnp.nan)
        counted(1)
        training.step(5, 1.0)
        counted(0)
        assert site.prometheus.instant(f'count_over_time(ALERTS{{run="{run}"}}[5m])') == []

        training.step(LIMIT // 2, jnp.nan)
        warned = site.wait_for("OptwrapNotFiniteStreak", run, "firing")
        assert warned.receiver == "read"
        assert warned.labels == {"alertname": "OptwrapNotFiniteStreak", "run": run, "severity": "warning"}
        assert warned.annotations["summary"] == (
            f"{run}: {LIMIT // 2} calls in a row had non-finite gradients; "
            f"apply_if_finite rejects at most {LIMIT} in a row"
        )
        assert warned.annotations["dashboard_url"] == f"http://localhost:3000/d/optwrap-run?var-run={run}"
        url, _, anchor = warned.annotations["runbook_url"].partition("#")
        assert f'<h2 id="{anchor}">OptwrapNotFiniteStreak</h2>' in httpx.get(url, trust_env=False).text

        training.step(LIMIT - LIMIT // 2, jnp.inf)
        critical = site.wait_for("OptwrapNotFiniteStreak", run, "firing", severity="critical")
        assert critical.receiver == "wake"
        assert critical.labels == {"alertname": "OptwrapNotFiniteStreak", "run": run, "severity": "critical"}
        assert critical.annotations["summary"].startswith(f"{run}: {LIMIT} calls in a row ")

        training.step(5, 1.0)
        over = site.wait_for("OptwrapNotFiniteStreak", run, "resolved", severity="critical")
        assert (over.receiver, over.labels) == ("wake", critical.labels)
        assert site.notified_of(run) == {"OptwrapNotFiniteStreak"}
        assert jnp.isfinite(training.params["decoder"]["w"]).all()


def test_missing_process_and_stale_processes_raise_and_resolve_alerts(site: Site) -> None:
    """A process is missing until it reports. Both become stale when they stop, until they report that they finished."""
    run = "pod"
    first, second = (Job(run, process, f"e{process}", clock=time.time, process_count=2) for process in range(2))
    with httpx.Client(base_url=site.exporter.url, trust_env=False, timeout=30) as client:

        def send(job: Job, state: str = "running") -> None:
            job.step()
            assert client.post("/v1/reports", json=job.report(state)).status_code == 200

        send(first)
        missing = site.wait_for("OptwrapProcessMissing", run, "firing")
        assert missing.receiver == "wake"
        assert missing.annotations["summary"] == f"{run}: 1 of its processes are missing"
        for job in (first, second):
            send(job)
        site.wait_for("OptwrapProcessMissing", run, "resolved")
        # Neither reports from here on, so both are stale after ten seconds.
        stale = site.wait_for("OptwrapProcessStale", run, "firing")
        assert stale.receiver == "wake"
        assert stale.annotations["summary"].startswith(f"{run}: ")
        for job in (first, second):
            send(job, "finished")
        site.wait_for("OptwrapProcessStale", run, "resolved")
        assert site.notified_of(run) == {"OptwrapProcessMissing", "OptwrapProcessStale"}
        assert site.prometheus.instant(f'ALERTS{{run="{run}"}}') == []


def test_alerts_that_follow_from_a_worse_one_are_muted(site: Site) -> None:
    """One run has all alerts at once. Another has only those that would be muted, and they are not muted."""
    everything = {
        (alert["alert"], alert["labels"]["severity"])
        for alert in ALERTS
        if "$labels.run" in alert["annotations"]["summary"]
    }
    follows = {
        ("OptwrapNotFiniteStreak", "warning"),
        ("OptwrapNotFiniteStreak", "critical"),
        ("OptwrapSkipRatioHigh", "warning"),
        ("OptwrapStalled", "critical"),
    }
    alone = follows - {("OptwrapNotFiniteStreak", "critical")}
    with httpx.Client(base_url=f"http://{site.alertmanager.address}/api/v2", trust_env=False, timeout=30) as client:
        firing = [
            {"labels": {"alertname": name, "severity": severity, "run": run}}
            for run, alerts in (("everything", everything), ("alone", alone))
            for name, severity in alerts
        ]
        assert client.post("/alerts", json=firing).status_code == 200

        def in_state(run: str, state: str) -> set[tuple[str, str]]:
            return {
                (alert["labels"]["alertname"], alert["labels"]["severity"])
                for alert in client.get("/alerts", params={"filter": f'run="{run}"'}).json()
                if alert["status"]["state"] == state
            }

        # Alertmanager sets the state of an alert when it first processes the alert's group.
        wait_until(lambda: not (in_state("everything", "unprocessed") or in_state("alone", "unprocessed")), 30)
        assert in_state("everything", "suppressed") == follows
        assert in_state("everything", "active") == everything - follows
        assert in_state("alone", "active") == alone
