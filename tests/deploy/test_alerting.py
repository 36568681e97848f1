"""From a NaN in a jitted step to a notification, with a real job, exporter, Prometheus and Alertmanager."""

import time
from pathlib import Path

import httpx
import jax.numpy as jnp
import pytest

import optwrap
from tests.deploy import alertmanager as alertmanagers
from tests.deploy.places import ALERTS
from tests.deploy.site import LIMIT, Site, Training
from tests.exporter.running import Job
from tests.polling import wait_until

# One group, because each worker of a parallel run would start all programs.
pytestmark = [pytest.mark.programs("prometheus", "prometheus-alertmanager"), pytest.mark.xdist_group("alerting")]


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
            f"{run}: {LIMIT // 2} calls in a row had non-finite gradients, bad steps since step 401, "
            f"first in decoder/w; apply_if_finite rejects at most {LIMIT} in a row"
        )
        assert warned.annotations["dashboard_url"].startswith(f"http://localhost:3000/d/optwrap-run?var-run={run}&")
        assert warned.annotations["page_url"] == f"{site.exporter.url}/?run={run}"
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
        assert missing.annotations["summary"] == f"{run}: 1 of its 2 processes have not reported"
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
    """A run has all alerts at once. One of its name in another cluster has only those that would be muted, unmuted."""
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
        ("OptwrapFailed", "critical"),
        ("OptwrapStopped", "critical"),
        ("OptwrapProcessStale", "critical"),
        ("OptwrapProcessMissing", "critical"),
        ("OptwrapRunVanished", "critical"),
        ("OptwrapExporterDown", "warning"),
    }
    # Without the stale, missing, failed and stopped processes that mute a stall.
    alone = {(name, severity) for name, severity in follows if severity == "warning" or name == "OptwrapStalled"}
    with httpx.Client(base_url=f"http://{site.alertmanager.address}/api/v2", trust_env=False, timeout=30) as client:
        firing = [
            {"labels": {"alertname": name, "severity": severity, "run": "lm", "cluster": cluster}}
            for cluster, alerts in (("everything", everything), ("alone", alone))
            for name, severity in alerts
        ]
        assert client.post("/alerts", json=firing).status_code == 200

        def in_state(cluster: str, state: str) -> set[tuple[str, str]]:
            return {
                (alert["labels"]["alertname"], alert["labels"]["severity"])
                for alert in client.get("/alerts", params={"filter": f'cluster="{cluster}"'}).json()
                if alert["status"]["state"] == state
            }

        # Alertmanager sets the state of an alert when it first processes the alert's group.
        wait_until(lambda: not (in_state("everything", "unprocessed") or in_state("alone", "unprocessed")), 30)
        assert in_state("everything", "suppressed") == follows
        assert in_state("everything", "active") == everything - follows
        assert in_state("alone", "active") == alone


def test_a_rack_of_exporters_that_goes_down_is_one_message(tmp_path: Path) -> None:
    """Forty exporters that knew no run are one message, one of a run another, and those of other places, too."""
    with alertmanagers.running(tmp_path) as alertmanager:
        down = {"alertname": "OptwrapExporterDown", "severity": "warning", "namespace": "a"}
        labels = [down | {"instance": f"node-{node}:10425"} for node in range(40)]
        labels += [down | {"run": "lm"}]
        labels += [down | {"instance": "node-0:10425"} | place for place in ({"namespace": "b"}, {"cluster": "d"})]
        posted = httpx.post(
            f"http://{alertmanager.address}/api/v2/alerts", json=[{"labels": one} for one in labels], trust_env=False
        )
        assert posted.status_code == 200
        wait_until(lambda: len(alertmanager.notified) >= len(labels), 30)
        assert sorted(len(message) for message in alertmanager.messages) == [1, 1, 1, 40]
        assert {alert.receiver for alert in alertmanager.notified} == {"read"}
