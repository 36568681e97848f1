"""Writes reports and ledger states to the tables, and reads the states back."""

import dataclasses
import itertools
import json
import math
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from optwrap_exporter.ledger.plan import Plan
from optwrap_exporter.ledger.state.compaction import EMPTY_SUM, Compacted, IncarnationSum
from optwrap_exporter.ledger.state.counters import Replica
from optwrap_exporter.ledger.state.incarnation import IncarnationState
from optwrap_exporter.ledger.state.parts import ParameterRecords, ParameterState
from optwrap_exporter.ledger.state.past import Past
from optwrap_exporter.ledger.state.process import ProcessState
from optwrap_exporter.ledger.state.run import RunState, last_reports_of
from optwrap_exporter.store import bulk, incident_list, retention
from optwrap_exporter.store.pending import INSERT_PARAMETER, Pending, event_row, to_text
from optwrap_exporter.store.retention import SUM
from optwrap_exporter.store.steps import rollups, scalar_rollups, step_columns
from optwrap_exporter.wire.requests import Report
from optwrap_exporter.wire.step_answers import IS_BAD
from optwrap_exporter.wire.vocabulary import OUTCOMES

_INDEX: Final = {outcome: index for index, outcome in enumerate(OUTCOMES)}
_NONE: Final = (None, None, None)
_COMPACTED: Final = "folded"
"""The only key in the state of an incarnation that was compacted. Its value is the attempt."""

_Row = tuple[tuple[str, ...], tuple[Replica, ...], Past, bool]
"""What is written of a run itself: the parameters and replicas with metric labels of their own, its past, and whether
it is hidden."""


class Rows:
    """Writes rows. Every method runs in the writer's thread, in a transaction of the caller."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._revision: int | None = None
        """The last revision; None if it has to be read."""
        self._runs: dict[str, tuple[int, _Row | None]] = {}
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
        pending = Pending()
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

    def _add(self, pending: Pending, plan: Plan, digest: bytes | None, revision: int) -> None:
        process, report, incarnation = plan.process.process, plan.report, plan.incarnation
        run_id = self._run(pending, plan.run)
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
            if plan.not_stored:
                retention.count_not_stored(self._db, (run_id, process, incarnation_id), plan.not_stored)
            if touched:
                self._steps(pending, plan, report, run_id=run_id, incarnation_id=incarnation_id, revision=revision)
                pending.offenders += [
                    (
                        run_id,
                        process,
                        offender.step,
                        revision,
                        position,
                        offender.not_finite,
                        offender.norm_share,
                        offender.parameter,
                    )
                    for position, offender in enumerate(report.offenders)
                ]
                pending.replicas += [
                    (run_id, process, one.step, revision, one.replica, one.process, one.device, one.count, one.of)
                    for one in report.replicas
                ]
        pending.events += [event_row(plan, event, run_id, revision) for event in plan.events]
        pending.incidents.update({one.id: (one, run_id, revision) for one in plan.incidents})
        if plan.compaction.compacted:
            self._compact(pending, plan, run_id)

    def _compact(self, pending: Pending, plan: Plan, run_id: int) -> None:
        """Write what a process has compacted, and the attempts that it has left."""
        process, compaction = plan.process, plan.compaction
        of = (run_id, process.process)
        for one in compaction.compacted:
            self._compact_one(pending, one, of)
        if not compaction.left and not compaction.forgotten:
            return
        into = self._sum(of, process.earlier)
        for left in compaction.left:
            self._merge(of, SUM + left.attempt, into)
        for name in compaction.forgotten:
            self._merge(of, name, into)
        self._parameters(into, process.earlier, {path for left in compaction.left for path in left.share.parameters})

    def _compact_one(self, pending: Pending, compacted: Compacted, of: tuple[int, int]) -> None:
        """Write a sum with one incarnation more. Of that incarnation only its id is kept, for late reports."""
        one, total = compacted.incarnation, compacted.total
        (key,) = self._db.execute(
            "SELECT id FROM incarnation WHERE run_id = ? AND process = ? AND incarnation = ?", (*of, one.incarnation)
        ).fetchone()
        pending.forget_incarnation(key)
        self._incarnations.pop((*of, one.incarnation), None)
        into = self._sum(of, total)
        self._db.execute(
            "UPDATE incarnation SET not_stored = not_stored + (SELECT not_stored FROM incarnation WHERE id = ?) "
            "WHERE id = ?",
            (key, into),
        )
        self._db.execute(
            "UPDATE incarnation SET state = ?, not_stored = 0 WHERE id = ?", (to_text({_COMPACTED: one.attempt}), key)
        )
        self._db.execute("DELETE FROM parameter WHERE incarnation_id = ?", (key,))
        self._parameters(into, total, {**one.share.parameters, **one.parameter_records})

    def _sum(self, of: tuple[int, int], total: IncarnationSum) -> int:
        """Write the row of a sum, without its parameters and `not_stored`. Returns its id."""
        (key,) = self._db.execute(
            "INSERT INTO incarnation (run_id, process, incarnation, state) VALUES (?, ?, ?, ?) "
            "ON CONFLICT DO UPDATE SET state = excluded.state RETURNING id",
            (*of, SUM + total.attempt, to_text(total.durable())),
        ).fetchone()
        return int(key)

    def _merge(self, of: tuple[int, int], name: str, into: int) -> None:
        """Delete the row of an incarnation or of a sum. Another row gets what it counted as not stored."""
        for key, not_stored in self._db.execute(
            "DELETE FROM incarnation WHERE run_id = ? AND process = ? AND incarnation = ? RETURNING id, not_stored",
            (*of, name),
        ).fetchall():
            self._db.execute("UPDATE incarnation SET not_stored = not_stored + ? WHERE id = ?", (not_stored, into))
            self._db.execute("DELETE FROM parameter WHERE incarnation_id = ?", (key,))

    def _parameters(self, key: int, total: IncarnationSum, paths: Iterable[str]) -> None:
        rows = [total.parameter(path) for path in paths]
        bulk.write(
            self._db,
            INSERT_PARAMETER,
            [(key, row.parameter, row.totals, row.baseline, *(row.records or _NONE)) for row in rows],
        )

    def _run(self, pending: Pending, run: RunState) -> int:
        row = (run.labels, run.replica_labels, run.past, run.archived)
        key, written = self._runs.get(run.run, (0, None))
        if not key:
            (key,) = self._db.execute(
                "INSERT INTO run (run, labels, replica_labels, past) VALUES (?, '', '', '') "
                "ON CONFLICT DO UPDATE SET run = run RETURNING id",
                (run.run,),
            ).fetchone()
        if written != row:
            pending.runs[key] = run
            self._runs[run.run] = (key, row)
        return key

    def _incarnation(self, run_id: int, process: int, incarnation: IncarnationState) -> int:
        name = (run_id, process, incarnation.incarnation)
        key = self._incarnations.get(name)
        if key is None:
            (key,) = self._db.execute(
                "INSERT INTO incarnation (run_id, process, incarnation, state) VALUES (?, ?, ?, ?) "
                "ON CONFLICT DO UPDATE SET state = excluded.state RETURNING id",
                (*name, to_text(incarnation.durable())),
            ).fetchone()
            self._incarnations[name] = key
        return key

    def _steps(
        self,
        pending: Pending,
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
        if known and not (columns := step_columns.without(columns, known)).step:
            return
        steps, times, finite = columns.step, columns.time, columns.finite
        outcomes = [_INDEX[outcome] for outcome in columns.outcome]
        norms = [None if math.isnan(norm) else norm for norm in columns.norm]  # SQLite has no NaN
        texts = step_columns.scalars_by_step(columns)
        kinds, kept = rollups.kinds_of(outcomes, finite), step_columns.rolled_up(norms, texts)
        same = itertools.repeat
        pending.steps += zip(
            same(run_id),
            same(process),
            steps,
            same(incarnation_id),
            same(revision),
            times,
            outcomes,
            finite,
            norms,
            columns.mini_step,
            columns.interpolated or same(False),
            [IS_BAD[kind] for kind in kinds],
            map(step_columns.stored_update_norm, columns.update_norm) if columns.update_norm else same(None),
            texts or same(None),
            strict=False,  # some columns are endless; the wire has checked the lengths of the others
        )
        incarnations = [incarnation_id] * len(steps)
        blocks = rollups.of_columns(rollups.Columns(steps, incarnations, kinds, norms, kept, times))
        pending.blocks += rollups.rows_of(run_id, process, blocks)
        if columns.scalars:
            good = {step for step, kind in zip(steps, kinds, strict=True) if not IS_BAD[kind]}
            values = scalar_rollups.values_of(columns, good, incarnation_id)
            pending.scalar_blocks += scalar_rollups.rows_of(run_id, process, values)


def _runs(db: sqlite3.Connection) -> Iterator[RunState]:
    parameters: dict[int, list[ParameterState]] = {}
    for incarnation_id, path, totals, baseline, values, first, last in db.execute(
        "SELECT incarnation_id, path, totals, baseline, value_count, first_step, last_step FROM parameter ORDER BY id"
    ):
        records = None if values is None else ParameterRecords(values, first, last)
        parameters.setdefault(incarnation_id, []).append(ParameterState(path, totals, baseline, records))
    incarnations: dict[tuple[int, int], list[IncarnationState]] = {}
    sums: dict[tuple[int, int], dict[str, IncarnationSum]] = {}
    compacted_ids: dict[tuple[int, int], dict[str, str]] = {}
    late: Counter[tuple[int, int, str]] = Counter()
    """Records that were not stored, of incarnations that had been compacted before."""
    for key, run_id, process, name, text, not_stored in db.execute(
        "SELECT id, run_id, process, incarnation, state, not_stored FROM incarnation ORDER BY id"
    ):
        state, of = json.loads(text), (run_id, process)
        if name.startswith(SUM):
            total = IncarnationSum.from_durable(state, parameters.get(key, []), not_stored)
            sums.setdefault(of, {})[total.attempt] = total
        elif _COMPACTED in state:
            compacted_ids.setdefault(of, {})[name] = state[_COMPACTED]
            late[*of, state[_COMPACTED]] += not_stored
        else:
            restored = IncarnationState.from_durable(state, parameters.get(key, []), not_stored)
            incarnations.setdefault(of, []).append(restored)
    for (run_id, process, attempt), not_stored in late.items():
        mine = sums[run_id, process]
        total = mine[attempt if attempt in mine else EMPTY_SUM.attempt]
        mine[total.attempt] = dataclasses.replace(total, not_stored=total.not_stored + not_stored)
    processes: dict[int, dict[int, ProcessState]] = {}
    for run_id, process, text in db.execute("SELECT run_id, process, state FROM process ORDER BY run_id, process"):
        of = (run_id, process)
        processes.setdefault(run_id, {})[process] = ProcessState.from_durable(
            process, json.loads(text), incarnations[of], sums.get(of, {}).values(), compacted_ids.get(of)
        )
    incidents = incident_list.restored(db)
    for run_id, run, labels, replicas, past, archived in db.execute(
        "SELECT id, run, labels, replica_labels, past, archived FROM run"
    ):
        of_run = incidents.get(run_id, incident_list.OfRun())
        yield RunState(
            run,
            processes[run_id],
            tuple(json.loads(labels)),
            tuple(Replica(*replica) for replica in json.loads(replicas)),
            last_reports_of(processes[run_id].values()),
            Past.from_durable(json.loads(past)),
            of_run.live,
            of_run.over,
            bool(archived),
        )
