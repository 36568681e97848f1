"""Norm, finiteness and counts of gradients, against numpy, for every dtype and shape."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

import optwrap
from optwrap._step.grad_summary import Summary, summarized

SHAPES = ((), (1,), (7,), (3, 0), (2, 3, 4))


def summarize(tree: Any) -> Summary:
    with summarized(tree) as summary:
        return summary


jitted = jax.jit(summarize)


def expected(leaves: list[Any]) -> tuple[bool, float, list[int]]:
    """The summary, computed by numpy in float64."""
    inexact = [np.asarray(leaf) for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    wide = [leaf.astype(np.complex128 if np.iscomplexobj(leaf) else np.float64) for leaf in inexact]
    counts = [
        int(np.sum(~np.isfinite(np.asarray(leaf).astype(np.complex128))))
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
        else 0
        for leaf in leaves
    ]
    largest = max([float(np.max(np.abs(leaf), initial=0)) for leaf in wide], default=0.0) or 1.0
    with np.errstate(all="ignore"):
        norm = float(np.sqrt(sum(np.sum((np.abs(leaf) / largest) ** 2) for leaf in wide))) * largest
    return not any(counts), norm, counts


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "complex64", "float8_e5m2"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_the_summary_equals_numpy(dtype: str, shape: tuple[int, ...], data: st.DataObject) -> None:
    """Also where squares overflow, where values are non-finite, and beside an integer leaf."""
    values = data.draw(
        npst.arrays(
            np.float32,
            shape,
            elements=st.one_of(
                st.floats(-10, 10, width=32), st.sampled_from([np.nan, np.inf, -np.inf, 0.0, 1e25, -3e38, 250.0, 1e-30])
            ),
        )
    )
    if dtype == "complex64":
        parts, values = values, np.empty(shape, np.complex64)
        values.real, values.imag = parts, np.flip(parts)
    leaf = jnp.asarray(values).astype(dtype)
    summary = jitted({"a": leaf, "b": jnp.arange(3), "c": jnp.float32(0.5)})
    finite, norm, counts = expected([np.asarray(leaf), np.arange(3), np.float32(0.5)])
    assert bool(summary.finite) == finite
    assert summary.not_finite.tolist() == counts
    if finite:
        if norm > float(np.finfo(np.float32).max):
            norm = np.inf
        np.testing.assert_allclose(float(summary.norm), norm, rtol=1e-5)
    else:
        assert not np.isfinite(float(summary.norm))


def test_a_gradient_whose_squares_overflow_is_finite_and_has_its_norm() -> None:
    """Also scalars, of which XLA takes the absolute value as the root of the square."""
    for tree in ({"w": jnp.full((4,), 1e30)}, jnp.float32(-3e38), {"a": jnp.float32(3e30), "b": jnp.full((1,), 4e30)}):
        summary = jitted(tree)
        norm = float(np.sqrt(sum(np.sum(np.square(np.float64(leaf))) for leaf in jax.tree.leaves(tree))))
        assert bool(summary.finite)
        np.testing.assert_allclose(float(summary.norm), norm, rtol=1e-5)
        assert not summary.not_finite.any()


@pytest.mark.parametrize(
    "tree", [{}, {"a": None}, {"a": jnp.arange(3)}, {"a": jnp.zeros((0, 2))}, {"a": jnp.array(True)}]
)
def test_trees_without_floating_values_are_finite_and_have_no_norm(tree: Any) -> None:
    summary = jitted(tree)
    assert (bool(summary.finite), float(summary.norm)) == (True, 0.0)
    assert summary.not_finite.shape == (len(jax.tree.leaves(tree)),)
    assert not summary.not_finite.any()


def test_leaves_without_numbers_are_ignored() -> None:
    """PRNG keys, and gradients of integers."""
    float0 = jax.grad(lambda pair: jnp.sum(pair["x"]) * 1.0, allow_int=True)({"n": jnp.arange(2), "x": jnp.ones(3)})
    assert float0["n"].dtype == jax.dtypes.float0
    tree = {**float0, "key": jax.random.key(0), "y": jnp.array([np.nan])}
    summary = summarize(tree)
    assert not bool(summary.finite)
    assert summary.not_finite.tolist() == [0, 0, 0, 1]


def test_float64_is_judged_and_measured_in_float64() -> None:
    with jax.enable_x64(True):
        summary = jax.jit(summarize)({"w": jnp.full((4,), 1e200), "v": jnp.ones(2, jnp.float32)})
        assert bool(summary.finite)
        assert float(summary.norm) == np.inf  # float32 says so
        summary = jax.jit(summarize)({"w": jnp.full((4,), 1e30, jnp.float64)})
        np.testing.assert_allclose(float(summary.norm), 2e30, rtol=1e-6)
        assert not bool(jax.jit(summarize)({"w": jnp.array([1e308, np.inf])}).finite)


@pytest.mark.usefixtures("strict_dtypes")
def test_mixed_dtypes_need_no_implicit_promotion() -> None:
    with jax.enable_x64(True):
        tree = [jnp.ones(2, dtype) for dtype in ("float64", "float32", "bfloat16", "complex64", "complex128", "int8")]
        summary = jax.jit(summarize)(tree)
        np.testing.assert_allclose(float(summary.norm), np.sqrt(10))
        assert summary.norm.dtype == jnp.float32
        assert summary.not_finite.dtype == jnp.int32


@pytest.mark.parametrize("wrapper", ["apply_if_finite", "skip_not_finite", "skip_large_updates", "skip_spikes"])
def test_a_wrapper_takes_norms_and_counts_from_the_instrumentation(wrapper: str) -> None:
    """The step reads the gradients as often as one without a wrapper."""
    large = functools.partial(optwrap.skip_large_updates, max_squared_norm=9.0)
    wrapped: dict[str, Any] = {
        "none": optax.sgd(0.1),
        "apply_if_finite": optwrap.apply_if_finite(optwrap.apply_if_finite(optax.sgd(0.1), 5), 5),
        "skip_not_finite": optwrap.skip_if(optax.sgd(0.1), optwrap.skip_not_finite),
        "skip_large_updates": optwrap.skip_if(optax.sgd(0.1), large),
        "skip_spikes": optwrap.skip_spikes(optwrap.skip_if(optax.sgd(0.1), large)),
    }
    params = {"w": jnp.ones((64, 8))}

    def reductions(name: str) -> int:
        tx = optwrap.instrument(wrapped[name])
        program = str(jax.jit(tx.update).lower(params, tx.init(params), params).as_text())
        return len(re.findall(r"reduce\(.*tensor<64x8x", program))

    assert reductions(wrapper) == reductions("none") > 0
