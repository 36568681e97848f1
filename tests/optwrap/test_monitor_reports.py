"""What is in a report: totals, step records, their times and names, and what fits into memory."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from optwrap_exporter.wire import requests as wire

from optwrap._monitor.account import Account, Observation
from optwrap._monitor.sending.encode import Identity
from optwrap._monitor.sending.outbox import Outbox
from optwrap._reading.counters import MAX_COUNT
from optwrap._reading.unpack import Reading, Totals
from tests.optwrap.monitoring import PARAMETERS, Books, Training, counts
from tests.optwrap.simulated_monitor import SOURCE, SimulatedMonitor


def test_the_hello_is_all_zeros_and_comes_before_any_step() -> None:
    """The first increase of a counter is seen only if the counter exists before."""
    sim = SimulatedMonitor()
    sim.step()
    sim.run(0.1)
    hello = sim.books.order[0]
    assert (hello["seq"], hello["oldest_held"], hello["state"]) == (1, 1, "starting")
    assert counts(hello["totals"]) == counts(hello["at_start"]) == {}
    assert hello["steps"]["step"] == []
    assert sim.books.totals() == {"applied": 1}


def test_a_report_has_exactly_the_fields_of_the_wire() -> None:
    """No more: an exporter refuses fields that it does not know."""
    sim = SimulatedMonitor()
    sim.step("skipped_not_finite", {"head": 1})
    sim.run(1.0)
    report = sim.books.order[-1]
    assert list(report) == [
        *("run", "process", "incarnation", "attempt", "seq", "oldest_held", "interval", "sent_at", "state", "source"),
        *("totals", "at_start", "gauges", "steps", "offenders", "dropped"),
    ]
    assert list(report["totals"]) == ["steps", "gradient_steps", "not_finite_steps", "outcomes", "parameters"]


def test_a_resumed_training_starts_an_incarnation_after_the_hello() -> None:
    """at_start never changes within an incarnation."""
    sim = SimulatedMonitor()
    for _ in range(5):
        sim.training.step()
    sim.run(1.5)
    sim.observe()
    sim.run(1.5)
    first, second = sim.books.incarnations().values()
    assert [counts(report["at_start"]) for report in first] == [{}] * len(first)
    assert counts(second[0]["at_start"]) == {"applied": 4}
    assert second[0]["seq"] == 1
    assert second[0]["attempt"] == first[0]["incarnation"], "both are of one launch"
    assert sim.books.totals() == {"applied": 1}


def test_a_clock_that_is_set_back_does_not_set_back_sent_at() -> None:
    """The exporter orders reports by sent_at. The times of steps follow the clock as it is."""
    sim = SimulatedMonitor()
    for _ in range(4):
        sim.step()
        sim.run(1.0)
        sim.set_back += 300
    sent = [report["sent_at"] for report in sim.books.order]
    assert sent == sorted(sent)
    assert (sent[0], sent[-1]) == (1000, pytest.approx(1003, abs=0.1))
    times = [time for report in sim.books.order for time in report["steps"]["time"]]
    assert times == pytest.approx([1000, 1001 - 300, 1002 - 600, 1003 - 900], abs=0.1)


def test_consecutive_steps_get_times_between_two_observations() -> None:
    """Four steps of a scan, observed 4 s after the step before, get times one second apart."""
    sim = SimulatedMonitor()
    sim.run(0.01)
    began = sim.now = 2000.0
    sim.step()
    sim.now = began + 4
    block = np.stack([np.array(sim.training.step().words()) for _ in range(4)])
    sim.inbox.put(block)
    sim.run(1.0)
    steps = sim.books.order[-1]["steps"]
    assert steps["step"] == [1, 2, 3, 4, 5]
    assert steps["time"] == [began, began + 1, began + 2, began + 3, began + 4]
    assert steps["interpolated"] == [False, True, True, True, True]


def test_a_block_observed_twice_is_counted_once() -> None:
    """All its rows, or those that a later block repeats."""
    sim = SimulatedMonitor()
    block = np.stack([np.array(sim.training.step().words()) for _ in range(6)])
    for rows in (block[:4], block[:4], block):
        sim.inbox.put(rows)
    sim.run(1.0)
    assert [step for _, step in sim.books.steps()] == [1, 2, 3, 4, 5, 6]
    assert sim.books.totals() == {"applied": 6}


def test_replicas_of_a_step_are_one_step() -> None:
    """Equal rows, as pmap returns them. The same rows again change nothing."""
    sim = SimulatedMonitor()
    block = np.stack([np.array(sim.training.step("skipped_not_finite", {"head": 2}).words())] * 8)
    sim.inbox.put(block)
    sim.inbox.put(block)
    sim.run(1.0)
    report = sim.books.order[-1]
    assert report["steps"]["step"] == [1]
    assert "interpolated" not in report["steps"]
    assert report["offenders"] == [{"step": 1, "parameter": "head", "not_finite": 2}]


def test_rows_whose_steps_fall_are_ignored(caplog: pytest.LogCaptureFixture) -> None:
    """With one line that shows the steps. Their records are dropped; the next valid reading has their totals."""
    sim = SimulatedMonitor()
    first, _, third = [np.array(sim.training.step().words()) for _ in range(3)]
    for _ in range(3):
        sim.inbox.put(np.stack([third, first]))
    sim.run(1.0)
    (line,) = [record.getMessage() for record in caplog.records if record.name == "optwrap"]
    assert "rows of steps 3, 1" in line
    assert sim.books.totals() == {}
    sim.observe()
    sim.run(1.0)
    assert sim.books.totals() == {"applied": 1}, "counting starts just before the first reading"
    assert sim.books.dropped()["steps"] == 6


def test_the_newest_reading_enters_a_full_queue() -> None:
    """Totals are right and lost records are counted after a thousand readings without the thread."""
    sim = SimulatedMonitor(queue=16)
    sim.step()
    sim.run(0.1)
    for _ in range(1000):
        sim.step()
    sim.run(2.0)
    assert sim.books.totals() == {"applied": 1001}
    assert len(sim.books.steps()) == 17
    assert sim.books.dropped() == {"steps": 984, "bad_steps": 0}


def test_counting_starts_at_the_first_reading_even_if_it_was_dropped() -> None:
    """Otherwise steps before the oldest queued reading would be missing."""
    sim = SimulatedMonitor(queue=16)
    for _ in range(100):
        sim.step()
    sim.run(2.0)
    assert sim.books.totals() == {"applied": 100}
    assert sim.books.dropped() == {"steps": 83, "bad_steps": 0}


def test_an_hour_without_an_exporter_is_bounded_and_loses_no_total() -> None:
    """100 steps a second, every thousandth bad: all totals and bad records arrive; the missing ones are counted."""
    account = Account(lambda: "e")
    outbox = Outbox(account, Identity("r", 0, "a", 1.0))
    training = Training()
    good = training.step().reading()
    bad = training.saved().step("skipped_not_finite", {"head": 1, PARAMETERS[0]: 3}).reading()
    outcomes, bads = dict(good.totals.outcomes), 0
    hello = outbox.build_hello(SOURCE, 0.0)
    for n in range(1, 360_001):
        is_bad = n % 1000 == 0
        bads += is_bad
        one = bad if is_bad else good
        totals = Totals(
            {**outcomes, "applied": n - bads, "skipped_not_finite": bads},
            bads,
            {PARAMETERS[0]: bads, "head": bads} if bads else {},
        )
        reading = Reading(totals, one.outcome, one.finite, one.norm, one.nonfinite_parameters, one.gauges)
        account.add(Observation(reading, b"%d" % n, n / 100, training.layout))
        if n % 10_000 == 0:
            assert account.backlog.weight <= 65_536
    books = Books()
    books.take(hello.body)
    outbox.acknowledge(hello.incarnation, hello.seq)
    while (report := outbox.build(SOURCE, 3600.0, heartbeat=False)) is not None:
        assert len(report.body) < 4 * 2**20, "the exporter's limit"
        wire.Report.model_validate_json(report.body)
        outbox.acknowledge(report.incarnation, books.take(report.body)["acknowledged"])
    assert books.totals() == {
        "applied": 360_000 - 360,
        "skipped_not_finite": 360,
        "not_finite_steps": 360,
        f"parameter {PARAMETERS[0]}": 360,
        "parameter head": 360,
    }
    steps = {step for _, step in books.steps()}
    assert {n for n in range(1, 360_001) if n % 1000 == 0} <= steps
    assert books.dropped() == {"steps": 360_000 - len(steps), "bad_steps": 0}
    assert outbox.empty


def test_without_names_parameters_are_numbered() -> None:
    """An instrument that was not given the Monitor describes nothing. Its readings count nevertheless."""
    sim = SimulatedMonitor()
    sim.inbox.layout = None
    for _ in range(3):
        sim.step("skipped_not_finite", {"head": 1})
    sim.run(2.0)
    assert sim.books.totals() == {"skipped_not_finite": 3, "not_finite_steps": 3, "parameter leaf_2": 3}


def test_names_that_the_wire_forbids_are_escaped() -> None:
    """Control characters, lone surrogates, empty and very long paths: the report is accepted."""
    sim = SimulatedMonitor()
    sim.training = Training(("", "a\nb", "\ud800", "x" * 2000))
    sim.inbox.layout = sim.training.layout
    sim.step("skipped_not_finite", dict.fromkeys(sim.training.layout.parameters, 1))
    sim.run(1.0)
    names = list(sim.books.order[-1]["totals"]["parameters"])
    assert names == [".", "a\\nb", "\\ud800", "x" * 1024]


def test_parameters_whose_escaped_names_are_equal_are_one() -> None:
    """Its values are the sum; its steps are no fewer than those of either, and no more than all steps."""
    sim = SimulatedMonitor()
    endless, escaped = "x" * 2000, "a\nb"
    sim.training = Training((endless, endless + "y", escaped, "a\\nb"))
    sim.inbox.layout = sim.training.layout
    for offenders in ({endless: 1, endless + "y": 2, escaped: 4}, {escaped: 1}, {endless + "y": 1, "a\\nb": 8}):
        sim.step("skipped_not_finite", offenders)
    sim.run(1.0)
    report = sim.books.order[-1]
    assert report["totals"]["parameters"] == {"x" * 1024: 2, "a\\nb": 2}
    assert [(one["step"], one["parameter"], one["not_finite"]) for one in report["offenders"]] == [
        (1, "x" * 1024, 3),
        (1, "a\\nb", 4),
        (2, "a\\nb", 1),
        (3, "x" * 1024, 1),
        (3, "a\\nb", 8),
    ]


@hypothesis.given(
    outcomes=st.lists(st.sampled_from(["applied", "accumulated", "skipped_not_finite"]), min_size=1, max_size=8),
    offenders=st.lists(st.sets(st.sampled_from(PARAMETERS), max_size=2), min_size=8, max_size=8),
    room=st.tuples(*[st.integers(0, 2)] * 4),
)
@hypothesis.settings(max_examples=100, deadline=None)
def test_saturated_counters_make_valid_reports(
    outcomes: list[str], offenders: list[set[str]], room: tuple[int, int, int, int]
) -> None:
    """Each counter stops at its largest value by itself, so they no longer add up. The totals are the last ones."""
    full = int(MAX_COUNT)
    sim = SimulatedMonitor()
    sim.network.parse = wire.Report.model_validate_json  # whether counters that have stopped add up is another matter
    training = sim.training
    training.outcomes.update({"skipped_not_finite": full - room[0], "applied": full - room[1]})
    training.not_finite_steps = full - room[2]
    training.parameters[PARAMETERS[0]] = full - max(room[2], room[3])
    for outcome, bad in zip(outcomes, offenders, strict=False):
        training.step(outcome, dict.fromkeys(sorted(bad), 1))
        for counts_of in (training.outcomes, training.parameters):
            counts_of.update({name: min(n, full) for name, n in counts_of.items()})
        training.not_finite_steps = min(training.not_finite_steps, full)
        sim.observe()
        sim.run(1.0)
    last = sim.books.order[-1]["totals"]
    assert counts({**last, "parameters": {}}) == {
        name: n for name, n in counts(training).items() if not name.startswith("parameter")
    }
