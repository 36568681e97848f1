"""Writes reports and ledger states to the tables, and reads the states back."""

import itertools
import json
import math
import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any, Final

from pydantic_core import to_json

from optwrap_exporter.ledger import events
from optwrap_exporter.ledger.counters import Replica
from optwrap_exporter.ledger.incarnation import IncarnationState, ParameterRecords, ParameterState
from optwrap_exporter.ledger.ledger import Plan
from optwrap_exporter.ledger.run import ProcessState, RunState
from optwrap_exporter.store import bulk, retention, rollups
from optwrap_exporter.store.bulk import Row
from optwrap_exporter.wire.requests import Report
from optwrap_exporter.wire.vocabulary import GOOD_OUTCOMES, OUTCOMES

_INDEX: Final = {outcome: index for index, outcome in enumerate(OUTCOMES)}
_NONE: Final = (None, None, None)

_Labels = tuple[tuple[str, ...], tuple[Replica, ...]]
"""The parameters and the replicas of a run that have metric labels of their own."""


class Rows:
    """Writes rows. Every method runs in the writer's thread, in a transaction of the caller."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._revision: int | None = None
        """The last revision; None if it has to be read."""
        self._runs: dict[str, tuple[int, _Labels | None]] = {}
        self._incarnations: dict[tuple[int, int, str], int] = {}

    def forget_keys(self) -> None:
        """Forget all cached row ids, because rows may be gone."""
        self._revision = None
        self._runs.clear()
        self._incarnations.clear()

    def runs(self) -> Iterator[RunState]:
        """Every run, in the state that was written last."""
        return _runs(self._db)

    def digest(self, report: Report) -> bytes | None:
        """The digest stored for the report's incarnation and seq; None if it is no longer stored."""
        for (digest,) in self._db.execute(
            "SELECT digest FROM change JOIN incarnation ON incarnation.id = incarnation_id "
            "JOIN run ON run.id = incarnation.run_id "
            "WHERE run = ? AND incarnation.process = ? AND incarnation.incarnation = ? AND seq = ?",
            (report.run, report.process, report.incarnation, report.seq),
        ):
            return bytes(digest)
        return None

    def write(self, plans: Sequence[tuple[Plan, bytes | None]]) -> int:
        """Write everything that plans change, in their order. Returns the revision of the last one."""
        pending = _Pending()
        revision = self._last_revision()
        for plan, digest in plans:
            revision += 1
            self._add(pending, plan, digest, revision)
        pending.write(self._db)
        self._revision = revision
        return revision

    def _last_revision(self) -> int:
        if self._revision is None:
            row = self._db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'change'").fetchone()
            self._revision = int(row[0]) if row else 0
        return self._revision

    def _add(self, pending: "_Pending", plan: Plan, digest: bytes | None, revision: int) -> None:
        process, report, incarnation = plan.process.process, plan.report, plan.incarnation
        run_id = self._run(plan.run)
        pending.processes[run_id, process] = plan.process
        incarnation_id = self._incarnation(run_id, process, incarnation)
        touched = [*report.steps.step, *(o.step for o in report.offenders)] if report and plan.records else []
        pending.changes.append(
            (
                revision,
                plan.time,
                run_id,
                process,
                incarnation_id if report else None,
                report.seq if report else None,
                digest,
                min(touched, default=None),
                max(touched, default=None),
            )
        )
        if report is not None:
            pending.incarnations[incarnation_id] = incarnation
            pending.parameters += [
                (incarnation_id, row.parameter, row.totals, row.baseline, *(row.records or _NONE))
                for row in map(incarnation.parameter, incarnation.changed_parameters(plan.before))
            ]
            if not plan.records:
                retention.count_not_stored(self._db, incarnation_id, len(report.steps))
            if touched:
                self._steps(pending, plan, report, run_id=run_id, incarnation_id=incarnation_id, revision=revision)
                pending.offenders += [
                    (run_id, process, offender.step, revision, position, offender.not_finite, offender.parameter)
                    for position, offender in enumerate(report.offenders)
                ]
                pending.replicas += [
                    (run_id, process, one.step, revision, one.replica, one.process, one.device, one.count, one.of)
                    for one in report.replicas
                ]
        pending.events += [_event_row(plan, event, run_id, revision) for event in plan.events]

    def _run(self, run: RunState) -> int:
        labels = (run.labels, run.replica_labels)
        key, written = self._runs.get(run.run, (0, None))
        if written != labels:
            (key,) = self._db.execute(
                "INSERT INTO run (run, labels, replica_labels) VALUES (?, ?, ?) ON CONFLICT DO UPDATE "
                "SET labels = excluded.labels, replica_labels = excluded.replica_labels RETURNING id",
                (run.run, *map(_json, labels)),
            ).fetchone()
            self._runs[run.run] = (key, labels)
        return key

    def _incarnation(self, run_id: int, process: int, incarnation: IncarnationState) -> int:
        name = (run_id, process, incarnation.incarnation)
        key = self._incarnations.get(name)
        if key is None:
            (key,) = self._db.execute(
                "INSERT INTO incarnation (run_id, process, incarnation, state) VALUES (?, ?, ?, ?) "
                "ON CONFLICT DO UPDATE SET state = excluded.state RETURNING id",
                (*name, _json(incarnation.durable())),
            ).fetchone()
            self._incarnations[name] = key
        return key

    def _steps(
        self,
        pending: "_Pending",
        plan: Plan,
        report: Report,
        *,
        run_id: int,
        incarnation_id: int,
        revision: int,
    ) -> None:
        """Add step records. A step that this incarnation has reported before is ignored."""
        columns, process = report.steps, report.process
        if not len(columns):
            return
        known: set[int] = set()
        if plan.before is not None and columns.step[0] <= plan.before.totals.steps:  # else none can be known
            pending.write_steps(self._db)
            stored = self._db.execute(
                "SELECT step FROM step WHERE run_id = ? AND process = ? AND step BETWEEN ? AND ? "
                "AND incarnation_id = ?",
                (run_id, process, columns.step[0], columns.step[-1], incarnation_id),
            )
            known = {step for (step,) in stored}
        counted: list[rollups.Row] = []
        for step, time, outcome, finite, norm, mini_step, estimated in zip(
            columns.step,
            columns.time,
            columns.outcome,
            columns.finite,
            columns.norm,
            columns.mini_step,
            columns.interpolated or itertools.repeat(False),
            strict=False,  # the last column may be endless; the wire has checked the lengths of the others
        ):
            if step in known:
                continue
            bad = outcome not in GOOD_OUTCOMES or not finite
            number = None if math.isnan(norm) else norm  # SQLite has no NaN
            pending.steps.append(
                (
                    run_id,
                    process,
                    step,
                    incarnation_id,
                    revision,
                    time,
                    _INDEX[outcome],
                    finite,
                    number,
                    mini_step,
                    estimated,
                    bad,
                )
            )
            counted.append((step, incarnation_id, number, bad))
        pending.blocks += rollups.rows_of(run_id, process, counted)


class _Pending:
    """The rows of a group that are not written yet. Written together, they cost a fraction of what each costs alone."""

    def __init__(self) -> None:
        self.processes: dict[tuple[int, int], ProcessState] = {}
        self.incarnations: dict[int, IncarnationState] = {}
        """By row id. Of several states of one process or incarnation only the last is written."""
        self.changes: list[Row] = []
        self.parameters: list[Row] = []
        self.steps: list[Row] = []
        self.blocks: list[Row] = []
        self.offenders: list[Row] = []
        self.replicas: list[Row] = []
        self.events: list[Row] = []

    def write_steps(self, db: sqlite3.Connection) -> None:
        """Write the step records so far."""
        bulk.write(db, "INSERT INTO step VALUES ?", self.steps)
        bulk.write(db, rollups.UPSERT, self.blocks)
        self.steps, self.blocks = [], []

    def write(self, db: sqlite3.Connection) -> None:
        """Write all rows."""
        self.write_steps(db)
        bulk.write(
            db,
            "INSERT INTO process VALUES ? ON CONFLICT DO UPDATE SET state = excluded.state",
            [(*key, _json(process.durable())) for key, process in self.processes.items()],
        )
        bulk.write(
            db,
            "WITH new (id, state) AS (VALUES ?) UPDATE incarnation SET state = new.state FROM new "
            "WHERE incarnation.id = new.id",
            [(key, _json(incarnation.durable())) for key, incarnation in self.incarnations.items()],
        )
        bulk.write(db, "INSERT INTO change VALUES ?", self.changes)
        bulk.write(db, _INSERT_PARAMETER, self.parameters)
        bulk.write(db, "INSERT OR IGNORE INTO path (path) VALUES ?", [*{row[-1:]: None for row in self.offenders}])
        bulk.write(db, "INSERT INTO replica VALUES ?", self.replicas)
        for statement, rows in ((_INSERT_OFFENDER, self.offenders), (_INSERT_EVENT, self.events)):
            if rows:  # each row looks at rows before it
                db.executemany(statement, rows)


_INSERT_PARAMETER: Final = (
    "INSERT INTO parameter (incarnation_id, path, totals, baseline, value_count, first_step, last_step) "
    "VALUES ? ON CONFLICT DO UPDATE SET totals = excluded.totals, "
    "baseline = excluded.baseline, value_count = excluded.value_count, first_step = excluded.first_step, "
    "last_step = excluded.last_step"
)
_INSERT_OFFENDER: Final = "INSERT INTO offender SELECT ?, ?, ?, ?, ?, id, ? FROM path WHERE path = ?"
_INSERT_EVENT: Final = (
    "INSERT OR IGNORE INTO event "
    "(revision, run_id, process, kind, time, step, attempt, same_as, repeated, detail, key) VALUES "
    "(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, "
    "EXISTS (SELECT 1 FROM event WHERE run_id = ?2 AND same_as = ?8 AND process != ?3), ?9, ?10)"
)


def _event_row(plan: Plan, event: events.NewEvent, run_id: int, revision: int) -> Row:
    same_as = None
    if event.kind in events.OF_STEPS and event.step is not None:
        before = plan.process.times_taken_before(plan.incarnation, event.step)
        same_as = f"{event.kind}/{event.attempt}/{before}/{event.step}"
    detail = _json(event.detail)
    return (
        revision,
        run_id,
        event.process,
        event.kind,
        event.time,
        event.step,
        event.attempt,
        same_as,
        detail,
        event.key,
    )


def _json(value: Any) -> str:
    return to_json(value, inf_nan_mode="strings").decode()


def _runs(db: sqlite3.Connection) -> Iterator[RunState]:
    parameters: dict[int, list[ParameterState]] = {}
    for incarnation_id, path, totals, baseline, values, first, last in db.execute(
        "SELECT incarnation_id, path, totals, baseline, value_count, first_step, last_step FROM parameter ORDER BY id"
    ):
        records = None if values is None else ParameterRecords(values, first, last)
        parameters.setdefault(incarnation_id, []).append(ParameterState(path, totals, baseline, records))
    incarnations: dict[tuple[int, int], list[IncarnationState]] = {}
    for key, run_id, process, state, not_stored in db.execute(
        "SELECT id, run_id, process, state, not_stored FROM incarnation"
    ):
        restored = IncarnationState.from_durable(json.loads(state), parameters.get(key, []), not_stored)
        incarnations.setdefault((run_id, process), []).append(restored)
    processes: dict[int, dict[int, ProcessState]] = {}
    for run_id, process, state in db.execute("SELECT run_id, process, state FROM process ORDER BY run_id, process"):
        restored_process = ProcessState.from_durable(process, json.loads(state), incarnations[run_id, process])
        processes.setdefault(run_id, {})[process] = restored_process
    for run_id, run, labels, replicas in db.execute("SELECT id, run, labels, replica_labels FROM run"):
        named = tuple(Replica(*replica) for replica in json.loads(replicas))
        yield RunState(run, processes[run_id], tuple(json.loads(labels)), named)
