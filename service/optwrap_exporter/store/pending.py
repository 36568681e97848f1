"""The rows of a group of plans, collected and then written together."""

import sqlite3
from typing import Any, Final, NamedTuple

from pydantic_core import to_json

from optwrap_exporter.ledger.change import events
from optwrap_exporter.ledger.plan import Plan
from optwrap_exporter.ledger.state.incarnation import IncarnationState
from optwrap_exporter.ledger.state.incident import IncidentRecord
from optwrap_exporter.ledger.state.process import ProcessState
from optwrap_exporter.ledger.state.run import RunState
from optwrap_exporter.store import bulk, incident_list
from optwrap_exporter.store.bulk import Row
from optwrap_exporter.store.steps import rollups, scalar_rollups


class EventRow(NamedTuple):
    """The row of an event, as `_INSERT_EVENT` takes it."""

    revision: int
    run_id: int
    process: int
    kind: str
    time: float
    step: int | None
    attempt: str
    same_as: str | None
    """Other processes of the attempt give the same event the same one."""
    detail: str
    key: str


class Pending:
    """The rows of a group that are not written yet. Written together, they cost a fraction of what each costs alone."""

    def __init__(self) -> None:
        self.runs: dict[int, RunState] = {}
        self.processes: dict[tuple[int, int], ProcessState] = {}
        self.incarnations: dict[int, IncarnationState] = {}
        """By row id, as runs. Of several states of a run, a process or an incarnation only the last is written."""
        self.changes: list[Row] = []
        self.parameters: list[Row] = []
        self.steps: list[Row] = []
        self.blocks: list[Row] = []
        self.scalar_blocks: list[Row] = []
        self.offenders: list[Row] = []
        self.replicas: list[Row] = []
        self.events: list[EventRow] = []
        self.incidents: dict[int, tuple[IncidentRecord, int, int]] = {}
        """By id: the incident, its run, and the revision that wrote it last."""

    def forget_incarnation(self, key: int) -> None:
        """Drop the state and the parameters of an incarnation, which is being compacted."""
        self.incarnations.pop(key, None)
        self.parameters = [row for row in self.parameters if row[0] != key]

    def write_steps(self, db: sqlite3.Connection) -> None:
        """Write the step records so far."""
        bulk.write(db, "INSERT INTO step VALUES ?", self.steps)
        bulk.write(db, rollups.UPSERT, self.blocks)
        bulk.write(db, scalar_rollups.UPSERT, self.scalar_blocks)
        self.steps, self.blocks, self.scalar_blocks = [], [], []

    def write(self, db: sqlite3.Connection) -> None:
        """Write all rows."""
        self.write_steps(db)
        for key, run in self.runs.items():
            db.execute(
                "UPDATE run SET labels = ?, replica_labels = ?, past = ?, archived = ? WHERE id = ?",
                (to_text(run.labels), to_text(run.replica_labels), to_text(run.past.durable()), run.archived, key),
            )
        bulk.write(
            db,
            "INSERT INTO process VALUES ? ON CONFLICT DO UPDATE SET state = excluded.state",
            [(*key, to_text(process.durable())) for key, process in self.processes.items()],
        )
        bulk.write(
            db,
            "WITH new (id, state) AS (VALUES ?) UPDATE incarnation SET state = new.state FROM new "
            "WHERE incarnation.id = new.id",
            [(key, to_text(incarnation.durable())) for key, incarnation in self.incarnations.items()],
        )
        bulk.write(db, "INSERT INTO change VALUES ?", self.changes)
        bulk.write(db, INSERT_PARAMETER, self.parameters)
        bulk.write(db, "INSERT OR IGNORE INTO path (path) VALUES ?", [*{row[-1:]: None for row in self.offenders}])
        bulk.write(db, _INSERT_OFFENDER, self.offenders)
        bulk.write(db, "INSERT INTO replica VALUES ?", self.replicas)
        bulk.write(db, _INSERT_EVENT, self._with_repeated())
        if self.incidents:
            self._write_incidents(db)

    def _write_incidents(self, db: sqlite3.Connection) -> None:
        last = incident_list.last_id(db)
        rows = [
            incident_list.row(one, run_id, revision, to_text(one.durable()))
            for one, run_id, revision in self.incidents.values()
        ]
        bulk.write(db, incident_list.UPSERT, rows)
        incident_list.bound(db, {run_id for one, run_id, _ in self.incidents.values() if one.id > last})

    def _with_repeated(self) -> list[Row]:
        """The rows of events, each with whether another process reported the event earlier in this group."""
        reported: dict[tuple[object, object], set[object]] = {}
        rows: list[Row] = []
        for row in self.events:
            by = reported.setdefault((row.run_id, row.same_as), set()) if row.same_as is not None else set()
            rows.append((*row, bool(by - {row.process})))
            by.add(row.process)
        return rows


INSERT_PARAMETER: Final = (
    "INSERT INTO parameter (incarnation_id, path, totals, baseline, value_count, first_step, last_step) "
    "VALUES ? ON CONFLICT DO UPDATE SET totals = excluded.totals, "
    "baseline = excluded.baseline, value_count = excluded.value_count, first_step = excluded.first_step, "
    "last_step = excluded.last_step"
)
_INSERT_OFFENDER: Final = (
    "WITH new (run_id, process, step, revision, position, not_finite, norm_share, path) AS (VALUES ?) "
    "INSERT INTO offender SELECT run_id, process, step, revision, position, path.id, not_finite, norm_share "
    "FROM new CROSS JOIN path USING (path)"
)
_INSERT_EVENT: Final = (
    "WITH new (revision, run_id, process, kind, time, step, attempt, same_as, detail, key, repeated) AS (VALUES ?) "
    "INSERT OR IGNORE INTO event "
    "(revision, run_id, process, kind, time, step, attempt, same_as, repeated, detail, key) "
    "SELECT revision, run_id, process, kind, time, step, attempt, same_as, repeated OR (same_as IS NOT NULL AND EXISTS "
    "(SELECT 1 FROM event WHERE run_id = new.run_id AND same_as = new.same_as AND process != new.process)), "
    "detail, key FROM new"
)


def event_row(plan: Plan, event: events.NewEvent, run_id: int, revision: int) -> EventRow:
    """The row of an event."""
    same_as = None
    if event.kind in events.OF_STEPS and event.step is not None:
        before = plan.process.times_taken_before(plan.incarnation, event.step)
        # Processes report a rebase at different steps, but all with the same number of rebases.
        same_as = f"{event.kind}/{event.attempt}/{before}/{event.detail.get('rebases', event.step)}"
    detail = to_text(event.detail)
    return EventRow(
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


def to_text(value: Any) -> str:
    """JSON text, in which numbers that are not finite are strings."""
    return to_json(value, inf_nan_mode="strings").decode()
