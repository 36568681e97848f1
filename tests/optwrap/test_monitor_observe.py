"""`Monitor.observe` and `describe`: what counts as a reading, and from which instrumentation, over real sockets."""

from collections.abc import Callable
from typing import Any
from unittest.mock import ANY

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optwrap
from optwrap._monitor.monitor import Monitor
from optwrap._reading.unpack import Layout
from tests.optwrap.monitoring import StubExporter, Training, log_lines


@pytest.mark.parametrize("way", ["reading", "callback", "scan"])
def test_a_real_step_is_reported(stub: StubExporter, make: Callable[..., Monitor], way: str) -> None:
    """Names, norms and outcomes of an instrumented optimizer in a jitted, donating step.

    The loop observes what the step returned, or the step reports by itself, or a scan of steps is observed at once.
    """
    monitor = make()
    tx = optwrap.instrument(
        optwrap.apply_if_finite(optax.sgd(0.1), 3), monitor, emit="callback" if way == "callback" else "reading"
    )

    def step(carry: Any, value: Any) -> Any:
        params, state = carry
        gradients = {"layer": {"w": jnp.full([3], value), "b": jnp.zeros([])}}
        updates, state = tx.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), optwrap.reading(state)

    params = {"layer": {"w": jnp.ones([3]), "b": jnp.zeros([])}}
    carry, values = (params, tx.init(params)), jnp.array([1.0, jnp.inf, 2.0])
    if way == "scan":
        carry, words = jax.jit(lambda carry: jax.lax.scan(step, carry, values), donate_argnums=0)(carry)
        monitor.observe(words)
    else:
        jitted = jax.jit(step, donate_argnums=0)
        for value in values:
            carry, words = jitted(carry, value)
            if way == "reading":
                monitor.observe(words)
    jax.block_until_ready(carry)
    monitor.observe(optwrap.reading(carry[1]))  # the last step again, as programs do after their loop
    assert monitor.flush()
    assert stub.books.totals() == {
        "applied": 2,
        "skipped_not_finite": 1,
        "not_finite_steps": 1,
        "parameter layer/w": 1,
    }
    columns = {name: [x for r in stub.books.order for x in r["steps"][name]] for name in ("step", "finite", "norm")}
    assert columns == {
        "step": [1, 2, 3],
        "finite": [True, False, True],
        "norm": [pytest.approx(3**0.5), "Infinity", ANY],
    }
    assert [o for r in stub.books.order for o in r["offenders"]] == [
        {"step": 2, "parameter": "layer/w", "not_finite": 3}
    ]


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=100),
    st.lists(st.integers(0, 9), max_size=3),
    st.dictionaries(st.text(max_size=2), st.none(), max_size=2),
    st.builds(object),
    st.sampled_from([np.uint32, np.int32, np.float32, np.bool_, np.object_]).flatmap(
        lambda dtype: st.lists(st.integers(0, 3), max_size=3).map(lambda shape: np.zeros(shape, dtype))
    ),
    st.lists(st.integers(0, 30), min_size=1, max_size=2).map(lambda shape: jnp.zeros(shape, jnp.uint32)),
    st.lists(st.integers(0, 2**32 - 1), min_size=28, max_size=28).map(lambda words: np.array(words, np.uint32)),
)


class Nasty:
    """An object whose attributes all raise."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)


def test_observe_never_raises_and_ignores_other_objects(
    stub: StubExporter, make: Callable[..., Monitor], caplog: pytest.LogCaptureFixture
) -> None:
    """None, strings, other arrays and objects that raise: one line each, and counting goes on."""
    training, monitor = Training(), make()
    monitor.describe(training.layout)

    @hypothesis.settings(deadline=None, max_examples=150)
    @hypothesis.given(ODD)
    def feed(odd: object) -> None:
        monitor.observe(odd)

    feed()
    monitor.observe(Nasty())
    monitor.observe(training.step().words())
    assert monitor.flush(30)
    assert stub.books.totals() == {"applied": 1}
    logged = log_lines(caplog)
    assert 3 <= len(logged) <= 8, "one of each kind"
    assert len({line.partition("; allowed")[0] for line in logged}) == len(logged)
    assert all("was ignored" in line or "was lost" in line for line in logged)


def test_each_kind_of_mistake_is_logged_once(
    stub: StubExporter, make: Callable[..., Monitor], caplog: pytest.LogCaptureFixture
) -> None:
    """Two mistakes that both raise a ValueError are two kinds; one mistake with two values is one kind."""
    monitor = make()
    for odd in (None, "x", np.zeros(3), np.zeros(4), np.zeros(40, np.uint32), np.ones(40, np.uint32)):
        monitor.observe(odd)
    assert monitor.flush()
    kinds = ("got a NoneType", "got float64[3]", "first word is 0x0")
    assert [kind for kind in kinds for line in log_lines(caplog) if kind in line] == list(kinds)
    assert len(log_lines(caplog)) == len(kinds)
    assert stub.books.totals() == {}


def test_a_traced_value_and_a_donated_reading_are_ignored(
    stub: StubExporter, make: Callable[..., Monitor], caplog: pytest.LogCaptureFixture
) -> None:
    """Each with one line; later readings count. The donated one was a step, whose record is dropped."""
    training, monitor = Training(), make()
    monitor.describe(training.layout)

    @jax.jit
    def step(words: Any) -> Any:
        monitor.observe(words)
        return words + 1

    step(jnp.zeros([28], jnp.uint32))
    donated = training.saved().step().words()
    donated.delete()
    monitor.observe(donated)
    monitor.observe(training.step().words())
    assert not monitor.flush()
    assert stub.books.totals() == {"applied": 1}
    assert stub.books.dropped() == {"steps": 1, "bad_steps": 0}
    traced, deleted = log_lines(caplog)
    assert "traced value" in traced
    assert "deleted" in deleted


@pytest.mark.parametrize("fresh_state", [True, False])
def test_counting_starts_just_before_the_first_reading(
    stub: StubExporter, make: Callable[..., Monitor], fresh_state: bool
) -> None:
    """If only every third step is observed, the first steps count only if the fresh state was observed before."""
    monitor, training = make(), Training()
    monitor.describe(training.layout)
    if fresh_state:
        monitor.observe(training.words())
    for number in range(1, 10):
        training.step()
        if number % 3 == 0:
            monitor.observe(training.words())
    assert monitor.flush()
    assert stub.books.totals() == {"applied": 9 if fresh_state else 7}


def test_a_reading_of_another_instrumentation_is_ignored(
    stub: StubExporter, make: Callable[..., Monitor], caplog: pytest.LogCaptureFixture
) -> None:
    """Two layouts for one Monitor: only readings of the newer one count, the others are dropped, with one line."""
    old, new, monitor = Training(), Training(("w",)), make()
    monitor.describe(old.layout)
    monitor.observe(old.step().words())
    assert monitor.flush()
    for _ in range(3):
        monitor.describe(new.layout)
    monitor.observe(old.step().words())
    monitor.observe(old.step().words())
    monitor.observe(new.step("skipped_not_finite", {"w": 1}).words())
    assert not monitor.flush()
    assert stub.books.totals() == {
        "applied": 1,
        "skipped_not_finite": 1,
        "not_finite_steps": 1,
        "parameter w": 1,
    }
    assert stub.books.dropped() == {"steps": 2, "bad_steps": 0}
    (ignored,) = log_lines(caplog)
    assert "another instrumentation" in ignored


def test_a_numpy_array_may_be_reused_after_observe(stub: StubExporter, make: Callable[..., Monitor]) -> None:
    """It is copied."""
    training, monitor = Training(), make()
    monitor.describe(training.layout)
    buffer = np.array(training.step().words())
    monitor.observe(buffer)
    buffer[:] = 0
    assert monitor.flush()
    assert stub.books.totals() == {"applied": 1}


def test_an_equal_layout_described_again_changes_nothing(
    make: Callable[..., Monitor], caplog: pytest.LogCaptureFixture
) -> None:
    """A step may be traced any number of times, each time with a new but equal layout."""
    monitor = make()
    for _ in range(3):
        monitor.describe(Layout(("a", "b")))
    assert log_lines(caplog) == []
