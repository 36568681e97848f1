"""Writes reports and ledger states to the tables, and reads the states back."""

import dataclasses
import itertools
import json
import math
import sqlite3
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

from optwrap_exporter.ledger import events
from optwrap_exporter.ledger.counters import Replica
from optwrap_exporter.ledger.folding import Folded, Folding
from optwrap_exporter.ledger.incarnation import IncarnationState
from optwrap_exporter.ledger.ledger import Plan
from optwrap_exporter.ledger.parts import ParameterRecords, ParameterState
from optwrap_exporter.ledger.run import ProcessState, RunState, heard_from
from optwrap_exporter.store import retention, rollups
from optwrap_exporter.wire.requests import Report
from optwrap_exporter.wire.vocabulary import GOOD_OUTCOMES, OUTCOMES

_INDEX: Final = {outcome: index for index, outcome in enumerate(OUTCOMES)}
_NONE: Final = (None, None, None)
_SUM: Final = "/"
"""Begins the name of a row that has the sum of folded incarnations; no incarnation's id has it. The attempt follows."""
_FOLDED: Final = "folded"
"""The only key in the state of an incarnation that was folded. Its value is the attempt."""
_PARAMETER: Final = (
    "INSERT INTO parameter (incarnation_id, path, totals, baseline, value_count, first_step, last_step) "
    "VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET totals = excluded.totals, baseline = excluded.baseline, "
    "value_count = excluded.value_count, first_step = excluded.first_step, last_step = excluded.last_step"
)

_Labels = tuple[tuple[str, ...], tuple[Replica, ...]]
"""The parameters and the replicas of a run that have metric labels of their own."""


class Rows:
    """Writes rows. Every method runs in the writer's thread, in a transaction of the caller."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._runs: dict[str, tuple[int, _Labels | None]] = {}
        self._incarnations: dict[tuple[int, int, str], int] = {}

    def forget_keys(self) -> None:
        """Forget all cached row ids, because rows may be gone."""
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

    def write(self, plan: Plan, digest: bytes | None) -> int:
        """Write everything that a plan changes. Returns the revision."""
        db, process, report, incarnation = self._db, plan.process.process, plan.report, plan.incarnation
        run_id = self._run(plan.run)
        db.execute(
            "INSERT INTO process VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET state = excluded.state",
            (run_id, process, _json(plan.process.durable())),
        )
        incarnation_id = self._incarnation(run_id, process, incarnation, plan.report is not None)
        touched = [*report.steps.step, *(o.step for o in report.offenders)] if report and plan.records else []
        cursor = db.execute(
            "INSERT INTO change (time, run_id, process, incarnation_id, seq, digest, first_step, last_step) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                plan.time,
                run_id,
                process,
                incarnation_id if report else None,
                report.seq if report else None,
                digest,
                min(touched, default=None),
                max(touched, default=None),
            ),
        )
        revision = cursor.lastrowid or 0
        if report is not None:
            self._parameters(incarnation_id, incarnation, plan.before)
            if not plan.records:
                retention.count_not_stored(db, incarnation_id, len(report.steps))
            if touched:
                self._steps(report, run_id=run_id, incarnation_id=incarnation_id, revision=revision)
                self._offenders(report, run_id=run_id, revision=revision)
                self._replicas(report, run_id=run_id, revision=revision)
        if plan.events:
            self._events(plan, run_id, revision)
        if plan.folding is not None:
            self._fold(plan.folding, run_id, process)
        return revision

    def _fold(self, folding: Folding, run_id: int, process: int) -> None:
        """Write a sum with one incarnation more. Of that incarnation only its id is kept, for late reports."""
        one, folded = folding.incarnation, folding.folded
        (key,) = self._db.execute(
            "SELECT id FROM incarnation WHERE run_id = ? AND process = ? AND incarnation = ?",
            (run_id, process, one.incarnation),
        ).fetchone()
        (into,) = self._db.execute(
            "INSERT INTO incarnation (run_id, process, incarnation, state, not_stored) VALUES (?, ?, ?, ?, "
            "(SELECT not_stored FROM incarnation WHERE id = ?)) ON CONFLICT DO UPDATE SET state = excluded.state, "
            "not_stored = not_stored + excluded.not_stored RETURNING id",
            (run_id, process, _SUM + folded.attempt, _json(folded.durable()), key),
        ).fetchone()
        self._db.execute(
            "UPDATE incarnation SET state = ?, not_stored = 0 WHERE id = ?", (_json({_FOLDED: one.attempt}), key)
        )
        self._db.execute("DELETE FROM parameter WHERE incarnation_id = ?", (key,))
        rows = [folded.parameter(path) for path in {**one.share.parameters, **one.parameter_records}]
        self._db.executemany(
            _PARAMETER, [(into, row.parameter, row.totals, row.baseline, *(row.records or _NONE)) for row in rows]
        )

    def _events(self, plan: Plan, run_id: int, revision: int) -> None:
        for event in plan.events:
            same_as = None
            if event.kind in events.OF_STEPS and event.step is not None:
                before = plan.process.times_taken_before(plan.incarnation, event.step)
                same_as = f"{event.kind}/{event.attempt}/{before}/{event.step}"
            self._db.execute(
                "INSERT OR IGNORE INTO event "
                "(revision, run_id, process, kind, time, step, attempt, same_as, repeated, detail, key) VALUES "
                "(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, "
                "EXISTS (SELECT 1 FROM event WHERE run_id = ?2 AND same_as = ?8 AND process != ?3), ?9, ?10)",
                (
                    revision,
                    run_id,
                    event.process,
                    event.kind,
                    event.time,
                    event.step,
                    event.attempt,
                    same_as,
                    _json(event.detail),
                    event.key,
                ),
            )

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

    def _incarnation(self, run_id: int, process: int, incarnation: IncarnationState, changed: bool) -> int:
        name = (run_id, process, incarnation.incarnation)
        key = self._incarnations.get(name)
        if key is None:
            (key,) = self._db.execute(
                "INSERT INTO incarnation (run_id, process, incarnation, state) VALUES (?, ?, ?, ?) "
                "ON CONFLICT DO UPDATE SET state = excluded.state RETURNING id",
                (*name, _json(incarnation.durable())),
            ).fetchone()
            self._incarnations[name] = key
        elif changed:
            self._db.execute("UPDATE incarnation SET state = ? WHERE id = ?", (_json(incarnation.durable()), key))
        return key

    def _parameters(self, incarnation_id: int, incarnation: IncarnationState, before: IncarnationState | None) -> None:
        rows = [incarnation.parameter(path) for path in incarnation.changed_parameters(before)]
        self._db.executemany(
            _PARAMETER,
            [(incarnation_id, row.parameter, row.totals, row.baseline, *(row.records or _NONE)) for row in rows],
        )

    def _steps(self, report: Report, *, run_id: int, incarnation_id: int, revision: int) -> None:
        """Add step records. A step that this incarnation has reported before is ignored."""
        columns = report.steps
        if not len(columns):
            return
        stored = self._db.execute(
            "SELECT step FROM step WHERE run_id = ? AND process = ? AND step BETWEEN ? AND ? AND incarnation_id = ?",
            (run_id, report.process, columns.step[0], columns.step[-1], incarnation_id),
        )
        known = {step for (step,) in stored}
        records = zip(
            columns.step,
            columns.time,
            columns.outcome,
            columns.finite,
            columns.norm,
            columns.mini_step,
            columns.interpolated or itertools.repeat(False),
            strict=False,  # the last column may be endless; the wire has checked the lengths of the others
        )
        rows, counted = [], []
        for step, time, outcome, finite, norm, mini_step, estimated in records:
            if step in known:
                continue
            known.add(step)
            bad = outcome not in GOOD_OUTCOMES or not finite
            number = None if math.isnan(norm) else norm  # SQLite has no NaN
            where = (run_id, report.process, step, incarnation_id, revision)
            rows.append((*where, time, _INDEX[outcome], finite, number, mini_step, estimated, bad))
            counted.append((step, incarnation_id, number, int(bad)))
        self._db.executemany("INSERT INTO step VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
        rollups.write(self._db, run_id, report.process, counted)

    def _offenders(self, report: Report, *, run_id: int, revision: int) -> None:
        if not report.offenders:
            return
        paths = {offender.parameter: None for offender in report.offenders}
        self._db.executemany("INSERT OR IGNORE INTO path (path) VALUES (?)", [(path,) for path in paths])
        self._db.executemany(
            "INSERT INTO offender SELECT ?, ?, ?, ?, ?, id, ? FROM path WHERE path = ?",
            [
                (run_id, report.process, offender.step, revision, position, offender.not_finite, offender.parameter)
                for position, offender in enumerate(report.offenders)
            ],
        )

    def _replicas(self, report: Report, *, run_id: int, revision: int) -> None:
        self._db.executemany(
            "INSERT INTO replica VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (run_id, report.process, one.step, revision, one.replica, one.process, one.device, one.count, one.of)
                for one in report.replicas
            ],
        )


_encoder: Final = json.JSONEncoder(separators=(",", ":"))


def _json(value: Any) -> str:
    return _encoder.encode(value)


def _runs(db: sqlite3.Connection) -> Iterator[RunState]:
    parameters: dict[int, list[ParameterState]] = {}
    for incarnation_id, path, totals, baseline, values, first, last in db.execute(
        "SELECT incarnation_id, path, totals, baseline, value_count, first_step, last_step FROM parameter ORDER BY id"
    ):
        records = None if values is None else ParameterRecords(values, first, last)
        parameters.setdefault(incarnation_id, []).append(ParameterState(path, totals, baseline, records))
    incarnations: dict[tuple[int, int], list[IncarnationState]] = {}
    sums: dict[tuple[int, int], list[Folded]] = {}
    folded_ids: dict[tuple[int, int], dict[str, str]] = {}
    late: Counter[tuple[int, int, str]] = Counter()
    """Records that were not stored, of incarnations that had been folded before."""
    for key, run_id, process, name, text, not_stored in db.execute(
        "SELECT id, run_id, process, incarnation, state, not_stored FROM incarnation ORDER BY id"
    ):
        state, of = json.loads(text), (run_id, process)
        if name.startswith(_SUM):
            sums.setdefault(of, []).append(Folded.from_durable(state, parameters.get(key, []), not_stored))
        elif _FOLDED in state:
            folded_ids.setdefault(of, {})[name] = state[_FOLDED]
            late[*of, state[_FOLDED]] += not_stored
        else:
            restored = IncarnationState.from_durable(state, parameters.get(key, []), not_stored)
            incarnations.setdefault(of, []).append(restored)
    processes: dict[int, dict[int, ProcessState]] = {}
    for run_id, process, text in db.execute("SELECT run_id, process, state FROM process ORDER BY run_id, process"):
        of = (run_id, process)
        folded = [
            dataclasses.replace(one, not_stored=one.not_stored + late[*of, one.attempt]) for one in sums.get(of, [])
        ]
        processes.setdefault(run_id, {})[process] = ProcessState.from_durable(
            process, json.loads(text), incarnations[of], folded, folded_ids.get(of)
        )
    for run_id, run, labels, replicas in db.execute("SELECT id, run, labels, replica_labels FROM run"):
        named = tuple(Replica(*replica) for replica in json.loads(replicas))
        heard = heard_from(processes[run_id].values())
        yield RunState(run, processes[run_id], tuple(json.loads(labels)), named, heard)
