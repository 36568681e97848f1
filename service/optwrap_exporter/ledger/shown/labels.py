"""Which parameters and replicas of a run get metric labels of their own: the first ones. Pure."""

from typing import Final

from optwrap_exporter.ledger.state.counters import Replica
from optwrap_exporter.ledger.state.process import ProcessState
from optwrap_exporter.wire.requests import Report

LABELS: Final = 10
"""The number of parameters of a run, and of replicas, that get metric labels of their own."""


def with_parameters(labels: tuple[str, ...], report: Report, process: ProcessState) -> tuple[str, ...]:
    """The labels with newly non-finite parameters: by step, and within a step in the tree's order."""
    share = process.incarnations[report.incarnation].share
    if len(labels) == LABELS or all(path in labels for path in share.parameters):  # earlier ones have had theirs
        return labels
    total = process.total.parameters
    first = [offender.parameter for offender in sorted(report.offenders, key=lambda offender: offender.step)]
    fresh = [path for path in dict.fromkeys([*first, *report.totals.parameters, *total]) if total.get(path)]
    return (*labels, *(path for path in fresh if path not in labels))[:LABELS]


def with_replicas(labels: tuple[Replica, ...], report: Report, process: ProcessState) -> tuple[Replica, ...]:
    """The labels with replicas that are newly the first non-finite one: by step, as far as it is known."""
    if len(labels) == LABELS or not process.incarnations[report.incarnation].share.replicas:
        return labels
    first = [Replica(record.replica, record.process, record.device) for record in report.replicas]
    total = process.total.replicas
    fresh = [one for one in dict.fromkeys([*first, *total]) if one in total and one.number is not None]
    return (*labels, *(one for one in fresh if one not in labels))[:LABELS]
