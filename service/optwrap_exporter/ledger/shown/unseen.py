"""The steps of the optimizer's state that nobody observed. Pure."""

from typing import NamedTuple

from optwrap_exporter.ledger.state.process import ProcessState
from optwrap_exporter.ledger.state.run import RunState


class Unseen(NamedTuple):
    """Steps of the optimizer's state that no incarnation covers."""

    steps: int
    not_finite: int
    """How many of them had non-finite gradients, as far as the counters of the incarnations beside them tell."""


class _Span(NamedTuple):
    """The steps that an incarnation covers, and the non-finite steps of the state at both ends."""

    before: int
    last: int
    not_finite_before: int | None
    """None if it is not kept, as in a compacted incarnation."""
    not_finite_after: int | None


def unseen(run: RunState, leading: ProcessState) -> Unseen:
    """What nobody observed: before reporting began, or in a loop that returned its last state only."""
    now = leading.incarnation.totals
    spans = [_Span(now.steps, now.steps, now.not_finite_steps, None)]
    spans += [_Span(first - 1, last, None, None) for past in run.past.sums for first, last in past.covered]
    for process in run.processes.values():
        for state in process.incarnations.values():
            start, end = state.baseline, state.totals
            spans.append(_Span(start.steps, end.steps, start.not_finite_steps, end.not_finite_steps))
        for total in process.sums.values():
            spans += [_Span(first - 1, last, None, None) for first, last in total.covered]
    reached, not_finite = 0, 0
    at_reached: int | None = 0
    steps = 0
    for span in sorted((span for span in spans if span.before <= now.steps), key=lambda span: span[:2]):
        if span.before > reached:
            steps += span.before - reached
            if at_reached is not None and span.not_finite_before is not None:
                not_finite += max(0, span.not_finite_before - at_reached)
            reached, at_reached = span.before, span.not_finite_before
        if span.last > reached:
            reached, at_reached = span.last, span.not_finite_after
    return Unseen(steps, not_finite)
