"""The reads of a store, from any thread."""

import sys
from collections.abc import Collection

from optwrap_exporter.store import event_list, incident_list, queries
from optwrap_exporter.store.connections import Connections
from optwrap_exporter.store.event_list import EventFilter, Logged, Position
from optwrap_exporter.store.incident_list import IncidentFilter
from optwrap_exporter.store.queries import Changes
from optwrap_exporter.store.steps import series
from optwrap_exporter.store.steps.downsample import Axis
from optwrap_exporter.store.steps.grid import Wanted
from optwrap_exporter.wire.answers import ANSWER_BYTES, Event, Page
from optwrap_exporter.wire.incident import Incident
from optwrap_exporter.wire.series import SeriesAnswer
from optwrap_exporter.wire.step_answers import StepsAnswer
from optwrap_exporter.wire.vocabulary import EventKind, IncidentKind, IncidentState, Outcome


class StoreReads:
    """What a store answers. Each answer is of one state of the database."""

    _connections: Connections

    def revision(self) -> int:
        """The revision of the last committed change; 0 in an empty store."""
        with self._connections.reading() as db:
            row = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'change'").fetchone()
        return int(row[0]) if row else 0

    def steps(
        self,
        run: str,
        process: int,
        *,
        since: int | None = None,
        until: int | None = None,
        points: int = 2000,
        axis: Axis = "step",
        most_bad: int = sys.maxsize,
        most_replicas: int = sys.maxsize,
        buckets: int | None = None,
    ) -> StepsAnswer:
        """Step records of one process with since <= step <= until, by step, then time.

        If there are more than `points` good steps, they are downsampled: their range is cut into at most `points // 2`
        buckets of equal length along `axis`, and each bucket keeps the steps with the smallest and the largest norm. In
        a run with scalars up to half of the points are for the extremes of the scalars instead. If
        there are more than `most_bad` bad steps (skipped, or with non-finite gradients), each of at most
        `queries.BUCKETS` buckets keeps the first and the last of each outcome, and the answer counts all of them. There
        are at most `most_replicas` replica records. After a rollback or a resume a step number can occur more than
        once. With `buckets` the answer also has all steps in at most that many buckets. An unknown run or process has
        no steps.
        """
        with self._connections.reading() as db:
            return queries.steps(
                db,
                run,
                process,
                since=since,
                until=until,
                points=points,
                axis=axis,
                most_bad=most_bad,
                most_replicas=most_replicas,
                buckets=buckets,
            )

    def events(
        self,
        run: str | None = None,
        *,
        kind: Collection[EventKind] = (),
        outcome: Collection[Outcome] = (),
        process: int | None = None,
        since: float | None = None,
        until: float | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page[Event]:
        """Events of a run, or of all if `run` is None; newest first, at most `limit` of them and about ANSWER_BYTES.

        They are filtered by kind, by the outcome of their step, and by time: since <= time < until. An event that all
        processes of an attempt report (a skip, a streak) is listed once, from the process that reported it first; with
        `process` every event of that process is listed. Filtered by outcome, a page may have fewer events than `limit`
        although there are more.

        Raises:
          CursorError: the cursor belongs to another list. Run, kind, outcome and process make a list.
        """
        with self._connections.reading() as db:
            key = None if run is None else queries.run_id(db, run)
            chosen = EventFilter(tuple(kind), tuple(outcome), process, since, until)
            return event_list.events(db, key, run, chosen, limit=limit, cursor=cursor)

    def logged_events(self, after: Position, most: int) -> list[Logged]:
        """The first events that were committed after a position, in the order of commits, as `events` lists them."""
        with self._connections.reading() as db:
            return event_list.logged(db, after, most)

    def incidents(
        self,
        run: str | None = None,
        *,
        kind: Collection[IncidentKind] = (),
        state: Collection[IncidentState] = (),
        outcome: Collection[Outcome] = (),
        since: float | None = None,
        until: float | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page[Incident]:
        """Incidents of a run, or of all if `run` is None; newest first, at most `limit` of them and ANSWER_BYTES.

        They are filtered by kind, by state, by the outcomes of their bad steps, and by time: those that lasted at or
        after `since` and began before `until`, in seconds since 1970.

        Raises:
          CursorError: the cursor belongs to another list. Run, kind, state and outcome make a list.
        """
        with self._connections.reading() as db:
            chosen = IncidentFilter(tuple(kind), tuple(state), tuple(outcome), since, until)
            return incident_list.incidents(db, run, chosen, limit=limit, cursor=cursor)

    def series(self, run: str, process: int, wanted: Wanted) -> SeriesAnswer:
        """Steps of one process, counted in buckets of time. An unknown run or process has none.

        Raises:
          BucketsError: the buckets asked for are too short for the range.
        """
        with self._connections.reading() as db:
            return series.series(db, queries.run_id(db, run), run, process, wanted)

    def changes(
        self, after: int, run: str | None = None, *, until: int | None = None, room: int = ANSWER_BYTES
    ) -> Changes:
        """What was committed after a revision, of one run or of all: the messages of the stream.

        Args:
          after: the revision after which to begin.
          run: the run; None means all.
          until: the last revision; None means the newest.
          room: the most bytes of all messages as JSON. The newest message is always among them.
        """
        with self._connections.reading() as db:
            return queries.changes(db, after, run, until=until, room=room)
