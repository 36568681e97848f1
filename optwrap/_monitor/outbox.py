"""The reports of one process: built from its account, frozen when built, held until acknowledged. Pure."""

import dataclasses
import json
import math
import operator
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from optwrap._monitor import bases
from optwrap._monitor.account import ZERO, Account, Incarnation
from optwrap._monitor.backlog import Entry, Record
from optwrap._reading.replicas import Replica
from optwrap._reading.unpack import Totals

GAUGES: Final = (
    "not_finite_streak",
    "not_finite_streak_peak",
    "guard_not_finite_count",
    "guard_not_finite_limit",
    "mini_step",
    "every_k",
    "gradient_norm",
    "gradient_norm_limit",
    "steps_since_sync",
    "sync_period",
)
"""The gauges that travel; a reading may have others."""


@dataclasses.dataclass(frozen=True)
class Identity:
    """Who reports."""

    run: str
    process: int
    attempt: str
    interval: float


@dataclasses.dataclass(frozen=True, eq=False)
class Report:
    """A report, frozen: what is sent again is these bytes."""

    incarnation: Incarnation
    seq: int
    body: bytes
    entries: tuple[Entry[Incarnation], ...]
    """The records in it, kept to be counted or split should the exporter refuse it."""


def number(value: float) -> float | str:
    """A float as it travels: one that is not finite by its name."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def path(parameter: str) -> str:
    """A parameter's path as it travels: not empty, without control characters, at most 1024 characters."""
    if parameter.isascii() and parameter.isprintable() and 0 < len(parameter) <= 1024:
        return parameter
    # Cc is what a label must not hold; Cs, half a character, is what UTF-8 cannot.
    escaped = (c.encode("unicode_escape").decode() if unicodedata.category(c) in ("Cc", "Cs") else c for c in parameter)
    return "".join(escaped)[:1024] or "."


def totals(of: Totals) -> dict[str, Any]:
    """Totals as they travel; replicas only where there are any, since an exporter of before takes no such field."""
    found: dict[str, Any] = {
        "steps": of.steps,
        "gradient_steps": of.gradient_steps,
        "not_finite_steps": of.not_finite_steps,
        "outcomes": dict(of.outcomes),
        "parameters": _named(of.parameters, max),
    }
    if of.replicas:
        found["replicas"] = [replica(one) | {"steps": steps} for one, steps in of.replicas.items()]
    return found


def replica(of: Replica) -> dict[str, Any]:
    """A replica as it travels."""
    return {"replica": of.number, "process": of.process, "device": of.device}


def _named(of: Mapping[str, int], join: Callable[[int, int], int]) -> dict[str, int]:
    """Counts by the parameters' paths as they travel, `join` making one of those whose paths travel alike."""
    found: dict[str, int] = {}
    for parameter, count in of.items():
        name = path(parameter)
        found[name] = join(found[name], count) if name in found else count
    return found


def _base(incarnation: Incarnation) -> bases.Base | None:
    """What was counted before an incarnation, as far as anybody has told."""
    return bases.plus(incarnation.base, totals(incarnation.added)) if incarnation.added.steps else incarnation.base


def gauges(of: Mapping[str, float | int]) -> dict[str, Any]:
    """Gauges as they travel: those that say something."""
    found: dict[str, Any] = {}
    for name in GAUGES:
        value = of.get(name)
        if value is None or value < 0:
            continue
        if name == "gradient_norm":
            found[name] = number(value)
        elif math.isfinite(value):
            found[name] = value
    return found


def columns(records: Sequence[Record]) -> dict[str, list[Any]]:
    """Step records, column by column."""
    found: dict[str, list[Any]] = {
        "step": [record.step for record in records],
        "time": [record.time for record in records],
        "outcome": [record.outcome for record in records],
        "finite": [record.finite for record in records],
        "norm": [number(record.norm) for record in records],
        "mini_step": [record.mini_step for record in records],
    }
    if any(record.interpolated for record in records):
        found["interpolated"] = [record.interpolated for record in records]
    return found


class Outbox:
    """Builds reports and holds them until the exporter has them.

    Reports are built one at a time, when they can be sent: while the exporter is away, records wait in the account,
    where ordinary ones can still give way to bad ones, and not in frozen reports.

    Args:
      account: what is reported.
      identity: who reports it.
      most_rows: bound of step records and offenders in one report.
      most_held: bound of reports that are built and not acknowledged.
    """

    def __init__(self, account: Account, identity: Identity, *, most_rows: int = 8192, most_held: int = 8) -> None:
        self._account = account
        self._identity = identity
        self._most_rows = most_rows
        self._most_held = most_held
        self.held: list[Report] = []
        """Built and not acknowledged, oldest first."""

    @property
    def settled(self) -> bool:
        """Whether the exporter has everything the account has."""
        return not self.held and self._next() is None

    def greet(self, source: Mapping[str, Any], now: float) -> None:
        """Hold a hello: somebody is there, and has counted nothing. What was counted meanwhile is in what follows."""
        incarnation = self._account.incarnations[0]
        blank = Incarnation(incarnation.id, incarnation.at_start, incarnation.at_start)
        news = (incarnation.state, incarnation.totals, incarnation.dropped_steps, incarnation.dropped_bad_steps)
        self._hold(incarnation, blank, (), source, now)
        incarnation.unreported = news != (blank.state, blank.totals, blank.dropped_steps, blank.dropped_bad_steps)

    def build(self, source: Mapping[str, Any], now: float, *, beat: bool) -> Report | None:
        """The next report, held from now on; None where there is nothing to say, or too much held.

        Args:
          source: what the process runs on, as it travels.
          now: seconds since 1970.
          beat: report the current incarnation even where it has nothing new.
        """
        incarnation = self._next() or (self._account.current if beat else None)
        if incarnation is None or len(self.held) >= self._most_held:
            return None
        return self._hold(
            incarnation, incarnation, tuple(self._account.backlog.take(incarnation, self._most_rows)), source, now
        )

    def acknowledge(self, incarnation: Incarnation, acknowledged: int, base: Mapping[str, Any] | None) -> None:
        """Let go of what the exporter says is durable: the incarnation's reports up to that number."""
        self._hand_on(incarnation, base)
        incarnation.known = True
        incarnation.refusals = 0
        for report in [r for r in self.held if r.incarnation is incarnation and r.seq <= acknowledged]:
            self._let_go(report)
        self._retire()

    def fail(self, report: Report) -> None:
        """Take note that nobody knows whether the exporter has stored a report."""
        report.incarnation.known = True

    def refuse(self, report: Report) -> None:
        """Let go of a report that the exporter will never take.

        Its records are counted as dropped. Its totals are in the next report, which is for another incarnation to begin with
        if there is one: what is wrong may be wrong with this one only.
        """
        self._let_go(report)
        self._account.discard(report.entries)
        report.incarnation.unreported = True
        report.incarnation.refusals += 1

    def split(self, report: Report) -> bool:
        """Take apart a report that was too large, so that the next are half of it at most; False if that cannot be."""
        if len(report.entries) < 2:
            return False
        rows = sum(entry.record.weight for entry in report.entries)
        self._most_rows = max(1, min(self._most_rows, rows) // 2)
        self._let_go(report)
        self._account.discard(self._account.backlog.put_back(report.entries))
        report.incarnation.unreported = True
        return True

    def _next(self) -> Incarnation | None:
        """The oldest incarnation with something to report, of those that were refused least."""
        ready = (
            incarnation
            for incarnation in self._account.incarnations
            if incarnation.unreported or self._account.backlog.has(incarnation)
        )
        return min(ready, key=lambda incarnation: incarnation.refusals, default=None)

    def _hand_on(self, incarnation: Incarnation, base: bases.Base | None) -> None:
        """Take note of what was counted before an incarnation, and so before those after it."""
        for later in self._account.incarnations[self._account.incarnations.index(incarnation) :]:
            later.base, later.added = bases.largest(_base(later), base), ZERO
            base = bases.plus(later.base, totals(later.share))

    def _hold(
        self,
        incarnation: Incarnation,
        shown: Incarnation,
        entries: tuple[Entry[Incarnation], ...],
        source: Mapping[str, Any],
        now: float,
    ) -> Report:
        """The next report of an incarnation, frozen: it shows `shown`, which is that incarnation or how it was."""
        incarnation.seq += 1
        incarnation.held += 1
        incarnation.unreported = False
        shown.seq = incarnation.seq
        report = Report(
            incarnation, incarnation.seq, self._encode(shown, [entry.record for entry in entries], source, now), entries
        )
        self.held.append(report)
        return report

    def _let_go(self, report: Report) -> None:
        self.held.remove(report)
        report.incarnation.held -= 1

    def _retire(self) -> None:
        for incarnation in self._account.incarnations[:-1]:
            if not (incarnation.unreported or incarnation.held or self._account.backlog.has(incarnation)):
                self._account.incarnations.remove(incarnation)

    def _encode(
        self, incarnation: Incarnation, records: Sequence[Record], source: Mapping[str, Any], now: float
    ) -> bytes:
        oldest = min([r.seq for r in self.held if r.incarnation is incarnation], default=incarnation.seq)
        body = {
            "run": self._identity.run,
            "process": self._identity.process,
            "incarnation": incarnation.id,
            "attempt": self._identity.attempt,
            "seq": incarnation.seq,
            "oldest_held": oldest,
            "interval": self._identity.interval,
            "sent_at": now,
            "state": incarnation.state,
            "source": source,
            "totals": totals(incarnation.totals),
            "at_start": totals(incarnation.at_start),
            "base": _base(incarnation),
            "gauges": gauges(incarnation.gauges),
            "steps": columns(records),
            "offenders": [
                {"step": record.step, "parameter": parameter, "not_finite": values}
                for record in records
                for parameter, values in _named(record.nonfinite_parameters, operator.add).items()
            ],
            "dropped": {"steps": incarnation.dropped_steps, "bad_steps": incarnation.dropped_bad_steps},
        }
        replicas = [
            {"step": record.step, **replica(brought.first), "count": brought.replicas, "of": brought.of}
            for record in records
            if (brought := record.brought) is not None
        ]
        if replicas:
            body["replicas"] = replicas
        return json.dumps(body, allow_nan=False, separators=(",", ":")).encode("ascii")
