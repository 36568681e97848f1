"""A fault as it happens to a job, and what became of it."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tests.deploy.rehearsal import findings
from tests.deploy.rehearsal.findings import Compared
from tests.deploy.rehearsal.hosts import Host
from tests.deploy.rehearsal.job import Job, running
from tests.deploy.rehearsal.programs import Site

Alert = tuple[str, str, str]
"""Topology, name, severity."""

SLACK: Final = 60.0
"""Seconds that a message may take beside the `for` of its alert."""


class Scene:
    """What a fault does to a job and waits for."""

    def __init__(self, site: Site, job: Job) -> None:
        self.site = site
        self.job = job
        self.victim = len(job.hosts) - 1
        """The process whose host is lost or cut off."""
        self.seconds: dict[Alert, float] = {}
        """From the fault to the message, by alert."""
        self._at = time.time()

    def train_to(self, step: int) -> None:
        """Launch the job, and wait until it has taken this step, and Prometheus has all of it."""
        self.job.launch(step)
        self.job.reach(step)
        for run in self.job.runs.values():
            for process in range(len(self.job.hosts)):
                self.site.prometheus.wait_until(f'optwrap_steps_total{{run="{run}",process="{process}"}} == {step}')

    def fault(self) -> None:
        """The fault happens now."""
        self._at = time.time()

    def wait_for(self, *alerts: Alert, status: str = "firing") -> None:
        """Wait until the webhook has these messages."""
        for kind, name, severity in alerts:
            wanted = {"alertname": name, "severity": severity, "run": self.job.runs[kind]}
            found = self.site.alertmanager.wait_for(
                f"{status}: {wanted}",
                lambda alert, wanted=wanted: alert.status == status and wanted.items() <= alert.labels.items(),  # type: ignore[misc]
                self.site.delays.get(name, 0) + SLACK,
            )
            if status == "firing":
                self.seconds[kind, name, severity] = found.at - self._at

    def end(self, code: int = 0) -> None:
        """Wait for the end of the trainers."""
        codes = self.job.end()
        assert codes == [code] * len(codes), f"the trainers ended with {codes}; {self.job.logs()}"


@dataclasses.dataclass(frozen=True)
class Fault:
    """What goes wrong."""

    name: str
    title: str
    act: Callable[[Scene], None]
    alerts: Sequence[Alert]
    """All that fire, and no others."""
    settings: Mapping[str, Any]
    """Fields of `Launch`."""
    states: Sequence[str] = ("finished",)
    """How each attempt ends."""
    incidents: Callable[[Scene], Mapping[str, Mapping[str, Any]]] = lambda _: {}
    """By kind some fields of the incident in the shared exporter's JSON."""
    vanishes: bool = False
    """Whether the exporters are gone at the end."""


@dataclasses.dataclass
class Outcome:
    """What became of one fault."""

    fault: Fault
    job: Job
    took: float
    seconds: dict[Alert, float]
    truth: str
    """What the trainers did, in words."""
    sources: dict[str, Compared]
    """What each source says, compared with the truth."""


def rehearse(fault: Fault, site: Site, hosts: Sequence[Host], agent: Host, directory: Path) -> Outcome:
    """Let a fault happen to a new job, and compare.

    Args:
      fault: what goes wrong.
      site: what watches.
      hosts: of the job.
      agent: the host of the job's shared exporter.
      directory: where the job's directory is made.
    """
    began = time.monotonic()
    sources: dict[str, Compared] = {}
    with running(fault.name, hosts, agent, directory / fault.name, site.targets, **fault.settings) as job:
        for exporter in job.exporters:
            # Discovery takes some seconds. A run whose first steps nobody scraped has a larger share of skipped steps.
            site.prometheus.wait_until(f'up{{instance="{exporter.target}"}} == 1')
        scene = Scene(site, job)
        fault.act(scene)
        truth = job.truth()
        sources["trainers"] = Compared(len(hosts) * truth.run().steps, truth.problems(fault.settings.get("bad", ())))
        if not fault.vanishes:
            sources["JSON"] = findings.settled(lambda: findings.in_json(job, fault.states, fault.incidents(scene)))
            sources["drain"] = Compared(len(job.exporters), job.leave())
        for kind in job.runs:
            sources[kind] = findings.settled(lambda kind=kind: findings.in_prometheus(site, job, kind))  # type: ignore[misc]
    return Outcome(fault, job, time.monotonic() - began, scene.seconds, _in_words(job), sources)


def verdict(outcome: Outcome, site: Site) -> None:
    """Compare the alerts that fired with those that had to: at the end, as one may come late."""
    compared = Compared()
    expected = sorted(outcome.fault.alerts)
    compared.same("alerts that fired in Prometheus", sorted(findings.fired(site, outcome.job)), expected)
    compared.same("alerts that the webhook got", sorted(findings.notified(site, outcome.job)), expected)
    outcome.sources["alerts"] = compared


def _in_words(job: Job) -> str:
    truth = job.truth()
    launches = (max(len(written.steps) for written in attempt) for attempt in truth.attempts.values())
    total = truth.run()
    steps = f"{' + '.join(map(str, launches))} steps"
    bad = f", {total.not_finite} non-finite" if total.not_finite else ""
    return steps + bad + (f", {redone} redone" if (redone := truth.redone()) else "")
