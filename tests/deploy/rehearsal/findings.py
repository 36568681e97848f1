"""Compares what the central Prometheus, the exporter's JSON and the alerts say with the truth."""

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import numpy as np

from tests.deploy.rehearsal.job import Job
from tests.deploy.rehearsal.programs import Site
from tests.deploy.rehearsal.truth import Tally, Truth

PATIENCE: Final = 40.0
"""Seconds within which everything has to have arrived."""
PAST: Final = "1h"
"""How far back a series may have ended: more than a fault takes."""


@dataclasses.dataclass
class Compared:
    """How many values of a source were compared, and those that differ, in words."""

    values: int = 0
    differences: list[str] = dataclasses.field(default_factory=list)

    def same(self, what: str, said: object, truth: object) -> None:
        self.values += 1
        if said != truth:
            self.differences.append(f"{what} is {said}, and should be {truth}")

    def __str__(self) -> str:
        return (
            f"equal ({self.values})" if not self.differences else f"**{len(self.differences)} of {self.values} differ**"
        )


def settled(compare: Callable[[], Compared]) -> Compared:
    """Compare until nothing differs any more, or until patience is at an end."""
    deadline = time.monotonic() + PATIENCE
    while (compared := compare()).differences and time.monotonic() < deadline:
        time.sleep(0.5)
    return compared


def in_prometheus(site: Site, job: Job, kind: str) -> Compared:
    """What the central Prometheus has of a run, whose exporters have left: the last values."""
    truth, run = job.truth(), job.runs[kind]
    compared = Compared()

    def value(metric: str, most: str = "max", **labels: str) -> float | None:
        matchers = ",".join(f'{name}="{text}"' for name, text in {"run": run, **labels}.items())
        found = site.prometheus.instant(f"{most}(last_over_time({metric}{{{matchers}}}[{PAST}]))")
        return found[0][1] if found else None

    def counts(prefix: str, tally: Tally, **labels: str) -> None:
        where = f"{prefix}* of {' '.join(labels.values()) or 'the run'}:"
        truths = {
            "steps_total": tally.steps,
            "gradient_steps_total": tally.gradient_steps,
            "not_finite_steps_total": tally.not_finite,
            "accepted_not_finite_steps_total": tally.outcomes["accepted_not_finite"],
        }
        for name, number in truths.items():
            compared.same(f"{where} {name}", value(f"{prefix}{name}", **labels), number)
        for reason, number in tally.skipped.items():
            said = value(f"{prefix}skipped_steps_total", reason=reason, **labels)
            compared.same(f"{where} skipped as {reason}", said, number)
        for parameter, number in tally.parameters.items():
            said = value(f"{prefix}parameter_not_finite_steps_total", parameter=parameter, **labels)
            compared.same(f"{where} bad steps of {parameter}", said, number)

    counts("optwrap_run_", truth.run())
    compared.same("attempts", value("optwrap_attempts_total"), len(job.attempts))
    compared.same("redone steps", value("optwrap_lost_steps_total", reason="redone"), truth.redone())
    compared.same("dropped records", value("optwrap_run_client_dropped_total", "sum"), 0)
    for process in range(len(job.hosts)):
        # A sidecar knows its own process, since it has its store.
        exporter = job.shared if kind == "shared" else job.sidecars[process]
        since = 0 if kind == "shared" else job.since[process]
        tally = truth.process(process, since)
        counts("optwrap_", tally, process=str(process), instance=exporter.target)
        if kind == "sidecars":
            counts("optwrap_run_", tally, instance=exporter.target)
    return compared


def in_json(job: Job, states: Iterable[str], incidents: Mapping[str, Mapping[str, Any]]) -> Compared:
    """What the shared exporter answers.

    Args:
      job: whose exporter it is.
      states: how each attempt ended.
      incidents: by kind some fields of the only incident of that kind.
    """
    truth, run = job.truth(), job.runs["shared"]
    found = job.shared.get(f"/v1/runs/{run}")
    tally, compared = truth.run(), Compared()
    totals = {
        "steps": tally.steps,
        "gradient_steps": tally.gradient_steps,
        "skipped": tally.skipped,
        "not_finite_steps": tally.not_finite,
        "accepted_not_finite": tally.outcomes["accepted_not_finite"],
    }
    for name, number in totals.items():
        compared.same(f"totals.{name}", found["totals"][name], number)
    attempts = [(one["attempt"], one["state"]) for one in found["attempts"]]
    compared.same("attempts", sorted(attempts), sorted(zip(job.attempts, states, strict=True)))
    compared.same("parameters", {one["parameter"]: one["steps"] for one in found["parameters"]}, dict(tally.parameters))
    compared.same("health", found["health"], "finished")
    compared.same("last_step", found["last_step"], _last(truth))
    compared.same("unseen", found["unseen"], 0)
    compared.same("dropped", set(found["dropped"].values()), {0})
    for row in found["processes"]:
        own = truth.process(row["process"])
        compared.same(f"steps of process {row['process']}", row["totals"]["steps"], own.steps)
        compared.same(f"outcomes of process {row['process']}", Counter(row["totals"]["outcomes"]), own.outcomes)
        compared.same(f"host of process {row['process']}", row["host"], job.hosts[row["process"]].name)
        _records(compared, job, truth, row["process"])
    compared.same("processes", [row["process"] for row in found["processes"]], list(range(len(job.hosts))))
    _incidents(compared, found["incidents"], incidents)
    return compared


def _last(truth: Truth) -> int:
    return max(written.last for written in list(truth.attempts.values())[-1])


def _records(compared: Compared, job: Job, truth: Truth, process: int) -> None:
    """Every step of a process, with its outcome and its norm."""
    answer = job.shared.get(f"/v1/runs/{job.runs['shared']}/steps", process=process, points=20_000)
    columns = answer["columns"]
    said = Counter(zip(columns["step"], columns["outcome"], map(_norm, columns["norm"]), strict=True))
    wrote = Counter(
        (step["step"], step["outcome"], _norm(step["norm"]))
        for attempt in truth.attempts.values()
        for step in attempt[process].steps
    )
    compared.values += wrote.total()
    for step, number in ((said - wrote) + (wrote - said)).items():
        compared.differences.append(
            f"step {step} of process {process}: {said[step]} records, and should be {wrote[step]} ({number} differ)"
        )


def _norm(value: float | str | None) -> str:
    """A norm in one form. It is a float32, and JSON has those that are not finite as strings."""
    return "none" if value is None else str(np.float32(value))


def _incidents(
    compared: Compared, found: Iterable[Mapping[str, Any]], expected: Mapping[str, Mapping[str, Any]]
) -> None:
    for kind, fields in expected.items():
        those = [one for one in found if one["kind"] == kind]
        compared.same(f"incidents of kind {kind}", len(those), 1)
        for one in those:
            for name, value in fields.items():
                compared.same(f"{name} of the incident {kind}", one[name], value)


def fired(site: Site, job: Job) -> set[tuple[str, str, str]]:
    """The alerts of a job's runs that ever fired, in the central Prometheus: topology, alert, severity."""
    return {
        (kind, labels["alertname"], labels["severity"])
        for kind, run in job.runs.items()
        for labels, _ in site.prometheus.instant(f'count_over_time(ALERTS{{run="{run}",alertstate="firing"}}[{PAST}])')
    }


def notified(site: Site, job: Job) -> set[tuple[str, str, str]]:
    """The alerts of a job's runs that the webhook got: topology, alert, severity."""
    kinds = {run: kind for kind, run in job.runs.items()}
    return {
        (kinds[run], alert.labels["alertname"], alert.labels["severity"])
        for alert in list(site.alertmanager.notified)
        if (run := alert.labels.get("run", "")) in kinds and alert.status == "firing"
    }
