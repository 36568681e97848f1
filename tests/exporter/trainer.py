"""For tests: a training process as the wire sees it. It knows the truth about itself.

`State` has an optimizer's counters, counted here in the simplest way. A `Trainer` steps it and makes the reports that a
Monitor would make. A `Job` is a Trainer whose reports are JSON, to send over HTTP.
"""

import copy
import dataclasses
import itertools
import json
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from optwrap_exporter.ledger.ledger import Ledger
from optwrap_exporter.ledger.plan import Plan
from optwrap_exporter.wire.consistency import parse_report
from optwrap_exporter.wire.requests import Report
from optwrap_exporter.wire.vocabulary import GRADIENT_STEPS, OUTCOMES

START = 1_763_800_000.0
REPLICA = ("replica", "process", "device")
"""The fields that identify a replica."""
_names = itertools.count(1)


class TurnedClock:
    """Seconds since 1970, set by the test."""

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

    @classmethod
    def of(cls, counters: Mapping[str, Any]) -> "State":
        """The state with these counters."""
        return cls(Counter(counters["outcomes"]), Counter(counters["parameters"]), counters["not_finite_steps"])

    @property
    def steps(self) -> int:
        return self.outcomes.total()

    def step(self, outcome: str, offenders: Mapping[str, int], *, finite: bool | None = None) -> bool:
        """Count one step. Returns whether its gradients were finite: by default if it has no offenders."""
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
        """The counters in the wire's form."""
        return {
            "steps": self.steps,
            "gradient_steps": sum(self.outcomes[name] for name in GRADIENT_STEPS),
            "not_finite_steps": self.not_finite_steps,
            "outcomes": {name: self.outcomes[name] for name in OUTCOMES},
            "parameters": {path: n for path, n in self.parameters.items() if n},
        }


@dataclasses.dataclass
class _Process:
    """One start of a training process. `step` it, then send its next report."""

    run: str = "lm"
    process: int = 0
    incarnation: str = dataclasses.field(default_factory=lambda: f"incarnation-{next(_names)}")
    attempt: str = "first"
    interval: float = 1.0
    process_count: int = 1
    clock: Callable[[], float] = dataclasses.field(default_factory=TurnedClock)
    state: State = dataclasses.field(default_factory=State)
    gauges: dict[str, Any] = dataclasses.field(default_factory=dict)
    seq: int = 0

    def __post_init__(self) -> None:
        self.start = self.state.copy()
        """The state when the incarnation began."""
        self.dropped = {"steps": 0, "bad_steps": 0}
        self.first_replicas: Counter[tuple[Any, ...]] = Counter()
        """Steps by first non-finite replica since the incarnation began. No optimizer state has them."""
        self._clear()

    def _clear(self) -> None:
        self.columns: dict[str, list[Any]] = {
            name: [] for name in ("step", "time", "outcome", "finite", "norm", "mini_step")
        }
        self.offenders: list[dict[str, Any]] = []
        self.replicas: list[dict[str, Any]] = []

    def count(
        self,
        outcome: str,
        norm: float | str,
        offenders: Mapping[str, int],
        *,
        finite: bool | None = None,
        mini_step: int | None = None,
        replica: Mapping[str, Any] | None = None,
    ) -> None:
        """Count one call of `update`, now.

        Args:
          outcome: its outcome.
          norm: the gradient norm, as the wire has it.
          offenders: by path, the number of non-finite values.
          finite: whether the gradients were finite; by default if there are no offenders.
          mini_step: position in the accumulation window; by default the gauge's.
          replica: the first non-finite replica, as `wire.requests.ReplicaRecord` without its step.
        """
        finite = self.state.step(outcome, offenders, finite=finite)
        self.gauges |= {
            "not_finite_streak": self.state.streak,
            "not_finite_streak_peak": self.state.streak_peak,
            "gradient_norm": norm,
        }
        step, window = self.state.steps, self.gauges.get("mini_step") if mini_step is None else mini_step
        row = (step, self.clock(), outcome, finite, norm, window)
        for column, value in zip(self.columns.values(), row, strict=True):
            column.append(value)
        self.offenders += [{"step": step, "parameter": path, "not_finite": n} for path, n in offenders.items()]
        if replica is not None:
            self.first_replicas[tuple(replica.get(name) for name in REPLICA)] += 1
            self.replicas.append({"step": step, **replica})

    def counters(self) -> dict[str, Any]:
        """The totals in the wire's form."""
        return self.state.counters() | replica_counters(self.first_replicas)

    def json(self, state: str = "running", **changes: Any) -> dict[str, Any]:
        """The next report as JSON, with the steps since the last one."""
        self.seq += 1
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
            "at_start": self.start.counters(),
            "gauges": dict(self.gauges),
            "steps": self.columns,
            "offenders": self.offenders,
            "replicas": self.replicas,
            "dropped": dict(self.dropped),
        } | changes
        self._clear()
        return report


class Trainer(_Process):
    """A training process whose reports go straight to the ledger, the store or the ingest."""

    def __init__(self, clock: Callable[[], float] | None = None, **fields: Any) -> None:
        super().__init__(clock=clock or TurnedClock(), **fields)

    def step(
        self,
        outcome: str = "applied",
        norm: float | str = 1.0,
        *,
        offenders: Mapping[str, int] | None = None,
        finite: bool | None = None,
        mini_step: int | None = None,
        replica: Mapping[str, Any] | None = None,
    ) -> None:
        """One call of `update`; arguments as in `count`."""
        self.count(outcome, norm, offenders or {}, finite=finite, mini_step=mini_step, replica=replica)

    def bad(self, outcome: str = "skipped_not_finite", /, **offenders: int) -> None:
        """One step with non-finite gradients, in the parameter "w" by default."""
        self.step(outcome, norm="NaN", offenders=offenders or {"w": 1})

    def report(self, state: str = "running", **changes: Any) -> Report:
        """The next report, parsed."""
        return sent(self.json(state, **changes))

    def hello(self) -> Report:
        """What a Monitor reports at its construction, all counters zero. A resumed state gets another incarnation."""
        assert not self.state.steps
        return self.report("starting")


@dataclasses.dataclass
class Job(_Process):
    """A training process whose reports go over HTTP. It holds nothing once it has sent a report."""

    incarnation: str = "e1"
    attempt: str = "a1"

    def step(
        self,
        outcome: str = "applied",
        norm: float | str = 1.0,
        replica: Any = None,
        **offenders: int,
    ) -> None:
        """One call of `update`; arguments as in `count`. In the names of offenders `__` stands for `/`."""
        paths = {name.replace("__", "/"): values for name, values in offenders.items()}
        self.count(outcome, norm, paths, replica=replica)

    def report(self, state: str = "running", **changes: Any) -> dict[str, Any]:
        """The next report, as JSON."""
        return self.json(state, oldest_held=self.seq + 1, **changes)

    @property
    def totals(self) -> dict[str, Any]:
        """The totals in the wire's form. Assign to them to roll back."""
        return self.counters()

    @totals.setter
    def totals(self, counters: Mapping[str, Any]) -> None:
        self.state = State.of(counters)

    @property
    def at_start(self) -> dict[str, Any]:
        """The totals when the incarnation began."""
        return self.start.counters()

    @at_start.setter
    def at_start(self, counters: Mapping[str, Any]) -> None:
        self.start = State.of(counters)


def first_replica(
    number: int, process: int | None = None, device: str | None = None, count: int = 1, of: int | None = None
) -> dict[str, Any]:
    """The first non-finite replica of a step, for `step(replica=...)`."""
    return {"replica": number, "process": process, "device": device, "count": count, "of": of}


def replica_counters(steps: Mapping[tuple[Any, ...], int]) -> dict[str, Any]:
    """The part of the wire's counters that is about replicas."""
    rows = [dict(zip(REPLICA, one, strict=True)) | {"steps": n} for one, n in steps.items()]
    return {"replicas": rows} if rows else {}


def sent(report: Mapping[str, Any]) -> Report:
    """A report as it arrives."""
    return parse_report(json.dumps(report))


def with_records(report: Mapping[str, Any], *indices: int) -> dict[str, Any]:
    """The report of a client that has dropped all step records but these."""
    columns = {name: [column[index] for index in indices] for name, column in report["steps"].items()}
    offenders = [offender for offender in report["offenders"] if offender["step"] in columns["step"]]
    replicas = [one for one in report["replicas"] if one["step"] in columns["step"]]
    return {**report, "steps": columns, "offenders": offenders, "replicas": replicas}


def take(ledger: Ledger, report: Report) -> Plan:
    """Apply a report to a ledger without a store."""
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
