"""Processes of one attempt that disagree about a step: who has diverged, said once."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optwrap_exporter.ledger.change.divergence import Vote
from optwrap_exporter.ledger.incidents.summary import answer
from optwrap_exporter.ledger.ledger import Ledger
from optwrap_exporter.wire.incident import Incident

from tests.exporter.stores import Kept
from tests.exporter.trainer import Job, Trainer, TurnedClock, sent, take


class Pod:
    """Processes of one attempt, and the ledger that hears of them."""

    def __init__(self, count: int, *, count_said: int | None = None) -> None:
        self.clock = TurnedClock()
        self.ledger = Ledger(self.clock)
        self.trainers = [Trainer(self.clock, process=p, process_count=count_said or count) for p in range(count)]
        self.events: list[str] = []

    def step(self, norms: Sequence[float | str], outcome: str = "applied") -> None:
        """A step of every process, with its norm."""
        for trainer, norm in zip(self.trainers, norms, strict=True):
            finite = not isinstance(norm, str)
            trainer.step(outcome if finite else "skipped_not_finite", norm=norm, finite=finite)

    def report(self, order: Sequence[int] | None = None, **changes: Any) -> None:
        """A report of every process."""
        for process in order or range(len(self.trainers)):
            report = self.trainers[process].json(**changes)
            self.events += [event.kind for event in take(self.ledger, sent(report)).events]

    @property
    def diverged(self) -> list[Incident]:
        (run,) = self.ledger.shown()
        found = sorted((*run.incidents, *run.past_incidents), key=lambda one: one.id)
        return [answer("lm", one) for one in found if one.kind == "diverged"]

    @property
    def healths(self) -> list[str]:
        return [view.health for view in self.ledger.views()]


ODD = [0.945] * 5 + [8018.0] + [0.945] * 2


@pytest.mark.parametrize("order", [range(8), (5, *range(5), 6, 7), (7, 6, 5, 4, 3, 2, 1, 0)], ids=["0", "5", "7"])
def test_the_majority_names_the_process_that_diverged(order: Sequence[int]) -> None:
    """Whoever reports first. All others stay well."""
    pod = Pod(8)
    pod.step([0.945] * 8)
    pod.report(order)
    assert pod.diverged == []
    pod.step(ODD)
    pod.report(order)
    (found,) = pod.diverged
    assert (found.state, found.processes, found.host, found.device) == ("open", [5], "node-5", "cpu")
    assert (found.first_step, found.last_step, found.last_clean_step) == (2, 2, 1)
    assert pod.healths == ["ok"] * 5 + ["diverged"] + ["ok"] * 2
    assert pod.ledger.health("lm") == "diverged"
    assert found.summary.startswith("process 5 on node-5 (cpu) has norm 8,018 where ")
    assert found.summary.endswith("others have 0.945 at step 2, the first that differs")


def test_it_is_one_incident_and_one_event_however_long_it_lasts() -> None:
    pod = Pod(8)
    for _ in range(30):
        pod.clock.advance(1)
        pod.step(ODD)
        pod.report()
    (found,) = pod.diverged
    assert (found.first_step, found.last_step, found.steps) == (1, 30, 30)
    assert pod.events.count("diverged") == 1


def test_the_sentence_counts_the_others() -> None:
    """At first those that had reported when a majority was known."""
    pod = Pod(8)
    for others in (5, 7):
        pod.step([3.0] + [1.0] * 7)
        pod.report()
        assert pod.diverged[0].summary == (
            f"process 0 on node-0 (cpu) has norm 3 where {others} others have 1 at step 1, the first that differs"
        )


def test_of_two_processes_both_are_named() -> None:
    pod = Pod(2)
    pod.step([1.0, 2.0])
    pod.report()
    (found,) = pod.diverged
    assert found.processes == [0, 1]
    assert found.summary == "processes 0 and 1 disagree: norm 1 and 2 at step 1, the first that differs"
    assert pod.healths == ["diverged", "diverged"]


def test_a_disagreement_of_two_waits_for_the_others() -> None:
    """Before most have reported, nobody knows who is right."""
    pod = Pod(4)
    pod.step([1.0] * 4)
    pod.report()
    pod.step([1.0, 2.0, 2.0, 2.0])
    pod.report([0, 1])
    assert pod.diverged == []
    pod.report([2, 3])
    assert pod.diverged[0].processes == [0]


def test_two_against_two_are_all_named() -> None:
    pod = Pod(4)
    pod.step([1.0, 1.0, 2.0, 2.0])
    pod.report()
    assert pod.diverged[0].processes == [0, 1, 2, 3]


def test_only_those_that_report_are_waited_for() -> None:
    """Two of 64 processes report: soon after the start the others may still come."""
    pod = Pod(2, count_said=64)
    pod.step([1.0, 2.0])
    pod.report()
    pod.clock.advance(29)
    pod.step([1.0, 2.0])
    pod.report()
    assert pod.diverged == []
    pod.clock.advance(1)
    pod.step([1.0, 2.0])
    pod.report()
    assert pod.diverged[0].processes == [0, 1]


def test_an_outcome_that_differs_is_divergence_and_is_named() -> None:
    pod = Pod(3)
    pod.step([1.0, "NaN", 1.0])
    pod.report()
    assert pod.diverged[0].summary == (
        'process 1 on node-1 (cpu) has outcome "skipped, non-finite" where 2 others have '
        '"gradient step" at step 1, the first that differs'
    )


@pytest.mark.parametrize(
    "norms",
    [
        [1.0, 1.009, 0.995],
        ["NaN", "NaN", "NaN"],
        ["NaN", "Infinity", "NaN"],
        [0.0, 0.0, 0.0],
        [1e-30, 1.005e-30, 1e-30],
    ],
)
def test_norms_within_a_hundredth_and_non_finite_ones_agree(norms: list[float | str]) -> None:
    """Reductions in another order differ by rounding; whether a norm is NaN or infinite says nothing."""
    pod = Pod(3)
    for _ in range(5):
        pod.step(norms)
        pod.report()
    assert pod.diverged == []


def test_processes_that_train_copies_of_their_own_are_not_compared() -> None:
    """Local SGD: their Monitors say replicated=False."""
    pod = Pod(3)
    for _ in range(3):
        pod.step([1.0, 2.0, 3.0])
        pod.report(replicated=False)
    assert pod.diverged == []
    assert pod.ledger.health("lm") == "ok"


def test_a_second_process_that_diverges_joins_the_incident() -> None:
    pod = Pod(5)
    pod.step([1.0, 1.0, 9.0, 1.0, 1.0])
    pod.report()
    pod.step([1.0, 1.0, 9.0, 1.0, 4.0])
    pod.report()
    (found,) = pod.diverged
    assert found.processes == [2, 4]
    assert pod.events.count("diverged") == 1
    assert pod.healths == ["ok", "ok", "diverged", "ok", "diverged"]


def test_divergence_stays_until_a_rollback_to_before_it() -> None:
    pod = Pod(3)
    pod.step([1.0, 1.0, 1.0])
    pod.report()
    clean = [trainer.state.copy() for trainer in pod.trainers]
    pod.step([1.0, 9.0, 1.0])
    for _ in range(3):
        pod.step([1.0, 1.0, 1.0])
        pod.clock.advance(1000)
        pod.report()
    assert pod.ledger.health("lm") == "diverged"
    pod.clock.advance(1)
    pod.trainers = [Trainer(pod.clock, process=p, process_count=3, state=state) for p, state in enumerate(clean)]
    pod.step([1.0, 1.0, 1.0])
    pod.report()
    assert pod.diverged[0].state == "closed"
    assert pod.healths == ["ok"] * 3


def test_an_acknowledged_divergence_is_not_reported_again() -> None:
    """But that of another process is."""
    pod = Pod(5)
    pod.step([1.0, 9.0, 1.0, 1.0, 1.0])
    pod.report()
    (run,) = pod.ledger.shown()
    pod.ledger.apply(pod.ledger.acknowledge("lm", run.incidents[0]))
    assert pod.ledger.health("lm") == "ok"
    pod.step([1.0, 9.0, 1.0, 1.0, 1.0])
    pod.report()
    assert [one.state for one in pod.diverged] == ["acknowledged"]
    pod.step([1.0, 9.0, 1.0, 7.0, 1.0])
    pod.report()
    assert [(one.state, one.processes) for one in pod.diverged] == [("acknowledged", [1]), ("open", [3])]


def test_a_restarted_exporter_does_not_say_it_again(kept: Kept) -> None:
    trainers = [Trainer(kept.clock, process=p, process_count=3) for p in range(3)]

    def round_of(kept: Kept) -> None:
        for trainer, norm in zip(trainers, (1.0, 1.0, 5.0), strict=True):
            trainer.step(norm=norm)
            kept.take(trainer.report())

    round_of(kept)
    assert [event.detail["processes"] for event in kept.events("diverged")] == [[2]]
    again = kept.reopened()
    round_of(again)
    round_of(again)
    assert len(again.events("diverged")) == 1
    (found,) = again.store.incidents("lm", kind=["diverged"]).items
    assert (found.processes, found.last_step) == ([2], 3)
    again.store.close()


def test_the_event_has_the_numbers() -> None:
    pod = Pod(3)
    pod.step([1.0, 1.0, 5.0])
    events = [e for t in pod.trainers for e in take(pod.ledger, t.report()).events if e.kind == "diverged"]
    (event,) = events
    assert (event.process, event.step) == (2, 1)
    assert event.detail == {
        "processes": [2],
        "host": "node-2",
        "device": "cpu",
        "incident": 1,
        "process": 2,
        "others": 2,
        "outcomes": {"0": "applied", "2": "applied"},
        "norms": {"0": 1.0, "2": 5.0},
    }


votes = st.builds(
    Vote,
    st.sampled_from(["applied", "skipped_large"]),
    st.floats(0, 1e30) | st.sampled_from([float("nan"), float("inf")]),
)


@given(one=votes, other=votes)
def test_to_agree_is_symmetric(one: Vote, other: Vote) -> None:
    assert one.agrees(other) == other.agrees(one)
    assert one.agrees(one)


def test_the_run_and_its_odd_process_are_critical_over_http(tmp_path: Path) -> None:
    """What an operator reads: the run, the row of the process, the metric, and the incident."""
    from tests.exporter.running import served

    with served(tmp_path) as site:
        jobs = [Job(clock=site.clock, process=p, process_count=8) for p in range(8)]
        for _ in range(3):
            for process, job in enumerate(jobs):
                job.step("applied", 8018.0 if process == 5 else 0.945)
                site.send(job.report())
        run = site.get("/v1/runs/lm")
        assert (run["health"], run["runbook"]) == ("diverged", "OptwrapDiverged")
        assert run["summary"] == (
            "process 5 on node-5 (cpu) has norm 8,018 where 7 others have 0.945 at step 1, the first that differs: "
            "restore a checkpoint at or before 0 on all processes"
        )
        assert [row["health"] for row in run["processes"]] == ["ok"] * 5 + ["diverged"] + ["ok"] * 2
        assert run["incidents_open"] == {"diverged": 1}
        events = site.get("/v1/runs/lm/events", kind="diverged")["items"]
        assert [event["process"] for event in events] == [5]
        metrics = site.scrape()
        assert 'optwrap_run_health{health="diverged",run="lm"} 1.0' in metrics
        assert 'optwrap_process_health{health="diverged",process="5",run="lm"} 1.0' in metrics
        assert 'optwrap_incidents_open{kind="diverged",run="lm"} 1.0' in metrics
