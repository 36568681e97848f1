"""The packed reading: found in any state, unpacked to the counters, and refused if invalid."""

import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optwrap._reading.counters import ABSENT, HEAD, INTEGER_GAUGES, LARGEST, OUTCOMES, VERSION, Counters, pack
from optwrap._reading.state import reading
from optwrap._reading.unpack import Layout, unpack
from optwrap._step.instrument import instrument

COUNT = st.integers(0, 2**32 - 1)
GAUGE = st.one_of(st.just(ABSENT), st.integers(0, 2**31 - 1))
NAMES = st.lists(st.text(min_size=1, max_size=5), max_size=4, unique=True)


@st.composite
def counters(draw: st.DrawFn) -> tuple[Counters, Layout]:
    scalars = tuple(f"scalar_{i}" for i in range(draw(st.integers(0, 3))))
    layout = Layout(tuple(draw(NAMES)), scalars)
    size = len(layout.parameters)
    largest = draw(st.permutations(range(size)))[:LARGEST]

    def vector(length: int, values: st.SearchStrategy[int] = COUNT, dtype: Any = np.uint32) -> np.ndarray[Any, Any]:
        return np.array(draw(st.lists(values, min_size=length, max_size=length)), dtype)

    arrays: dict[str, Any] = dict(
        outcomes=vector(len(OUTCOMES), st.integers(0, 2**28)),
        not_finite_steps=np.uint32(draw(COUNT)),
        not_finite_streak=np.uint32(draw(COUNT)),
        not_finite_streak_peak=np.uint32(draw(COUNT)),
        parameters=vector(size),
        window_not_finite=vector(draw(st.integers(0, 3)), st.integers(0, 1), np.bool_),
        outcome=np.int32(draw(st.integers(-1, len(OUTCOMES) - 1))),
        finite=np.bool_(draw(st.booleans())),
        gradient_norm=np.float32(draw(st.floats(width=32, allow_nan=False))),
        not_finite_values=vector(size),
        gauges=vector(len(INTEGER_GAUGES), GAUGE, np.int32),
        replica=np.int32(draw(GAUGE)),
        replicas_not_finite=np.int32(draw(GAUGE)),
        gradient_norm_limit=np.float32(draw(st.floats(width=32, min_value=0))),
        fingerprint=np.uint32(layout.fingerprint),
        largest=np.array([*largest, *[ABSENT] * (LARGEST - len(largest))], np.int32),
        largest_shares=np.array([0.5] * len(largest) + [0.0] * (LARGEST - len(largest)), np.float32),
        update_norm=np.float32(draw(st.sampled_from([ABSENT, 0.25, np.inf]))),
        scalars=np.array([draw(st.floats(width=32)) for _ in layout.scalars], np.float32),
    )
    return Counters(**arrays), layout


@settings(max_examples=60, deadline=None)
@given(counters())
def test_unpack_returns_the_packed_counters(drawn: tuple[Any, Layout]) -> None:
    counted, layout = drawn
    words = np.asarray(pack(counted))
    assert words.dtype == np.uint32
    own = len(counted.window_not_finite) + len(layout.scalars) + 2 * len(layout.parameters)
    assert words.shape == (HEAD + own,)
    got = unpack(words, layout)
    assert got.totals.outcomes == dict(zip(OUTCOMES, counted.outcomes.tolist(), strict=True))
    assert got.totals.steps == got.step == counted.outcomes.sum(dtype=np.uint64)
    assert got.totals.gradient_steps == int(counted.outcomes[0]) + int(counted.outcomes[5])
    assert got.totals.not_finite_steps == counted.not_finite_steps
    assert got.outcome == (OUTCOMES[counted.outcome] if counted.outcome >= 0 else None)
    assert (got.finite, got.norm) == (counted.finite, counted.gradient_norm)
    for values, told in (
        (counted.parameters, got.totals.parameters),
        (counted.not_finite_values, got.nonfinite_parameters),
    ):
        assert told == {name: n for name, n in zip(layout.parameters, values.tolist(), strict=True) if n}
    integers = zip(INTEGER_GAUGES, counted.gauges.tolist(), strict=True)
    expected = {name: n for name, n in integers if n != ABSENT}
    replicas = (int(counted.replica), int(counted.replicas_not_finite))
    assert (got.replica, got.replicas_not_finite) == tuple(None if n == ABSENT else n for n in replicas)
    expected |= {
        "not_finite_streak": int(counted.not_finite_streak),
        "not_finite_streak_peak": int(counted.not_finite_streak_peak),
        "gradient_norm": float(counted.gradient_norm),
        "gradient_norm_limit": float(counted.gradient_norm_limit),
    }
    absent = counted.update_norm == ABSENT
    assert got.update_norm == (None if absent else float(counted.update_norm))
    expected |= {} if absent else {"update_norm": float(counted.update_norm)}
    assert list(got.largest_parameters) == [layout.parameters[i] for i in counted.largest if i != ABSENT]
    assert set(got.largest_parameters.values()) <= {0.5}
    if got.outcome is not None:
        np.testing.assert_array_equal(np.array([*got.scalars.values()], np.float32), counted.scalars)
    assert list(got.scalars) == ([] if got.outcome is None else list(layout.scalars))
    if counted.gradient_norm_limit < 0 or np.isnan(counted.gradient_norm_limit):
        del expected["gradient_norm_limit"]
    assert got.gauges == expected


def test_layouts_differ_by_their_names_and_order() -> None:
    assert Layout(("a", "b")).fingerprint == zlib.crc32(b"a\0b")
    assert len({Layout(names).fingerprint for names in [("a", "b"), ("b", "a"), ("ab",), (), ("a",)]}) == 5


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (np.zeros(HEAD + 5, np.float32), rf"expected a uint32 vector of at least {HEAD} .* float32\[{HEAD + 5}\]"),
        (np.zeros((2, 30), np.uint32), r"got uint32\[2, 30\]"),
        ([VERSION] * 30, r"got list"),
        (np.zeros(HEAD - 1, np.uint32), rf"got uint32\[{HEAD - 1}\]"),
        (np.zeros(HEAD + 2, np.uint32), rf"the first word is 0x0, expected {VERSION:#x}"),
        (
            np.array([VERSION, 0, *[0] * (HEAD - 1)], np.uint32),
            rf"expected {HEAD} words \(for 0 .* got {HEAD + 1} words",
        ),
        (np.array([VERSION, 9, *[0] * HEAD], np.uint32), rf"expected {HEAD + 9} words \(for 9 .* got {HEAD + 2} words"),
    ],
    ids=["float32", "two axes", "a list", "too short", "version", "too long", "too short for its size"],
)
def test_other_values_are_refused(words: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        unpack(words)


def test_a_reading_of_another_instrumentation_is_refused() -> None:
    words = np.asarray(reading(instrument(optax.sgd(1.0)).init({"a": 1.0, "b": 1.0})))
    assert unpack(words, Layout(("a", "b"))).totals.steps == 0
    for other in (Layout(("a", "c")), Layout(("a",))):
        with pytest.raises(ValueError, match="give each instrument its own Monitor"):
            unpack(words, other)
    assert unpack(words).totals == unpack(words, Layout(("a", "b"))).totals


def test_before_the_first_step_there_is_no_outcome() -> None:
    got = unpack(np.asarray(reading(instrument(optax.sgd(1.0)).init({"a": 1.0}))))
    assert (got.outcome, got.step, got.finite, got.nonfinite_parameters) == (None, 0, True, {})


def two(*names: str | None) -> Any:
    tx = optax.chain(*(instrument(optax.sgd(1.0), name=name) for name in names))
    return {"opt": tx.init({"w": jnp.ones(2)}), "epoch": 3}


def test_the_instrumentation_is_found_wherever_it_sits() -> None:
    tx = instrument(optax.sgd(1.0))
    state = tx.init({"w": jnp.ones(2)})
    everywhere = [
        state,
        {"train": (1, [state])},
        optax.apply_if_finite(tx, 1).init({"w": jnp.ones(2)}),
        optax.MultiSteps(tx, 2).init({"w": jnp.ones(2)}),
        optax.masked(tx, True).init({"w": jnp.ones(2)}),
    ]
    for tree in everywhere:
        np.testing.assert_array_equal(reading(tree), reading(state))


def test_name_chooses_among_several_instrumentations() -> None:
    state = two("actor", "critic")
    np.testing.assert_array_equal(reading(state, name="critic"), state["opt"][1].counters["critic"])
    for words in (reading(state, name="actor"), jax.jit(lambda tree: reading(tree, name="actor"))(state)):
        np.testing.assert_array_equal(words, state["opt"][0].counters["actor"])


@pytest.mark.parametrize(
    ("state", "name", "says"),
    [
        ((), None, r"expected one instrumentation in the state, found none: wrap the optimizer"),
        (optax.adam(1.0).init({"w": 1.0}), "main", r"one instrumentation named 'main' in the state, found none"),
        (
            two("actor", "critic"),
            None,
            r"found 'actor' at state\['opt'\]\[0\], 'critic' at state\['opt'\]\[1\]: choose one",
        ),
        (two("actor", "critic"), "main", r"found 'actor' .*, 'critic' .*: pass the name of one of these"),
        (two(None, None), None, r"found 'instrument' at .*\[0\], 'instrument' at .*\[1\]: give each its own"),
        (two("a", "a"), "a", r"found 'a' at .*\[0\], 'a' at .*\[1\]: give each its own name"),
        (
            instrument(instrument(optax.sgd(1.0), name="in"), name="out").init({"w": 1.0}),
            None,
            r"'out' at state, 'in' at state.inner_state",
        ),
    ],
    ids=["none", "none of this name", "two", "two of other names", "two unnamed", "two of this name", "nested"],
)
def test_an_ambiguous_state_is_refused_with_all_names(state: Any, name: str | None, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        reading(state, name)


def test_a_name_that_is_no_string_is_refused() -> None:
    with pytest.raises(TypeError, match=r"name must be a string, got 3 \(int\)"):
        reading((), 3)  # type: ignore[arg-type]


def test_a_scan_over_steps_stacks_readings_of_consecutive_steps() -> None:
    tx = instrument(optax.sgd(1.0))

    def step(state: Any, grads: Any) -> Any:
        _, state = tx.update({"w": grads}, state)
        return state, reading(state)

    _, words = jax.lax.scan(step, tx.init({"w": jnp.ones(2)}), jnp.array([[1.0, 1.0], [np.nan, 1.0], [1.0, 1.0]]))
    rows = [unpack(row) for row in np.asarray(words)]
    assert [row.step for row in rows] == [1, 2, 3]
    assert [row.finite for row in rows] == [True, False, True]


def test_a_stacked_state_has_stacked_readings() -> None:
    tx = instrument(optax.sgd(1.0))
    states = jax.vmap(lambda w: tx.init({"w": w}))(jnp.ones((3, 2)))
    rows = np.asarray(reading(states))
    assert rows.shape == (3, HEAD + 2)
    assert [unpack(row).step for row in rows] == [0, 0, 0]
