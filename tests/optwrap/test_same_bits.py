"""One step of optax and of optwrap from the same state give the same bits, for random gradients of every dtype.

The wrappers decide, select and move, and so give optax's bits. `MultiSteps` also takes means: XLA multiplies by the
reciprocal of the number of mini-steps, and adds. Where both are in one kernel, CPUs that can do so contract them, and
round once instead of twice. So where one library's kernel is another than the other's, the last bit of the
accumulator's dtype is open, and no more. On a CPU that cannot nothing is.
"""

import contextlib
import os
import pathlib
import platform
import subprocess
import sys
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

pytestmark = pytest.mark.thin(5)

Tree = Any

DTYPES: dict[str, Any] = {
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
        f"multi_steps-{accumulator}-{'mean' if mean else 'sum'}",
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
    """Yields the gradients, the state before, and the results of ours and of optax's, along a training with optax."""
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
def test_everything_but_windows_gives_the_same_bits(dtype: str, case: Case, seed: int, exponent: int) -> None:
    """Parameters, updates and states of every step, compiled with all of XLA's optimizations."""
    with wide(dtype):
        for _, _, mine, other in steps_of_both(
            case, dtype, seed, exponent, [compiled(case, lib, "as users") for lib in BOTH]
        ):
            assert_same(mine, other)


@named(WINDOWS)
@search
@given(seed=seeds, exponent=exponents)
def test_windows_are_within_one_ulp_of_the_accumulator(dtype: str, case: Case, seed: int, exponent: int) -> None:
    """The accumulator and the mean; all else of the state is equal, and sums are."""
    most = 1 if case.name.endswith("-mean") else 0
    with wide(dtype):
        for grads, before, mine, other in steps_of_both(
            case, dtype, seed, exponent, [compiled(case, lib, "as users") for lib in BOTH]
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
                assert ulps(my_acc, other_acc, [grad, acc], acc.dtype) <= most
                assert ulps(my_update, update, [grad, acc], coarser(acc.dtype, update.dtype)) <= most


MEAN = accumulating("float32", mean=True)


@pytest.mark.parametrize("library", BOTH, ids=lambda library: library.__name__)
@pytest.mark.parametrize("compiles", [True, False], ids=["jit", "eager"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_mean_is_rounded_once_or_twice(library: Any, compiles: bool, dtype: str) -> None:
    """Each accumulated value is one of the two roundings, so only contraction can differ."""
    init, step = compiled(MEAN, library, "as users")
    update = step if compiles else stepper(MEAN.build(library))
    tree = {"w": jnp.zeros(256, DTYPES[dtype])}
    state = init(tree)
    for number in range(STEPS):
        grads = gradients(tree, number)
        old = np.asarray(state.acc_grads["w"])
        state = update(grads, state, tree).state
        if number % 3 != 2:  # a window that is complete is emptied
            distance, share = grads["w"].astype(np.float32) - old, np.float32(1) / np.float32(number % 3 + 1)
            twice = old + distance * share
            once = (old.astype(np.float64) + distance.astype(np.float64) * np.float64(share)).astype(np.float32)
            got = np.asarray(state.acc_grads["w"])
            assert np.all((got == twice) | (got == once))


WITHOUT_CONTRACTIONS = """
import jax, jax.numpy as jnp, optax, optwrap
from tests.optwrap.test_same_bits import DTYPES, MEAN, gradients, stepper
from tests.optwrap.transformations import UNOPTIMIZED, assert_same

assert not jax.config.jax_enable_x64
for dtype in ("float16", "float32"):
    tree = {"w": jnp.zeros(256, DTYPES[dtype])}
    after = []
    for library in (optwrap, optax):
        transformation = MEAN.build(library)
        step = stepper(transformation)
        for run in (step, jax.jit(step), jax.jit(step, compiler_options=UNOPTIMIZED)):
            params, state, trail = tree, transformation.init(tree), []
            for number in range(6):
                params, state, updates = run(gradients(tree, number), state, params)
                trail.append((params, state, updates))
            after.append(trail)
    for other in after[1:]:
        assert_same(other, after[0])
print("the same")
"""


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the flag is of x86")
def test_without_contractions_means_have_the_same_bits() -> None:
    """In a process without fused multiply-add: ours and optax's, jitted or not, optimized or not."""
    environment = {**os.environ, "XLA_FLAGS": "--xla_cpu_max_isa=AVX", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_CONTRACTIONS],
        env=environment,
        cwd=pathlib.Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "the same\n"), done.stderr


@pytest.mark.parametrize("name", [*WRAPPERS])
def test_eager_steps_give_the_same_bits(name: str) -> None:
    case = Case(name, (WRAPPERS[name],))
    both = [(case.build(library, momentum()).init, stepper(case.build(library, momentum()))) for library in BOTH]
    for _, _, mine, other in steps_of_both(case, "float32", 0, 0, both)[:4]:
        assert_same(mine, other)
