"""How near to optax, bit by bit: one step of each from the same state, over random gradients of every dtype.

The wrappers decide, select and move, and so give optax's bits. `MultiSteps` also adds, where XLA may contract the one
program and not the other: there the last bit of the accumulator's dtype is open, and no more.
"""

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import optwrap
from tests.optwrap.transformations import (
    WRAPPERS,
    After,
    Case,
    assert_same,
    assert_same_types,
    compiled,
    gradients,
    momentum,
    multi_steps,
    stepper,
    tree_of,
)

Tree = Any

DTYPES = {
    "float16": jnp.float16,
    "bfloat16": jnp.bfloat16,
    "float32": jnp.float32,
    "float64": np.float64,
    "complex64": jnp.complex64,
}
ACCUMULATORS = {
    "float16": ("float32", "float16"),
    "bfloat16": ("float32", "bfloat16"),
    "float32": ("float32", "bfloat16"),
    "float64": ("float64",),
    "complex64": ("complex64",),
}
"""By dtype, those that optax can accumulate it in without losing anything but bits."""
STEPS = 6
BOTH = (optwrap, optax)

seeds = st.integers(0, 2**31 - 1)
exponents = st.integers(-3, 3)
search = settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))


def accumulating(accumulator: str, *, mean: bool) -> Case:
    """Three mini-steps to a step, whose updates are what the window has accumulated."""
    dtype = jnp.dtype(accumulator)
    return Case(
        f"multi_steps-{accumulator}-{mean}",
        (lambda library, _: multi_steps(library, optax.identity(), 3, use_grad_mean=mean, accumulator_dtype=dtype),),
    )


WINDOWS = [
    (dtype, accumulating(accumulator, mean=mean))
    for dtype, accumulators in ACCUMULATORS.items()
    for accumulator in accumulators
    for mean in (True, False)
]
OTHERS = [
    (dtype, Case(name, (WRAPPERS[name],)))
    for dtype in DTYPES
    for name in ("apply_if_finite", "masked", "flatten", "lookahead")
]


def named(combinations: list[tuple[str, Case]]) -> Any:
    ids = [f"{dtype}-{case.name}" for dtype, case in combinations]
    return pytest.mark.parametrize(("dtype", "case"), combinations, ids=ids)


def wide(dtype: str) -> Any:
    """64-bit types, where they are needed."""
    return jax.enable_x64(True) if dtype == "float64" else contextlib.nullcontext()


def steps_of_both(
    case: Case, dtype: str, seed: int, exponent: int, both: Any
) -> list[tuple[Tree, After, After, After]]:
    """Gradients, what was before, and what came of it in ours and in optax's, along a training with optax's."""
    tree = tree_of(DTYPES[dtype])
    params = case.params(tree)
    (_, ours), (init, theirs) = both
    before = After(params, init(params), None)
    trail = []
    for step in range(STEPS):
        grads = jax.tree.map(
            lambda leaf: (leaf * np.float64(10.0) ** exponent).astype(leaf.dtype), gradients(tree, seed + step)
        )
        mine, other = (each(grads, before.state, before.params) for each in (ours, theirs))
        trail.append((grads, before, mine, other))
        before = other
    return trail


def ulps(actual: Any, expected: Any, among: list[Any], dtype: Any) -> float:
    """The largest distance of two arrays, in units of the last place that `dtype` has at the magnitude of `among`."""
    real = np.finfo(dtype).dtype if np.issubdtype(dtype, np.complexfloating) else jnp.dtype(dtype)
    magnitude = np.max([np.abs(np.asarray(x).astype(np.complex128)) for x in (*among, expected)], axis=0)
    exponent = np.floor(np.log2(np.maximum(magnitude, float(jnp.finfo(real).tiny))))
    spacing = 2.0 ** (exponent - jnp.finfo(real).nmant)
    distance = np.asarray(actual).astype(np.complex128) - np.asarray(expected).astype(np.complex128)
    parts = np.maximum(np.abs(distance.real), np.abs(distance.imag))
    return float(np.max(parts / spacing, initial=0.0))


def coarser(one: Any, other: Any) -> Any:
    return one if jnp.finfo(one).eps >= jnp.finfo(other).eps else other


@named(OTHERS)
@search
@given(seed=seeds, exponent=exponents)
def test_all_but_windows_give_the_same_bits(dtype: str, case: Case, seed: int, exponent: int) -> None:
    """Parameters, updates and states of every step, compiled with all of XLA's optimizations."""
    with wide(dtype):
        for _, _, mine, other in steps_of_both(case, dtype, seed, exponent, [compiled(case, lib) for lib in BOTH]):
            assert_same(mine, other)


@named(WINDOWS)
@search
@given(seed=seeds, exponent=exponents)
def test_windows_are_within_one_ulp_of_the_accumulator(dtype: str, case: Case, seed: int, exponent: int) -> None:
    """What is accumulated, and the mean or sum that comes out; all else of the state is equal."""
    with wide(dtype):
        for grads, before, mine, other in steps_of_both(
            case, dtype, seed, exponent, [compiled(case, lib) for lib in BOTH]
        ):
            assert_same_types((mine.updates, mine.state), (other.updates, other.state))
            assert_same(mine.state._replace(acc_grads=()), other.state._replace(acc_grads=()))
            trees = (
                grads,
                before.state.acc_grads,
                mine.state.acc_grads,
                other.state.acc_grads,
                mine.updates,
                other.updates,
            )
            for grad, acc, my_acc, other_acc, my_update, update in zip(*map(jax.tree.leaves, trees), strict=True):
                assert ulps(my_acc, other_acc, [grad, acc], acc.dtype) <= 1
                assert ulps(my_update, update, [grad, acc], coarser(acc.dtype, update.dtype)) <= 1


@pytest.mark.parametrize("name", [*WRAPPERS])
def test_the_same_bits_come_out_without_jit(name: str) -> None:
    """Operation by operation."""
    case = Case(name, (WRAPPERS[name],))
    both = [(case.build(library, momentum()).init, stepper(case.build(library, momentum()))) for library in BOTH]
    for _, _, mine, other in steps_of_both(case, "float32", 0, 0, both)[:4]:
        assert_same(mine, other)
