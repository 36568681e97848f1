"""Scalars: the loss and other numbers beside the norm, and hyperparameters that are injected."""

import math
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import optwrap
from optwrap import Layout, Monitor
from optwrap._monitor.backlog import Record
from optwrap._monitor.scalars import Scalars
from optwrap._monitor.worst import Named
from optwrap._reading.scalars import is_name, shortest
from tests.optwrap.monitoring import StubExporter, Training, log_lines

PARAMS = {"w": jnp.ones(3)}


class Listener:
    """An observer that keeps what it gets."""

    def __init__(self) -> None:
        self.layout: Layout | None = None
        self.steps: list[dict[str, Any]] = []

    def describe(self, layout: Layout, *, stepping: bool = False) -> None:
        del stepping
        self.layout = layout

    def observe(self, reading: Any, /, **scalars: Any) -> None:
        self.steps.append({"step": optwrap.unpack(np.atleast_2d(reading)[-1]).step, **scalars})


def reported(stub: StubExporter) -> dict[int, dict[str, Any]]:
    """The scalars of every reported step that are not null."""
    found: dict[int, dict[str, Any]] = {}
    for report in stub.books.order:
        columns = report["steps"]
        for i, step in enumerate(columns["step"]):
            values = {name: column[i] for name, column in columns.get("scalars", {}).items()}
            found[step] = {name: value for name, value in values.items() if value is not None}
    return found


def test_injected_hyperparameters_are_reported_by_themselves() -> None:
    schedule = optax.linear_schedule(1.0, 0.0, 4)
    listener = Listener()
    inner = optax.chain(optax.clip(1.0), optax.inject_hyperparams(optax.sgd)(learning_rate=schedule))
    tx = optwrap.instrument(inner, listener)
    state, found = tx.init(PARAMS), []
    assert listener.layout == Layout(("w",), ("learning_rate",))
    step = jax.jit(tx.update)
    for _ in range(4):
        found.append(optwrap.unpack(np.asarray(optwrap.reading(state)), listener.layout).scalars)
        _, state = step(PARAMS, state, PARAMS)
    assert found == [{}, {"learning_rate": 1.0}, {"learning_rate": 0.75}, {"learning_rate": 0.5}]


def test_hyperparameters_of_one_name_are_told_apart_and_arrays_are_left_out() -> None:
    def odd(scale: Any, mask: Any) -> Any:
        del mask
        return optax.scale(scale)

    listener = Listener()
    tx = optwrap.instrument(
        optax.chain(
            optax.inject_hyperparams(optax.scale)(2.0),
            optax.inject_hyperparams(odd)(scale=3.0, mask=np.ones(2, np.float32)),
        ),
        listener,
    )
    tx.init(PARAMS)
    assert listener.layout is not None
    assert listener.layout.scalars == ("step_size", "scale")
    both = optwrap.instrument(
        optax.chain(optax.inject_hyperparams(optax.sgd)(0.1), optax.inject_hyperparams(optax.sgd)(0.2)), listener
    )
    both.init(PARAMS)
    assert listener.layout.scalars == ("learning_rate", "learning_rate_2")


def test_a_reading_of_other_hyperparameters_is_refused() -> None:
    tx = optwrap.instrument(optax.inject_hyperparams(optax.sgd)(0.1))
    words = np.asarray(optwrap.reading(tx.init(PARAMS)))
    with pytest.raises(ValueError, match="another instrumentation"):
        optwrap.unpack(words, Layout(("w",), ("other",)))


def test_observed_scalars_reach_the_exporter(make: Callable[..., Monitor], stub: StubExporter) -> None:
    monitor, training = make(), Training()
    monitor.describe(training.layout)
    buffer = np.zeros((), np.float64)
    values: tuple[Any, ...] = (
        0.5,
        3,
        np.float32(0.1),
        jnp.bfloat16(2.0),
        jnp.ones(()) * np.nan,
        -math.inf,
        True,
        buffer,
    )
    for value in values:
        monitor.observe(training.step().words(), loss=value, accuracy=1.0)
        buffer += 1  # the caller may reuse its array
    monitor.observe(training.step().words())
    assert monitor.flush()
    assert [one.get("loss") for one in reported(stub).values()] == [
        0.5, 3.0, 0.1, 2.0, "NaN", "-Infinity", 1.0, 7.0, None,
    ]  # fmt: skip
    assert [one.get("accuracy") for one in reported(stub).values()] == [1.0] * 8 + [None]


def test_scalars_of_a_scan_have_one_value_for_each_step(make: Callable[..., Monitor], stub: StubExporter) -> None:
    monitor, training = make(), Training()
    monitor.describe(training.layout)
    rows = jnp.stack([training.step().words() for _ in range(4)])
    monitor.observe(rows[:2], loss=jnp.arange(2.0))
    monitor.observe(rows[1:], loss=jnp.array([1.0, np.nan, 3.0]), constant=0.5)  # the second step again
    assert monitor.flush()
    assert reported(stub) == {
        1: {"loss": 0.0}, 2: {"loss": 1.0},
        3: {"loss": "NaN", "constant": 0.5}, 4: {"loss": 3.0, "constant": 0.5},
    }  # fmt: skip


def test_the_scalar_of_replicas_is_their_mean(make: Callable[..., Monitor], stub: StubExporter) -> None:
    monitor, training = make(), Training()
    monitor.describe(training.layout)
    monitor.observe(jnp.stack([training.step().words()] * 4), loss=jnp.arange(4.0), same=2.0)
    assert monitor.flush()
    assert reported(stub) == {1: {"loss": 1.5, "same": 2.0}}


@pytest.mark.parametrize(
    "wrong",
    [{"a-b": 1.0}, {"": 1.0}, {"a" * 65: 1.0}, {"é": 1.0}, {"a": "text"}, {"a": None}, {"a": 1j}, {"a": jnp.ones(2)},
     {"a": np.ones((1, 2))}, {"a": [1.0, 2.0]}, {"a": object()}, {"a": 10**400}],
)  # fmt: skip
def test_what_is_no_scalar_is_one_line_in_the_log(
    wrong: dict[str, Any], make: Callable[..., Monitor], stub: StubExporter, caplog: pytest.LogCaptureFixture
) -> None:
    monitor, training = make(), Training()
    monitor.describe(training.layout)
    for _ in range(3):
        monitor.observe(training.step().words(), **wrong, loss=1.0)
    assert monitor.flush()
    assert reported(stub) == {1: {"loss": 1.0}, 2: {"loss": 1.0}, 3: {"loss": 1.0}}
    (line,) = log_lines(caplog)
    assert "is ignored; further ones of this name are ignored silently" in line


def test_a_donated_scalar_costs_only_itself(
    make: Callable[..., Monitor], stub: StubExporter, caplog: pytest.LogCaptureFixture
) -> None:
    monitor, training = make(), Training()
    monitor.describe(training.layout)
    gone = jnp.ones(())
    gone.delete()
    monitor.observe(training.step().words(), loss=gone, kept=2)
    assert monitor.flush()
    assert reported(stub) == {1: {"kept": 2.0}}
    assert len(log_lines(caplog)) == 1


def test_at_most_sixteen_names_are_kept(
    make: Callable[..., Monitor], stub: StubExporter, caplog: pytest.LogCaptureFixture
) -> None:
    monitor, training = make(), Training()
    monitor.describe(training.layout)
    for step in range(40):
        monitor.observe(training.step().words(), **{f"name_{step}": step, "loss": step})
    assert monitor.flush()
    names = {name for scalars in reported(stub).values() for name in scalars}
    assert names == {"loss", *(f"name_{i}" for i in range(15))}
    *lines, last = log_lines(caplog)
    assert [line.split("'")[1] for line in lines] == [f"name_{i}" for i in range(15, 31)]
    assert last == "optwrap: 16 names of scalars are ignored; further names are ignored silently"


def test_each_ignored_name_is_logged_once(
    make: Callable[..., Monitor], stub: StubExporter, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever is wrong with it: the second wrong scalar of a loop must not go unsaid because of the first."""
    monitor, training = make(), Training()
    monitor.describe(training.layout)
    for _ in range(3):
        monitor.observe(training.step().words(), **{"a-b": 1.0, "text": "x", "pair": jnp.ones(2), "loss": 1.0})
    assert monitor.flush()
    assert set(reported(stub)) == {1, 2, 3}
    assert [line.split("'")[1] for line in log_lines(caplog)] == ["a-b", "text", "pair"]


def test_an_observed_scalar_replaces_a_hyperparameter_of_its_name(
    make: Callable[..., Monitor], stub: StubExporter
) -> None:
    monitor = make()
    tx = optwrap.instrument(optax.inject_hyperparams(optax.sgd)(0.5), monitor)
    _, state = jax.jit(tx.update)(PARAMS, tx.init(PARAMS), PARAMS)
    monitor.observe(optwrap.reading(state), learning_rate=7.0, loss=1.0)
    _, state = jax.jit(tx.update)(PARAMS, state, PARAMS)
    monitor.observe(optwrap.reading(state), loss=2.0)
    assert monitor.flush()
    assert reported(stub) == {1: {"learning_rate": 7.0, "loss": 1.0}, 2: {"learning_rate": 0.5, "loss": 2.0}}


@pytest.mark.parametrize("fused", [True, False])
def test_in_callback_mode_the_step_reports_its_scalars(fused: bool) -> None:
    listener = Listener()
    seen: list[tuple[str, ...]] = []

    def inner_update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        del params
        seen.append(tuple(extra))
        return updates, state

    inner = optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), inner_update)
    tx = optwrap.instrument(inner, listener, emit="callback")

    @jax.jit
    def step(params: Any, state: Any, loss: Any) -> Any:
        scalars = {"loss": loss, "count": 3}
        if fused:
            return optwrap.apply_gradients(tx, params, state, params, scalars=scalars)
        updates, state = tx.update(params, state, params, scalars=scalars)
        return optax.apply_updates(params, updates), state

    params, state = PARAMS, tx.init(PARAMS)
    for loss in (0.5, np.nan):
        params, state = jax.block_until_ready(step(params, state, jnp.float32(loss)))
    assert [one["step"] for one in listener.steps] == [1, 2]
    assert [float(one["count"]) for one in listener.steps] == [3, 3]
    assert listener.steps[0]["loss"] == 0.5
    assert np.isnan(listener.steps[1]["loss"])
    assert set(seen) == {()}, "scalars are not passed on"


def test_scalars_of_update_that_are_not_allowed_are_ignored(caplog: pytest.LogCaptureFixture) -> None:
    listener = Listener()
    tx = optwrap.instrument(optax.sgd(0.1), listener, emit="callback")
    state = tx.init(PARAMS)
    wrong = {"a-b": 1.0, "array": jnp.ones(3), "text": "x", "loss": 1.0}
    jax.block_until_ready(jax.jit(lambda: tx.update(PARAMS, state, PARAMS, scalars=wrong))())
    jax.block_until_ready(jax.jit(lambda: tx.update(PARAMS, state, PARAMS, scalars=[1.0]))())
    assert [set(one) for one in listener.steps] == [{"step", "loss"}, {"step"}]
    assert len(log_lines(caplog)) == 4


def test_scalars_of_update_without_a_callback_are_one_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    tx = optwrap.instrument(optax.sgd(0.1))
    state = tx.init(PARAMS)
    step = jax.jit(lambda state: tx.update(PARAMS, state, PARAMS, scalars={"loss": jnp.ones(())}))
    for _ in range(3):
        _, state = step(state)
    (line,) = log_lines(caplog)
    assert "monitor.observe" in line


def test_a_resumed_training_goes_on_reporting_its_hyperparameters(
    make: Callable[..., Monitor], stub: StubExporter
) -> None:
    saved: Any = None
    for _ in range(2):
        monitor = make()
        tx = optwrap.instrument(optax.inject_hyperparams(optax.sgd)(optax.linear_schedule(1.0, 0.0, 4)), monitor)
        state = tx.init(PARAMS) if saved is None else saved
        _, state = jax.jit(tx.update)(PARAMS, state, PARAMS)
        monitor.observe(optwrap.reading(state), loss=1.0)
        assert monitor.flush()
        saved = jax.tree.map(np.asarray, state)
    assert reported(stub) == {1: {"loss": 1.0, "learning_rate": 1.0}, 2: {"loss": 1.0, "learning_rate": 0.75}}


@settings(deadline=None)
@given(st.text(max_size=70) | st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_]{0,70}", fullmatch=True))
def test_names_are_those_that_the_exporter_accepts(name: str) -> None:
    from optwrap_exporter.wire.vocabulary import ScalarName
    from pydantic import TypeAdapter, ValidationError

    try:
        TypeAdapter(ScalarName).validate_python(name)
        accepted = True
    except ValidationError:
        accepted = False
    assert is_name(name) == accepted


@given(st.floats(width=32))
@example(999999995904.0)  # 1e12: fewer digits, but a longer text
def test_a_number_is_reported_by_its_shortest_digits(value: float) -> None:
    found = shortest(np.float32(value))
    np.testing.assert_equal(np.float32(found), np.float32(value))
    if math.isfinite(value):
        assert digits(found) <= digits(value)


def digits(value: float) -> int:
    """The significant decimal digits of a finite number."""
    return len(Decimal(repr(value)).normalize().as_tuple().digits)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 4), st.lists(st.integers(1, 4), max_size=3), st.sampled_from([np.float32, np.int8, np.bool_]))
def test_a_scalar_has_no_axes_or_one_value_for_each_row(rows: int, shape: list[int], dtype: Any) -> None:
    values = np.ones(shape, dtype)
    found = Scalars().values({"x": values}, rows)
    fits = values.ndim == 0 or values.size == rows
    assert {name: one.tolist() for name, one in found.items()} == ({"x": [1.0] * rows} if fits else {})


def test_scalars_and_shares_count_towards_the_size_of_a_report() -> None:
    def weight(scalars: int, shares: int) -> int:
        return Record(
            step=1, time=0.0, interpolated=False, outcome="skipped_large", finite=True, norm=1.0, mini_step=None,
            nonfinite_parameters=Named({}), largest_parameters=dict.fromkeys(map(str, range(shares)), 0.1),
            scalars=dict.fromkeys(map(str, range(scalars)), 0.1),
        ).weight  # fmt: skip

    assert [weight(0, 0), weight(1, 0), weight(8, 0), weight(16, 0), weight(0, 3)] == [1, 2, 2, 3, 4]
