"""Finite checks and norms against numpy, wherever float32 overflows or int32 wraps."""

from typing import Any

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optwrap._core import finite
from optwrap._core import trees as _trees

DTYPES = [np.float32, np.float16, jnp.bfloat16, np.complex64, np.int32, np.bool_]


def arrays(dtype: Any) -> st.SearchStrategy[np.ndarray[Any, Any]]:
    """Arrays with NaN and Inf among their values, and finite ones up to the dtype's largest."""
    shape = st.sampled_from([(), (3,), (2, 2), (0,)])  # few: eager operations are compiled for each
    if dtype is jnp.bfloat16:
        elements = st.floats(width=16, allow_nan=True, allow_infinity=True)
        return hnp.arrays(np.float32, shape, elements=elements).map(lambda x: x.astype(dtype))
    if dtype is np.float32:
        special = st.sampled_from([np.nan, np.inf, -np.inf, 3e38, -3e38, 1e20, 0.0, 1.5])
        return hnp.arrays(np.float32, shape, elements=special)
    return hnp.arrays(dtype, shape)


def counted(tree: Any) -> jax.Array:
    """The counts of the floating and complex leaves."""
    leaves = finite.inexact_leaves(tree)
    if not leaves:
        return jnp.zeros([0], jnp.int32)
    return finite.nonfinite_counts(leaves, finite.suspects(leaves, finite.finite_probes(leaves)))


trees = st.lists(st.sampled_from(DTYPES).flatmap(arrays), max_size=3)


@settings(max_examples=60, deadline=None)
@given(tree=trees)
def test_all_finite_equals_numpy(tree: list[Any]) -> None:
    """Also if squares of finite values overflow."""
    expected = all(np.isfinite(leaf.astype(np.float32) if leaf.dtype == jnp.bfloat16 else leaf).all() for leaf in tree)
    assert bool(finite.all_finite(tree)) == expected


@settings(max_examples=60, deadline=None)
@given(tree=trees)
def test_nonfinite_counts_equal_numpy(tree: list[Any]) -> None:
    """One per floating or complex leaf, in the tree's order."""
    counts = counted(tree)
    leaves = [leaf for leaf in tree if leaf.dtype not in (np.int32, np.bool_)]
    assert counts.tolist() == [int((~np.isfinite(leaf.astype(np.complex64))).sum()) for leaf in leaves]
    assert int(finite.saturating_sum(counts)) == sum(counts.tolist())


@settings(max_examples=60, deadline=None)
@given(tree=st.lists(hnp.arrays(np.complex64, (3, 2), elements=st.complex_numbers(max_magnitude=1e3, width=64))))
def test_squared_norm_is_the_sum_of_squared_absolute_values(tree: list[Any]) -> None:
    """Of all leaves together, in float32."""
    norm = finite.squared_norm(tree[:3])
    assert norm.dtype == jnp.float32
    expected = sum(float((np.abs(leaf.astype(np.complex128)) ** 2).sum()) for leaf in tree[:3])
    np.testing.assert_allclose(float(norm), expected, rtol=1e-5, atol=1e-30)  # below, squares underflow float32


def test_the_largest_finite_values_are_finite() -> None:
    """Their squares overflow float32, their sum too."""
    for dtype in (np.float32, np.float16, jnp.bfloat16):
        assert finite.all_finite([jnp.full((100,), jnp.finfo(dtype).max, dtype)])
    huge = jnp.float32(3e38)
    assert finite.all_finite(jax.lax.complex(huge, huge))


def test_wide_leaves_are_squared_wide() -> None:
    """float64 leaves in float64, beside float32 leaves in float32; their sum is float64."""
    with jax.enable_x64(True):
        tree = [jnp.array([1e200]), jnp.array([2.0], jnp.float32)]
        assert [norm.dtype for norm in finite.squared_norms(tree)] == [jnp.float64, jnp.float32]
        assert finite.squared_norm(tree).dtype == jnp.float64
        assert finite.all_finite(tree)  # 1e400 is no float64: no square is asked


def test_the_count_of_a_leaf_saturates() -> None:
    """At 3 and at 4 times 2**30 NaNs."""

    # What counts within a leaf, not under its condition: without one, XLA needs no memory for the leaf.
    def count(value: jax.Array, billions: int) -> jax.Array:
        return finite._nonfinite_count(jnp.broadcast_to(value, (billions, 1024, 1024, 1024)))

    for billions in (3, 4):
        counted = jax.jit(count, static_argnums=1)(jnp.float32(jnp.nan), billions)
        assert (int(counted), counted.dtype) == (2**31 - 1, np.dtype(np.int32))


@settings(deadline=None)
@given(counts=st.lists(st.integers(0, 2**31 - 1), min_size=6, max_size=6), many=st.booleans())
def test_sums_of_counts_saturate(counts: list[int], many: bool) -> None:
    """Never above 2**31 - 1, never negative; also of 2**15 counts."""
    counts = [counts[0]] * 2**15 if many else counts
    total = finite.saturating_sum(jnp.array(counts, jnp.int32))
    assert (int(total), total.dtype) == (min(sum(counts), 2**31 - 1), np.dtype(np.int32))


@pytest.mark.parametrize("value", [2**40, np.uint32(2**32 - 1), np.int8(5), -7, np.int32(-7), 2**31 - 1])
def test_any_integer_is_clipped_to_int32(value: Any) -> None:
    """Without wrapping, whatever its dtype."""
    assert int(_trees.as_int32(value, 1)) == min(max(int(value), 1), 2**31 - 1)


def test_equal_checks_are_compiled_once() -> None:
    """If a step checks the same gradients twice, XLA merges the two checks."""

    def asked(times: int) -> str:
        def ask(tree: Any) -> Any:
            return [finite.all_finite(tree) for _ in range(times)]

        tree = [jnp.ones((64, 64)), jnp.ones((128, 32))]
        return str(jax.jit(ask).lower(tree).compile().as_text())

    assert asked(2).count(" reduce(") == asked(1).count(" reduce(") > 0


def test_placeholders_are_recognized() -> None:
    """What `optax.tree.map_params` passes to `init`, and nothing else."""
    import optax

    seen = []

    def init(params: Any) -> Any:
        seen.append(_trees.is_placeholder(params))
        return ()

    optax.tree.map_params(init, lambda x: x, ())
    assert seen == [True]
    others: list[Any] = [{}, (), None, jnp.ones(3), optax.MaskedNode()]
    assert not any(map(_trees.is_placeholder, others))


@pytest.mark.parametrize("shape", [(), (3,), (128, 128)])
def test_the_program_grows_linearly_with_the_leaves(shape: tuple[int, ...]) -> None:
    """The expression for a leaf does not repeat those of the leaves before it."""

    def size(leaves: int) -> int:
        tree = [jax.ShapeDtypeStruct(shape, jnp.float32)] * leaves
        asked = jax.jit(lambda tree: (finite.all_finite(tree), counted(tree)))
        text = asked.lower(tree).compile().as_text()
        assert text is not None
        return len(text)

    assert size(64) < 3 * size(32)
