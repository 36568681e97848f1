"""What a person changes: acknowledges an incident, hides a run, shows it again, or deletes it.

Each runs in the writer's thread, in the same order as the reports, and is durable before it returns.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import TypeVar

from optwrap_exporter.ingest.group_commit import GroupCommit
from optwrap_exporter.ledger.evolve import evolved
from optwrap_exporter.ledger.incidents.plans import of_run
from optwrap_exporter.ledger.incidents.summary import answer
from optwrap_exporter.ledger.ledger import Ledger
from optwrap_exporter.ledger.plan import Plan
from optwrap_exporter.store.store import Store
from optwrap_exporter.wire.errors import ExporterError
from optwrap_exporter.wire.incident import Incident

Result = TypeVar("Result")


class UnknownError(ExporterError):
    """There is no such run or incident (HTTP 404)."""


class Operations(ABC):
    """The operations of an ingest.

    Every method raises UnknownError if there is no such run or incident, StoreUnavailableError if the store stores
    nothing now, and ClosedError if the ingest is closed.

    Args:
      store: where changes are committed.
      ledger: the runs.
      commits: commits them.
    """

    def __init__(self, store: Store, ledger: Ledger, commits: GroupCommit) -> None:
        self._store = store
        self._ledger = ledger
        self._commits = commits

    @abstractmethod
    def _queue(self, work: Callable[[], Result]) -> "Future[Result]":
        """Let the writer's thread do some work."""

    async def acknowledge(self, incident: int) -> Incident:
        """Acknowledge an incident, by its id. One that was acknowledged before stays as it is."""
        return await asyncio.wrap_future(self._queue(partial(self._acknowledge, incident)))

    async def archive(self, run: str) -> None:
        """Hide a run from lists. It is kept, and still takes reports."""
        await asyncio.wrap_future(self._queue(partial(self._archive, run, archived=True)))

    async def restore(self, run: str) -> None:
        """Show a run again that was hidden."""
        await asyncio.wrap_future(self._queue(partial(self._archive, run, archived=False)))

    async def delete(self, run: str) -> None:
        """Delete everything about a run. If it reports again, it is a new run."""
        if not await asyncio.wrap_future(self._queue(partial(self._delete, run))):
            raise UnknownError(f"run {run!r}: there is no such run")

    def _acknowledge(self, number: int) -> Incident:
        found = self._store.incident(number)
        if found is None:
            raise UnknownError(f"incident {number}: there is no such incident")
        run, incident = found
        if incident.state == "acknowledged":
            return answer(run, incident)
        plan = self._ledger.acknowledge(run, incident)
        self._commits.commit([plan])
        return answer(run, plan.incidents[0])

    def _archive(self, run: str, *, archived: bool) -> None:
        plan = self._ledger.archive(run, archived)
        if plan is None:
            raise UnknownError(f"run {run!r}: there is no such run")
        self._commits.commit([plan])

    def _delete(self, run: str) -> bool:
        """Delete a run, and tell the listeners. False if it is unknown."""
        found = self._forget(run)
        if found:
            self._commits.tell(self._store.revision(), frozenset({run}))
        return found

    def _forget_incidents(self) -> None:
        """Forget the incidents that retention has deleted. Nobody could acknowledge them."""
        plans: list[Plan] = []
        for run in self._ledger.shown():
            past = run.past_incidents
            kept = self._store.incidents_kept([one.id for one in past]) if past else frozenset()
            if len(kept) < len(past):
                after = evolved(run, past_incidents=tuple(one for one in past if one.id in kept))
                plans.append(of_run(after, self._ledger.clocks.age()))
        self._commits.commit(plans)

    def _forget(self, run: str) -> bool:
        found = self._store.forget(run)
        self._ledger.forget(run)
        return found
