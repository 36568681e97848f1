"""For tests: training processes as the wire sees them, which know the truth about themselves.

`State` is what an optimizer's counters would be, counted here in the plainest way there is; a `Trainer` is one start of
a process that steps it and makes the reports that a Monitor would. Every report passes through its JSON.
"""

import copy
import dataclasses
import itertools
import json
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from optwrap_exporter.ledger.ledger import Ledger, Plan
from optwrap_exporter.wire.consistency import parse_report
from optwrap_exporter.wire.requests import Report
from optwrap_exporter.wire.vocabulary import OUTCOMES

START = 1_763_800_000.0
REPLICA = ("replica", "process", "device")
Brought = tuple[int, int | None, str | None, int, int | None]
"""The first replica that was not finite, its process and device, how many were, of how many."""
_names = itertools.count(1)


class Clock:
    """Seconds since 1970, by the test's own hand."""

    def __init__(self, now: float = START) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@dataclasses.dataclass
class State:
    """An optimizer's counters."""

    outcomes: Counter[str] = dataclasses.field(default_factory=Counter)
    parameters: Counter[str] = dataclasses.field(default_factory=Counter)
    not_finite_steps: int = 0
    streak: int = 0
    streak_peak: int = 0

    @property
    def steps(self) -> int:
        return self.outcomes.total()

    def step(self, outcome: str, offenders: Mapping[str, int], *, finite: bool | None = None) -> bool:
        """Count one call; returns whether its gradients were finite: by default if there are no offenders."""
        finite = not offenders if finite is None else finite
        self.outcomes[outcome] += 1
        self.not_finite_steps += not finite
        self.streak = 0 if finite else self.streak + 1
        self.streak_peak = max(self.streak, self.streak_peak)
        self.parameters.update(dict.fromkeys(offenders, 1))
        return finite

    def copy(self) -> "State":
        return copy.deepcopy(self)

    def counters(self) -> dict[str, Any]:
        """In the wire's form."""
        return {
            "steps": self.steps,
            "gradient_steps": self.outcomes["applied"] + self.outcomes["accepted_not_finite"],
            "not_finite_steps": self.not_finite_steps,
            "outcomes": {name: self.outcomes[name] for name in OUTCOMES},
            "parameters": {path: n for path, n in self.parameters.items() if n},
        }


@dataclasses.dataclass
class Trainer:
    """One start of a training process. `step` it, and hand what `report` gives to the exporter."""

    clock: Callable[[], float] = dataclasses.field(default_factory=Clock)
    run: str = "lm"
    process: int = 0
    incarnation: str = dataclasses.field(default_factory=lambda: f"incarnation-{next(_names)}")
    attempt: str = "first"
    state: State = dataclasses.field(default_factory=State)
    interval: float = 1.0
    process_count: int = 1
    gauges: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Gauges beside those of streak and norm."""
    seq: int = 0

    def __post_init__(self) -> None:
        self.at_start = self.state.copy()
        self.norm: float | str | None = None
        self.dropped = {"steps": 0, "bad_steps": 0}
        self.firsts: Counter[tuple[Any, ...]] = Counter()
        """Steps by replica, process and device, since the incarnation began: no state has them."""
        self._clear()

    def _clear(self) -> None:
        self.columns: dict[str, list[Any]] = {
            name: [] for name in ("step", "time", "outcome", "finite", "norm", "mini_step")
        }
        self.offenders: list[dict[str, Any]] = []
        self.replicas: list[dict[str, Any]] = []

    def counters(self) -> dict[str, Any]:
        """What it has counted, in the wire's form."""
        return self.state.counters() | by_replica(self.firsts)

    def step(
        self,
        outcome: str = "applied",
        *,
        norm: float | str = 1.0,
        offenders: Mapping[str, int] | None = None,
        finite: bool | None = None,
        mini_step: int | None = None,
        brought: Brought | None = None,
    ) -> None:
        """One call of `update`, as of now."""
        offenders = offenders or {}
        finite = self.state.step(outcome, offenders, finite=finite)
        self.norm = norm
        row = (self.state.steps, self.clock(), outcome, finite, norm, mini_step)
        for column, value in zip(self.columns.values(), row, strict=True):
            column.append(value)
        self.offenders += [
            {"step": self.state.steps, "parameter": path, "not_finite": n} for path, n in offenders.items()
        ]
        if brought is not None:
            self.firsts[brought[:3]] += 1
            self.replicas.append(
                {"step": self.state.steps} | dict(zip((*REPLICA, "count", "of"), brought, strict=True))
            )

    def bad(self, outcome: str = "skipped_not_finite", **offenders: int) -> None:
        """One call whose gradients were not finite: in the parameter "w" unless it is said where."""
        self.step(outcome, norm="NaN", offenders=offenders or {"w": 1})

    def json(self, state: str = "running", **changes: Any) -> dict[str, Any]:
        """The next report, with the steps since the last one."""
        self.seq += 1
        gauges = {"not_finite_streak": self.state.streak, "not_finite_streak_peak": self.state.streak_peak}
        if self.norm is not None:
            gauges["gradient_norm"] = self.norm
        report = {
            "run": self.run,
            "process": self.process,
            "incarnation": self.incarnation,
            "attempt": self.attempt,
            "seq": self.seq,
            "oldest_held": 1,
            "interval": self.interval,
            "sent_at": self.clock(),
            "state": state,
            "source": {
                "host": f"node-{self.process}",
                "platform": "cpu",
                "device_kind": "cpu",
                "device_count": 1,
                "process_count": self.process_count,
                "jax_version": "0.10.2",
                "optwrap_version": "0.1.0",
            },
            "totals": self.counters(),
            "at_start": self.at_start.counters(),
            "gauges": gauges | self.gauges,
            "steps": self.columns,
            "offenders": self.offenders,
            "replicas": self.replicas,
            "dropped": dict(self.dropped),
        } | changes
        self._clear()
        return report

    def report(self, state: str = "running", **changes: Any) -> Report:
        """The next report."""
        return sent(self.json(state, **changes))

    def hello(self) -> Report:
        """What a Monitor reports at its construction, all counters zero; a resumed state gets another incarnation."""
        assert not self.state.steps
        return self.report("starting", gauges={})


def by_replica(firsts: Mapping[tuple[Any, ...], int]) -> dict[str, Any]:
    """What there is of replicas in the wire's counters."""
    rows = [dict(zip(REPLICA, one, strict=True)) | {"steps": n} for one, n in firsts.items()]
    return {"replicas": rows} if rows else {}


def sent(report: Mapping[str, Any]) -> Report:
    """A report as it arrives."""
    return parse_report(json.dumps(report))


def with_records(report: Mapping[str, Any], *places: int) -> dict[str, Any]:
    """The report whose client had to drop all step records but those in these places."""
    columns = {name: [column[place] for place in places] for name, column in report["steps"].items()}
    offenders = [offender for offender in report["offenders"] if offender["step"] in columns["step"]]
    replicas = [one for one in report["replicas"] if one["step"] in columns["step"]]
    return {**report, "steps": columns, "offenders": offenders, "replicas": replicas}


def take(ledger: Ledger, report: Report) -> Plan:
    """Fold a report into a ledger that has no store behind it, as the ingest would."""
    plan = ledger.plan(report)
    ledger.apply(plan)
    return plan


def minus(after: State, before: State) -> dict[str, Any]:
    """What was counted between two states of one incarnation, in the wire's form."""
    return State(
        after.outcomes - before.outcomes,
        after.parameters - before.parameters,
        after.not_finite_steps - before.not_finite_steps,
    ).counters()
