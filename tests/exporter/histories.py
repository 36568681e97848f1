"""For tests: hypothesis histories of runs, with the reports they made and the truth that the totals must come to."""

import dataclasses
from collections import defaultdict
from typing import Any

from hypothesis import strategies as st
from optwrap_exporter.ledger.state.counters import Counts
from optwrap_exporter.wire.requests import Counters, Report
from optwrap_exporter.wire.vocabulary import OUTCOMES

from tests.exporter.trainer import START, State, Trainer, TurnedClock, first_replica, minus, replica_counters

PATHS = ("embed/w", "layer_0/w", "layer_0/b", "head/w")


@dataclasses.dataclass
class History:
    """What the processes of one run did."""

    trainers: list[Trainer]
    """In the order of their starts."""
    reports: dict[str, list[Report]]
    """By incarnation, in the order in which they were made; the last tells all."""
    shares: dict[str, Counts]
    """By incarnation, what was counted in it."""

    def __repr__(self) -> str:
        incarnations = [(t.process, t.attempt, t.incarnation, len(self.reports[t.incarnation])) for t in self.trainers]
        return f"History{incarnations}"

    @property
    def processes(self) -> list[int]:
        return sorted({trainer.process for trainer in self.trainers})

    def of_process(self, process: int) -> Counts:
        """The truth about a process: all that its incarnations counted."""
        total = Counts()
        for trainer in self.trainers:
            if trainer.process == process:
                total = total.plus(self.shares[trainer.incarnation])
        return total

    def of_run(self) -> Counts:
        """The truth about the run: of each attempt what the process that got furthest counted, field by field."""
        attempts: dict[str, dict[int, Counts]] = defaultdict(dict)
        for trainer in self.trainers:
            done = attempts[trainer.attempt].get(trainer.process, Counts())
            attempts[trainer.attempt][trainer.process] = done.plus(self.shares[trainer.incarnation])
        total = Counts()
        for processes in attempts.values():
            most = Counts()
            for counts in processes.values():
                most = most.maximum(counts)
            total = total.plus(most)
        return total


def counts(counters: dict[str, Any]) -> Counts:
    return Counts.of(Counters.model_validate(counters))


@st.composite
def a_step(draw: st.DrawFn) -> tuple[str, dict[str, int], dict[str, Any] | None]:
    """An outcome, offenders, and which replicas they came from."""
    outcome = draw(st.sampled_from(OUTCOMES))
    bad = outcome in {"skipped_not_finite", "accepted_not_finite"} or (outcome != "applied" and draw(st.booleans()))
    offenders = draw(st.dictionaries(st.sampled_from(PATHS), st.integers(1, 9), min_size=1)) if bad else {}
    number = draw(st.none() | st.integers(0, 3)) if bad else None
    return outcome, offenders, None if number is None else first_replica(number, number // 2, f"cpu:{3 - number}", 1, 4)


steps = st.lists(a_step(), max_size=6)


@st.composite
def histories(draw: st.DrawFn, most_processes: int = 3) -> History:
    """Runs of a few attempts, resumed from some checkpoint or from nothing, with rollbacks within them."""
    clock = TurnedClock()
    processes = draw(st.integers(1, most_processes))
    history = History([], {}, {})
    checkpoints = [State()]
    for launch in range(draw(st.integers(1, 3))):
        resumed = draw(st.sampled_from(checkpoints))
        program = draw(st.lists(steps, min_size=1, max_size=3))  # between them the processes roll back
        for process in range(processes):
            state = resumed
            for planned in program:
                # A process that is killed does not get to the end of what the others do.
                part = planned[: draw(st.integers(0, len(planned)))] if process else planned
                trainer = Trainer(
                    clock, process=process, attempt=f"attempt-{launch}", state=state.copy(), process_count=processes
                )
                began = state.copy()
                if began.steps:
                    # The hello was zero; the first reading of a resumed state begins an incarnation of its own.
                    hello = Trainer(clock, process=process, attempt=trainer.attempt, process_count=processes)
                    history.trainers.append(hello)
                    history.reports[hello.incarnation] = [hello.hello()]
                    history.shares[hello.incarnation] = Counts()
                    clock.advance(0.5)
                reports = [trainer.report() if began.steps else trainer.hello()]
                for outcome, offenders, replica in part:
                    clock.advance(0.5)
                    trainer.step(outcome, norm="NaN" if offenders else 1.0, offenders=offenders, replica=replica)
                    checkpoints.append(trainer.state.copy())
                    if draw(st.booleans()):
                        reports.append(trainer.report())
                clock.advance(0.5)
                reports.append(trainer.report(draw(st.sampled_from(["running", "finished", "failed", "stopped"]))))
                history.trainers.append(trainer)
                history.reports[trainer.incarnation] = reports
                clock.advance(0.5)  # no two incarnations say anything at the same moment
                history.shares[trainer.incarnation] = counts(
                    minus(trainer.state, began) | replica_counters(trainer.first_replicas)
                )
                state = draw(st.sampled_from([began, *checkpoints]))
        clock.advance(draw(st.sampled_from([1.0, 60.0])))
    assert clock.now >= START
    return history


def delivered(draw: st.DataObject, history: History) -> list[Report]:
    """The history's reports as a bad network brings them: some never, some twice, in any order."""
    arriving: list[Report] = []
    for reports in history.reports.values():
        kept = [report for report in reports[:-1] if draw.draw(st.booleans())]
        arriving += [*kept, reports[-1]]
    places = range(len(arriving))
    again = draw.draw(st.lists(st.sampled_from(places), max_size=5))
    order = draw.draw(st.permutations([*places, *again]))
    return [arriving[place] for place in order]
