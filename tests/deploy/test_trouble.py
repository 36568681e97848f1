"""What an operator is woken for, and how long: real jobs, exporters, Prometheus and Alertmanager, and real trouble."""

import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import jax.numpy as jnp
import pytest

import optwrap
from tests.conftest import RunningExporter
from tests.deploy import site as sites
from tests.deploy.programs import free_address
from tests.deploy.site import Site, Training
from tests.exporter.running import Job, Served, TurnedClock, served
from tests.polling import wait_until

# One group, because each worker of a parallel run would start all programs.
pytestmark = [pytest.mark.programs("prometheus", "prometheus-alertmanager"), pytest.mark.xdist_group("alerting")]

HOUR: Final = 3600.0
_STARTED: Final = 180.0
"""Seconds that a job's process may take on a busy machine until it trains."""
SILENT: Final = 14.0
"""Seconds after which a process that has been silent since would be stale."""

_JOB: Final = """
import sys, time
import jax, jax.numpy as jnp, optax, optwrap
run, endpoint, process, processes, coordinator = *sys.argv[1:3], *map(int, sys.argv[3:5]), sys.argv[5]
if processes > 1:
    jax.distributed.initialize(coordinator, processes, process)
monitor = optwrap.Monitor(run=run, endpoint=endpoint, interval=0.2)
tx = optwrap.instrument(optwrap.apply_if_finite(optax.sgd(0.1), 5), monitor)
params = {"w": jnp.ones(3)}
state = tx.init(params)
update = jax.jit(tx.update)
for step in range(1, 100_000):
    odd = process == 2 and step >= 30
    updates, state = update({"w": jnp.full(3, 8000.0 if odd else 1.0)}, state, params)
    monitor.observe(optwrap.reading(state))
    time.sleep(0.1)
"""


@contextmanager
def job(run: str, url: str, processes: int = 1) -> Iterator[list["subprocess.Popen[bytes]"]]:
    """Processes that train until they are killed. From step 30 on the third has other gradients than the others."""
    coordinator = free_address()
    with ExitStack() as started:
        yield [
            started.enter_context(
                _killed_at_the_end([sys.executable, "-c", _JOB, run, url, str(process), str(processes), coordinator])
            )
            for process in range(processes)
        ]


@contextmanager
def _killed_at_the_end(command: list[str]) -> Iterator["subprocess.Popen[bytes]"]:
    started = subprocess.Popen(command)
    try:
        yield started
    finally:
        started.kill()
        started.wait()


def answer(url: str, run: str) -> Any:
    """The run as the API shows it."""
    return httpx.get(f"{url}/v1/runs/{run}", trust_env=False, timeout=30).json()


def acknowledge(url: str, run: str, kind: str) -> None:
    """Acknowledge the open incident of this kind."""
    (open_one,) = [one for one in answer(url, run)["incidents"] if (one["kind"], one["state"]) == (kind, "open")]
    done = httpx.post(f"{url}/v1/incidents/{open_one['id']}/acknowledge", trust_env=False, timeout=30)
    assert done.status_code == 200, done.text


def make_ill(exporter: RunningExporter) -> None:
    """None of its files may grow, as on a disk that is full."""
    largest = max(one.stat().st_size for one in exporter.data_dir.iterdir())
    resource.prlimit(exporter.pid, resource.RLIMIT_FSIZE, (largest, resource.RLIM_INFINITY))


def make_well(exporter: RunningExporter) -> None:
    """Its files may grow again."""
    resource.prlimit(exporter.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def test_an_unhealthy_exporter_alerts_for_itself_and_for_no_job(site: Site) -> None:
    """The disk is full while a job trains well. The exporter's alert fires; none of the job begins, then or later."""
    run, exporter = "well", site.other
    with optwrap.Monitor(run=run, endpoint=exporter.url, interval=0.2) as monitor:
        training = Training(monitor)
        training.step(5, 1.0)
        site.prometheus.wait_until(f'optwrap_steps_total{{run="{run}"}} == 5')
        make_ill(exporter)
        try:

            def refuses() -> bool:
                training.monitor.observe(optwrap.reading(training.state))
                return httpx.get(f"{exporter.url}/-/healthy", trust_env=False).status_code == 503

            wait_until(refuses, pause=0.2)
            instance = exporter.url.removeprefix("http://")
            alert = site.wait_for("OptwrapStoreUnhealthy", "", "firing", instance=instance)
            assert alert.receiver == "wake"
            assert alert.annotations["page_url"] == f"{exporter.url}/"
            time.sleep(SILENT)
            assert answer(exporter.url, run)["health"] != "stale"
            assert site.ever(run) == set()
        finally:
            make_well(exporter)
        site.wait_for("OptwrapStoreUnhealthy", "", "resolved", instance=instance)
        time.sleep(SILENT)
        assert site.ever(run) == set(), "nothing turns stale once the exporter is well"
        assert monitor.flush(30)
    assert site.notified_of(run) == set()


class Ahead(TurnedClock):
    """The time, and some hours that the test has skipped."""

    def __call__(self) -> float:
        return time.time() + self.now


@contextmanager
def long_watch(tmp_path: Path) -> Iterator[tuple[Served, Ahead, Site]]:
    """A site with an exporter whose clock the test can turn: hours pass in a moment."""
    clock = Ahead(0.0)
    with (
        served(tmp_path / "data", clock, tick=0.2) as exporter,
        sites.running(tmp_path / "site", exporter.url) as site,
    ):
        yield exporter, clock, site


def test_the_alert_of_a_job_that_was_killed_stays_for_hours_and_ends_when_it_is_acknowledged(tmp_path: Path) -> None:
    """Its series used to go after 15 minutes, and the alert with them."""
    (tmp_path / "site").mkdir()
    run = "killed"
    with long_watch(tmp_path) as (exporter, clock, site):
        with job(run, exporter.url) as (process,):
            site.prometheus.wait_until(f'optwrap_steps_total{{run="{run}"}} > 0', _STARTED)
            process.kill()
            process.wait()
        alert = site.wait_for("OptwrapProcessStale", run, "firing")
        assert alert.receiver == "wake"
        assert alert.annotations["summary"].startswith(
            f"{run}: 1 of its processes stopped reporting without a final report: process 0 on "
        )
        assert alert.annotations["page_url"] == f"{exporter.url}/?run={run}"
        for hours in (0.3, 1.5, 30):
            clock.now = hours * HOUR
            time.sleep(3)
            assert "OptwrapProcessStale" in site.firing(run), f"after {hours} h"
        acknowledge(exporter.url, run, "stale")
        site.wait_for("OptwrapProcessStale", run, "resolved")


def test_a_nan_in_the_optimizer_stays_critical_until_it_is_rolled_back_or_acknowledged(tmp_path: Path) -> None:
    """Hours of good steps do not end it. A start at the last clean step does, and so does a person who says so."""
    (tmp_path / "site").mkdir()
    with long_watch(tmp_path) as (exporter, clock, site):
        for run, end in (("rolled-back", "roll back"), ("seen", "acknowledge")):
            with optwrap.Monitor(run=run, endpoint=exporter.url, interval=0.2) as monitor:
                training = Training(monitor, guarded=False)
                training.step(20, 1.0)
                clean = training.state
                training.step(1, jnp.nan)
                alert = site.wait_for("OptwrapGaveUp", run, "firing")
                assert alert.receiver == "wake"
                assert alert.annotations["summary"] == (
                    f"{run}: non-finite values went into the optimizer after step 20, first in decoder/w, and the run "
                    "has not been rolled back: restore a checkpoint of step 20 or before"
                )
                assert alert.annotations["page_url"] == f"{exporter.url}/?run={run}"
                url, _, anchor = alert.annotations["runbook_url"].partition("#")
                assert anchor == answer(exporter.url, run)["runbook"] == "OptwrapGaveUp"
                assert f'<h2 id="{anchor}">' in httpx.get(url, trust_env=False).text
                for hours in (0.1, 0.5, 5):
                    clock.now += hours * HOUR
                    training.step(20, 1.0)
                    time.sleep(2)
                    assert "OptwrapGaveUp" in site.firing(run), f"{hours} h later"
                if end == "acknowledge":
                    acknowledge(exporter.url, run, "gave_up")
                    site.wait_for("OptwrapGaveUp", run, "resolved")
            if end == "roll back":
                with optwrap.Monitor(run=run, endpoint=exporter.url, interval=0.2) as monitor:
                    again = Training(monitor, guarded=False)
                    again.state = clean
                    again.step(3, 1.0)
                    site.wait_for("OptwrapGaveUp", run, "resolved")


def test_a_process_that_computes_wrongly_is_named(site: Site) -> None:
    """Three processes take the same steps; from step 30 on the norm of one differs."""
    run, url = "replicas", site.exporter.url
    with job(run, url, 3):
        site.prometheus.wait_until(f'min(optwrap_steps_total{{run="{run}"}}) > 30', _STARTED)
        alert = site.wait_for("OptwrapDiverged", run, "firing")
        assert alert.receiver == "wake"
        assert alert.labels == {"alertname": "OptwrapDiverged", "run": run, "severity": "critical"}
        host = answer(url, run)["processes"][2]["host"]
        assert alert.annotations["summary"] == (
            f"{run}: its processes no longer agree since step 30: look at process 2 on {host} (cpu); restore a "
            "checkpoint of step 29 or before"
        )
        (incident,) = [one for one in answer(url, run)["incidents"] if one["kind"] == "diverged"]
        assert (incident["processes"], incident["runbook"]) == ([2], "OptwrapDiverged")
        assert answer(url, run)["health"] == "diverged"
        acknowledge(url, run, "diverged")
        site.wait_for("OptwrapDiverged", run, "resolved")
        time.sleep(3)
        assert "OptwrapDiverged" not in site.firing(run), "it goes on, and somebody knows"


def test_a_job_that_starts_and_fails_again_and_again_is_a_crash_loop(site: Site) -> None:
    """Attempts are counted; one alert tells it, and the failure and the silence within it are muted."""
    run, url = "loop", site.exporter.url

    def attempt(number: int) -> None:
        with optwrap.Monitor(run=run, endpoint=url, attempt=f"a{number}", interval=0.2) as monitor:
            Training(monitor).step(3, 1.0)
            raise RuntimeError("shard 17: no such file")

    def attempts(numbers: range) -> None:
        for number in numbers:
            with pytest.raises(RuntimeError, match="no such file"):
                attempt(number)
            site.prometheus.wait_until(f'optwrap_attempts_total{{run="{run}"}} == {number + 1}')

    attempts(range(1))
    time.sleep(2)
    assert "OptwrapCrashLoop" not in site.ever(run), "one failure is no loop"
    attempts(range(1, 5))
    alert = site.wait_for("OptwrapCrashLoop", run, "firing")
    assert alert.receiver == "wake"
    assert " times again within an hour, and gets no further than step 3" in alert.annotations["summary"]
    shown = answer(url, run)
    assert shown["attempts_total"] == 5
    assert [one["reason"] for one in shown["attempts"]] == ["RuntimeError: shard 17: no such file"] * 5


def test_a_run_that_nobody_sees_alerts_once_and_what_was_open_stays_open(site: Site) -> None:
    """The only exporter of the run is killed and comes back; later it leaves the targets, and comes back, too."""
    run, exporter = "unseen", site.other
    with optwrap.Monitor(run=run, endpoint=exporter.url, interval=0.2) as monitor:
        training = Training(monitor, guarded=False)
        training.step(5, 1.0)
        training.step(1, jnp.nan)
        site.wait_for("OptwrapGaveUp", run, "firing")
        exporter.kill9()
        try:
            alert = site.wait_for("OptwrapExporterDown", run, "firing", severity="critical")
            assert alert.receiver == "wake"
            assert exporter.url.removeprefix("http://") in alert.annotations["description"]
            time.sleep(5)
            assert {"OptwrapGaveUp", "OptwrapExporterDown"} <= site.firing(run)
        finally:
            exporter.start()
        assert monitor.flush(60), "it has found the exporter again; until then its process may be stale"
        site.wait_for("OptwrapExporterDown", run, "resolved", severity="critical")
        time.sleep(3)
        assert "OptwrapGaveUp" in site.firing(run), "the incident is durable"
        muted = [one for one in site.alertmanager.notified if one.labels.get("run") == run and one.receiver == "read"]
        assert muted == [], "the warning of the same name is muted"
        acknowledge(exporter.url, run, "gave_up")
        site.wait_for("OptwrapGaveUp", run, "resolved")

        leave_the_targets(site, run)


def leave_the_targets(site: Site, run: str) -> None:
    """The exporter leaves the targets while the run trains, as with its pod, and comes back. Two runs are over then."""
    url = site.other.url
    instance = url.removeprefix("http://")
    for name, state in (("over", "finished"), ("forgotten", "running")):
        report = Job(name, clock=time.time).report(state)
        assert httpx.post(f"{url}/v1/reports", json=report, trust_env=False).status_code == 200
        site.prometheus.wait_until(f'optwrap_run_health{{run="{name}"}}')
    site.prometheus.wait_until('optwrap_run_health{run="over", health="finished"} == 1')
    httpx.delete(f"{url}/v1/runs/forgotten", trust_env=False).raise_for_status()
    site.prometheus.wait_until('absent(optwrap_run_health{run="forgotten"})')
    site.prometheus.scrape(site.exporter.url)
    try:
        alert = site.wait_for("OptwrapRunVanished", run, "firing")
        assert alert.receiver == "wake"
        assert f" at {instance}, at step 6" in alert.annotations["summary"]
        assert site.prometheus.instant(f'up{{instance="{instance}"}}') == [], "it is no target, not one that is down"
    finally:
        site.prometheus.scrape(site.exporter.url, url)
    site.wait_for("OptwrapRunVanished", run, "resolved")
    assert site.notified_of("over") == site.notified_of("forgotten") == set()
