"""Readings of loops that were not written for optwrap: nested scans, hidden loops, ensembles, on_step and latest."""

import dataclasses
import json
import threading
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optwrap_exporter.wire.consistency import parse_report

import optwrap
from optwrap._monitor.local.callback import Caller
from optwrap._monitor.monitor import Monitor
from tests.optwrap.monitoring import Books, StubExporter, Training, counts, log_lines


def trained(*outcomes: str, training: Training | None = None) -> tuple[Training, Any]:
    """The readings of these steps, uint32[n, words]; "bad" is a skipped non-finite step."""
    training = training or Training(distinct=True)
    rows = []
    for outcome in outcomes:
        if outcome == "bad":
            training.step("skipped_not_finite", {"head": 2})
        elif outcome != "none":
            training.step(outcome)
        rows.append(np.array(training.words()))
    return training, np.stack(rows)


def of_run(stub: StubExporter, run: str) -> Books:
    """What the exporter has of one run."""
    books = Books()
    for _, _, body in stub.requests:
        if f'"run":"{run}"'.encode() in body:
            books.take(body)
    return books


STEPS = ("applied", "bad", "applied", "applied", "bad", "applied")


@pytest.mark.parametrize(
    "shape",
    [(6,), (2, 3), (1, 3, 2), (2, 1, 3, 1)],
    ids=["one scan", "two", "three", "four"],
)
@pytest.mark.parametrize("replicas", [None, 0, -1], ids=["one device", "replicas first", "replicas last"])
def test_leading_axes_are_time_in_row_major_order(
    stub: StubExporter, make: Callable[..., Monitor], shape: tuple[int, ...], replicas: int | None
) -> None:
    """As of nested scans. Along the axis of a pmap all rows are equal."""
    training, rows = trained(*STEPS)
    monitor = make()
    monitor.describe(training.layout)
    nested = rows.reshape(*shape, -1)
    if replicas is not None:
        nested = np.stack([nested] * 2, axis=0 if replicas == 0 else len(shape))
    monitor.observe(nested)
    assert monitor.flush()
    assert stub.books.totals() == counts(training)
    assert [step for _, step in stub.books.steps()] == [1, 2, 3, 4, 5, 6]


def test_a_scan_whose_body_does_not_always_step_counts_each_step_once(
    stub: StubExporter, make: Callable[..., Monitor]
) -> None:
    """As in reinforcement learning that begins to learn later, or learns every second time."""
    training, rows = trained("none", "none", "applied", "none", "bad", "none")
    monitor = make()
    monitor.describe(training.layout)
    monitor.observe(rows)
    assert monitor.flush()
    assert stub.books.totals() == counts(training)
    assert [step for _, step in stub.books.steps()] == [1, 2]


def test_a_scan_that_returns_every_third_reading_has_all_totals(
    stub: StubExporter, make: Callable[..., Monitor]
) -> None:
    training, rows = trained("none", *STEPS)
    monitor = make()
    monitor.describe(training.layout)
    monitor.observe(rows[::3])
    assert monitor.flush()
    assert stub.books.totals() == counts(training)
    assert [step for _, step in stub.books.steps()] == [3, 6]


def test_rows_that_fall_are_refused_and_counted_as_dropped(
    stub: StubExporter, make: Callable[..., Monitor], caplog: pytest.LogCaptureFixture
) -> None:
    """The readings of an ensemble without `members`: the line names the option."""
    _, first = trained("applied", "applied")
    training, second = trained("bad", "applied")
    monitor = make()
    monitor.describe(training.layout)
    monitor.observe(np.stack([first, second]))
    assert not monitor.flush()
    assert stub.books.totals() == {}
    assert stub.books.dropped() == {"steps": 4, "bad_steps": 0}
    (line,) = log_lines(caplog)
    assert "Monitor(members=n)" in line


@pytest.mark.parametrize("counts_from", [None, "first_reading", "zero"])
def test_a_hidden_loop_counts_all_its_steps_if_it_says_that_it_began_them(
    stub: StubExporter, make: Callable[..., Monitor], caplog: pytest.LogCaptureFixture, counts_from: Any
) -> None:
    """Without the option one line names it; with either value none."""
    training, rows = trained(*STEPS)
    monitor = make(counts_from=counts_from)
    monitor.describe(training.layout)
    monitor.observe(rows[-1])
    assert monitor.flush()
    assert stub.books.totals() == (counts(training) if counts_from == "zero" else {"applied": 1})
    lines = log_lines(caplog)
    assert len(lines) == (counts_from is None)
    if lines:
        assert "that of step 6; 5 steps before it, 2 of them non-finite" in lines[0]
        assert 'counts_from="zero"' in lines[0]


def test_after_a_rollback_counting_from_zero_starts_at_the_older_state(
    stub: StubExporter, make: Callable[..., Monitor]
) -> None:
    """Only the first reading counts from zero."""
    training, _ = trained("applied", "applied")
    saved = training.saved()
    monitor = make(counts_from="zero")
    monitor.describe(training.layout)
    _, rows = trained("bad", "applied", training=training)
    monitor.observe(rows[-1])
    _, rows = trained("applied", training=saved)
    monitor.observe(rows[-1])
    assert monitor.flush()
    assert stub.books.totals() == {
        "applied": 4, "skipped_not_finite": 1, "not_finite_steps": 1, "parameter head": 1
    }  # fmt: skip


def ensemble(monitor: Any) -> tuple[Any, Any]:
    """A vmapped step and its first states, of three members; each has its own gradients."""
    tx = optwrap.instrument(optwrap.apply_if_finite(optax.sgd(0.1), 9), monitor)
    params = {"w": jnp.ones(2), "b": jnp.ones(())}

    def step(state: Any, value: Any) -> Any:
        _, state = tx.update({"w": jnp.full(2, value), "b": jnp.ones(())}, state, params)
        return state, optwrap.reading(state)

    return jax.vmap(step), jax.vmap(lambda _: tx.init(params))(jnp.arange(3))


def test_each_member_of_an_ensemble_is_a_run(stub: StubExporter, make: Callable[..., Monitor]) -> None:
    """With the parameters' names, and its own totals: step by step, and the steps of a scan at once."""
    monitor = make(members=3)
    step, states = ensemble(monitor)
    values = np.ones((6, 3), np.float32)
    values[1, 1] = values[3:5, 2] = np.nan
    jitted = jax.jit(step)
    for row in values[:2]:
        states, words = jitted(states, row)
        monitor.observe(words)
    _, words = jax.jit(lambda states, rows: jax.lax.scan(step, states, rows))(states, values[2:])
    monitor.observe(jnp.moveaxis(words, 1, 0))
    assert monitor.flush()
    totals = [of_run(stub, f"r.{member}").totals() for member in range(3)]
    assert totals == [
        {"applied": 6},
        {"applied": 5, "skipped_not_finite": 1, "not_finite_steps": 1, "parameter w": 1},
        {"applied": 4, "skipped_not_finite": 2, "not_finite_steps": 2, "parameter w": 2},
    ]
    assert [[step for _, step in of_run(stub, f"r.{member}").steps()] for member in range(3)] == [
        [1, 2, 3, 4, 5, 6]
    ] * 3
    newest = [monitor.latest(member) for member in range(3)]
    assert [reading and reading.totals.not_finite_steps for reading in newest] == [0, 1, 2]
    monitor.close("failed")
    assert {r["run"]: r["state"] for r in stub.books.order} == {f"r.{member}": "failed" for member in range(3)}
    with pytest.raises(IndexError, match="member is 3; allowed: 0 to 2"):
        monitor.latest(3)


def test_scalars_go_with_the_step_of_their_row(make: Callable[..., Monitor]) -> None:
    """Through repeated rows, replicas and members: replicas have their mean, and so have rows that repeat a step."""
    records: list[optwrap.StepRecord] = []
    training, rows = trained("none", "applied", "none", "bad")
    monitor = make(on_step=records.append, members=2)
    monitor.describe(training.layout)
    both = np.stack([np.stack([rows] * 2, axis=1)] * 2)  # [members, time, replicas, words]
    monitor.observe(both, loss=np.arange(16, dtype=np.float32).reshape(2, 4, 2), rate=0.5)
    monitor.close()
    assert [(r.run, r.step, dict(r.reading.scalars)) for r in records] == [
        ("r.0", 1, {"loss": 3.5, "rate": 0.5}),
        ("r.0", 2, {"loss": 6.5, "rate": 0.5}),
        ("r.1", 1, {"loss": 11.5, "rate": 0.5}),
        ("r.1", 2, {"loss": 14.5, "rate": 0.5}),
    ]


def test_an_ensemble_of_another_size_is_refused(
    stub: StubExporter, make: Callable[..., Monitor], caplog: pytest.LogCaptureFixture
) -> None:
    """What is lost is counted, a share for each member."""
    training, rows = trained(*STEPS)
    monitor = make(members=3)
    monitor.describe(training.layout)
    monitor.observe(rows)
    assert not monitor.flush()
    assert {run: of_run(stub, run).dropped()["steps"] for run in ("r.0", "r.1", "r.2")} == {
        "r.0": 2,
        "r.1": 2,
        "r.2": 2,
    }
    (line,) = log_lines(caplog)
    assert "the member as the first axis, uint32[3, ..., words]" in line


def test_one_refused_member_does_not_hold_up_the_others(stub: StubExporter, make: Callable[..., Monitor]) -> None:
    ok = stub.ok

    def refuse_the_first(body: bytes, connection: Any) -> Any:
        return (422, {}, b"{}") if b'"run":"r.0"' in body else ok(body, connection)

    stub.answer = refuse_the_first
    monitor = make(members=2)
    training, rows = trained("applied", "bad")
    monitor.describe(training.layout)
    monitor.observe(np.stack([rows, rows])[:, :, None])
    stub.wait(lambda stub: stub.books.totals() == counts(training))
    assert {r["run"] for r in stub.books.order} == {"r.1"}


@pytest.mark.parametrize("members", [0, -1, 257, True, "2", 1.5])
def test_a_wrong_size_of_an_ensemble_is_an_error(make: Callable[..., Monitor], members: Any) -> None:
    with pytest.raises(ValueError, match=r"members: got .*allowed: .* from 1 to 256"):
        make(members=members)


@pytest.mark.parametrize("replicated", [True, False])
def test_a_report_says_whether_the_processes_train_copies_of_their_own(
    stub: StubExporter, make: Callable[..., Monitor], replicated: bool
) -> None:
    """As the exporter reads it: without the field they train the same parameters."""
    monitor = make(replicated=replicated)
    training, rows = trained("applied")
    monitor.describe(training.layout)
    monitor.observe(rows)
    stub.wait(lambda stub: stub.books.totals() == counts(training))
    assert {parse_report(json.dumps(report)).replicated for report in stub.books.order} == {replicated}
    assert {"replicated" in report for report in stub.books.order} == {not replicated}


def test_a_wrong_counts_from_or_on_step_is_an_error(make: Callable[..., Monitor]) -> None:
    with pytest.raises(ValueError, match="counts_from: got 'now'; allowed: 'first_reading' or 'zero'"):
        make(counts_from="now")
    with pytest.raises(ValueError, match="replicated: got 'no'; allowed: True or False"):
        make(replicated="no")
    with pytest.raises(TypeError, match="on_step: got 3; allowed: a callable"):
        make(on_step=3)
    with pytest.raises(ValueError, match="members=2; allowed: one of them"):
        make(members=2, stop=optwrap.StopPolicy(not_finite_streak=3))


@pytest.mark.parametrize("endpoint", ["exporter", "off"])
def test_on_step_gets_a_record_of_each_step(make: Callable[..., Monitor], endpoint: str) -> None:
    """In order, once each, with or without an exporter; `latest` is the newest of them."""
    records: list[optwrap.StepRecord] = []
    monitor = make(on_step=records.append, **({"endpoint": "off", "run": None} if endpoint == "off" else {}))
    training, rows = trained(*STEPS)
    monitor.describe(training.layout)
    assert monitor.latest() is None
    monitor.observe(rows)
    monitor.observe(rows[-1])
    monitor.close()
    assert [(r.step, r.outcome, r.finite) for r in records] == [
        (i + 1, "skipped_not_finite" if kind == "bad" else "applied", kind != "bad") for i, kind in enumerate(STEPS)
    ]
    assert {(r.run, r.interpolated, r.lost) for r in records} == {("off" if endpoint == "off" else "r", True, 0)}
    assert records[4].reading.nonfinite_parameters == {"head": 2}
    assert records[0].norm == pytest.approx(1 + 1 / 1024)
    assert monitor.latest() == records[-1].reading == optwrap.unpack(rows[-1], monitor)
    with pytest.raises(dataclasses.FrozenInstanceError):
        records[0].run = "other"  # type: ignore[misc]


def test_an_on_step_that_raises_is_logged_once_and_called_again(
    stub: StubExporter, make: Callable[..., Monitor], caplog: pytest.LogCaptureFixture
) -> None:
    """Reporting goes on."""
    seen = []

    def on_step(record: optwrap.StepRecord) -> None:
        seen.append(record.step)
        raise OSError("no space left")

    training, rows = trained(*STEPS)
    monitor = make(on_step=on_step)
    monitor.describe(training.layout)
    monitor.observe(rows)
    assert monitor.flush()
    monitor.close()
    assert seen == [1, 2, 3, 4, 5, 6]
    assert stub.books.totals() == counts(training)
    assert [line for line in log_lines(caplog) if "on_step" in line] == ["optwrap: on_step of run r raised"]


def test_a_hanging_on_step_delays_no_report(stub: StubExporter, make: Callable[..., Monitor]) -> None:
    go = threading.Event()
    training, rows = trained(*STEPS)
    monitor = make(on_step=lambda _: go.wait(60))
    monitor.describe(training.layout)
    monitor.observe(rows)
    assert monitor.flush()
    assert stub.books.totals() == counts(training)
    go.set()


def test_a_slow_on_step_loses_the_oldest_records_and_says_how_many(caplog: pytest.LogCaptureFixture) -> None:
    started, go = threading.Event(), threading.Event()
    records: list[optwrap.StepRecord] = []

    def slow(record: optwrap.StepRecord) -> None:
        records.append(record)
        started.set()
        go.wait(60)

    caller = Caller(slow, "r", size=3)
    training = Training()
    for number in range(8):
        caller.put(optwrap.StepRecord("r", 0.0, False, training.step().reading()))
        if not number:
            assert started.wait(60)
    go.set()
    caller.close(60)
    assert [(record.step, record.lost) for record in records] == [(1, 0), (6, 4), (7, 0), (8, 0)]
    (line,) = log_lines(caplog)
    assert "slower than the training; 4 steps were left out" in line


def test_the_names_of_a_reading_come_from_its_monitor(make: Callable[..., Monitor]) -> None:
    """Of an array on the device, with the Monitor on or off, or from a layout."""
    for monitor in (make(), make(endpoint="off")):
        tx = optwrap.instrument(optax.sgd(0.1), monitor)
        params = {"a": jnp.ones(2), "b": jnp.ones(())}
        state = tx.init(params)
        _, state = jax.jit(tx.update)({"a": jnp.array([1.0, jnp.nan]), "b": jnp.ones(())}, state, params)
        words = optwrap.reading(state)
        assert optwrap.unpack(words, monitor).nonfinite_parameters == {"a": 1}
        assert optwrap.unpack(words, monitor.layout).totals.parameters == {"a": 1}
    assert optwrap.unpack(words).nonfinite_parameters == {"leaf_0": 1}
    with pytest.raises(ValueError, match="got a traced value"):
        jax.eval_shape(optwrap.unpack, words)
