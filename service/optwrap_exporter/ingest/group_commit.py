"""Commits a group of reports in one transaction, and answers each of them.

    room for all of them
    for each report: a duplicate? a conflict? -> ledger.plan -> ledger.stage
    store.commit_group -> ledger.adopt -> answers

Each plan sees the plans before it, so several reports of one process may be in one group. Nobody else sees any of them
before the commit. If the transaction fails, nothing has changed, and each report is tried on its own.
"""

import logging
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from optwrap_exporter.ingest.load import Load
from optwrap_exporter.ledger.ledger import Ledger
from optwrap_exporter.ledger.plan import Plan, acknowledge
from optwrap_exporter.store.condition import StoreUnavailableError
from optwrap_exporter.store.store import Store
from optwrap_exporter.wire.answers import Acknowledgement
from optwrap_exporter.wire.errors import ExporterError, FieldError
from optwrap_exporter.wire.requests import Report

_log = logging.getLogger(__name__)

GROUP: Final = 64
"""The most plans in one transaction. It takes some tens of milliseconds, for which the next reports wait."""
GAPS_RETRY_SECONDS: Final = 1.0
"""Seconds after which a client whose seqs have too many gaps may send the report again."""


class ConflictError(FieldError):
    """Other content is stored under this incarnation and seq, or the incarnation under another attempt (HTTP 409)."""


class BusyError(ExporterError):
    """Too many reports are waiting, or the seqs of the incarnation have too many gaps (HTTP 429).

    Attributes:
      retry_after: seconds after which to send the report again.
    """

    def __init__(self, retry_after: float) -> None:
        self.retry_after = retry_after
        super().__init__(f"the exporter is busy: send the same report again in {retry_after:g} s")


@dataclass(frozen=True, slots=True)
class Committed:
    """What a listener receives. `store.changes` has the content."""

    revision: int
    runs: frozenset[str]


Listener = Callable[[Committed], None]
"""Called in the writer thread after each commit. It must return at once and must not raise."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A report to store."""

    report: Report
    digest: bytes
    """16 bytes that are equal for reports with equal content."""


Answer = Acknowledgement | BaseException
"""What became of an offer. An exception is for this offer alone."""


class GroupCommit:
    """Commits groups. Every method runs in the writer's thread.

    Args:
      store: where plans are committed.
      ledger: where they are made and adopted.
      load: how often processes should report; it is told what the reports cost.
    """

    def __init__(self, store: Store, ledger: Ledger, load: Load) -> None:
        self._store = store
        self._ledger = ledger
        self._load = load
        self.listeners: tuple[Listener, ...] = ()

    def take(self, offers: Sequence[Offer]) -> list[Answer]:
        """Store reports, and return their answers in the same order. Never raises an Exception."""
        began = time.perf_counter()
        answers = self._take_or_split(offers)
        self._load.committed(len(offers), time.perf_counter() - began)
        return answers

    def _take_or_split(self, offers: Sequence[Offer]) -> list[Answer]:
        reports = [offer.report for offer in offers]
        try:
            self.make_room(sum(len(one.steps) + len(one.offenders) + len(one.replicas) for one in reports))
            return self._take(offers)
        except StoreUnavailableError as error:
            self._ledger.discard()
            return [error] * len(offers)
        except Exception as error:
            self._ledger.discard()
            if len(offers) == 1:
                return [error]
        # One report may be the cause, or the disk may have room for some of them.
        return [answer for offer in offers for answer in self._take_or_split([offer])]

    def make_room(self, records: int = 0) -> None:
        """Make room for more records by deleting the oldest ones, which changes the ledger."""
        self._ledger.count_not_stored(self._store.make_room(records))

    def commit(self, plans: Sequence[Plan]) -> None:
        """Commit plans without reports, GROUP at a time.

        Raises:
          StoreUnavailableError: the store stores nothing now.
        """
        for first in range(0, len(plans), GROUP):
            group = plans[first : first + GROUP]
            try:
                self._commit([(plan, None) for plan in group])
            except sqlite3.Error:  # there is no room for all of them
                self._ledger.discard()
                for plan in group:
                    self._commit([(plan, None)])

    def _take(self, offers: Sequence[Offer]) -> list[Answer]:
        answers: list[Answer] = []
        planned: list[tuple[Plan, bytes | None]] = []
        digests: dict[tuple[str, int, str, int], bytes] = {}
        for offer in offers:
            try:
                found = self._plan(offer, digests)
            except Exception as error:  # this report's own fault
                answers.append(error)
                continue
            if isinstance(found, Plan):
                self._ledger.stage(found)
                planned.append((found, offer.digest))
                digests[_key(offer.report)] = offer.digest
                found = found.answer()
            answers.append(found)
        if planned:
            self._commit(planned)
        return answers

    def _plan(self, offer: Offer, digests: dict[tuple[str, int, str, int], bytes]) -> Plan | Acknowledgement:
        """What a report changes; the answer if it is a duplicate.

        Args:
          offer: the report.
          digests: the digests of the reports before it in the group.

        Raises:
          ConflictError, ImplausibleError, BusyError: the report cannot be stored.
        """
        report = offer.report
        process = self._ledger.find(report)
        if process is not None:
            # The digest of an old report may have been deleted. Then the report is taken to be a duplicate.
            if (digests.get(_key(report)) or self._store.digest(report)) not in {None, offer.digest}:
                raise ConflictError(
                    "seq",
                    f"incarnation {report.incarnation}, seq {report.seq}",
                    "the same content as before under this incarnation and seq, or a new seq",
                )
            return acknowledge(process, report, duplicate=True)
        if wait := self._ledger.admit(report):
            raise BusyError(wait)
        _, known = self._ledger.known(report)
        if known is not None and known.attempt != report.attempt:  # compared first, because a plan may take long
            raise ConflictError(
                "attempt", report.attempt, f"{known.attempt}, as in earlier reports of incarnation {report.incarnation}"
            )
        plan = self._ledger.plan(report, self._load.interval)
        if plan.too_many_gaps:  # earlier reports that the client still holds will close some
            raise BusyError(GAPS_RETRY_SECONDS)
        return plan

    def _commit(self, planned: Sequence[tuple[Plan, bytes | None]]) -> None:
        """Commit plans, adopt them, and tell the listeners. If it raises, nothing has changed."""
        if len(planned) == 1:
            revision, plan = self._store.commit(*planned[0])
            self._ledger.apply(plan)  # it may be without its records
        else:
            revision = self._store.commit_group(planned)
            for plan, _ in planned:
                if plan.report is None:
                    self._ledger.stage(plan)
            self._ledger.adopt()
        for plan, _ in planned:
            if plan.report is not None and len(plan.process.incarnations) == 1 and plan.before is None:
                self._load.joined()
        self.tell(revision, frozenset(plan.run.run for plan, _ in planned))

    def tell(self, revision: int, runs: frozenset[str]) -> None:
        """Tell the listeners what was committed."""
        committed = Committed(revision, runs)
        for listener in self.listeners:
            try:
                listener(committed)
            except Exception:  # the commit stands even if a listener fails
                _log.exception("a listener of commits failed")


def _key(report: Report) -> tuple[str, int, str, int]:
    return report.run, report.process, report.incarnation, report.seq
