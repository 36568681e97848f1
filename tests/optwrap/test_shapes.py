"""Every dtype of JAX, leaves without arithmetic, and weak types."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optwrap
from optwrap._reading.unpack import unpack
from tests.optwrap.transformations import SINGLES, WRAPPERS, Case, assert_same, assert_same_types, multi_steps, stepper

pytestmark = pytest.mark.thin(5)

TINY = sorted(name for name in dir(jnp) if name.startswith(("float8_", "float4_")))
NARROW = [*TINY, "float16", "bfloat16", "float32", "complex64", "int4", "int8", "uint8", "int32", "bool"]
NO_ZERO = "float8_e8m0fnu"
"""Powers of two only: what is for scales. A step that is left out cannot return zeros of it."""
WIDE = ["float64", "complex128", "int64"]
DTYPES = [pytest.param(name, name in WIDE, id=name) for name in NARROW + WIDE]


def dtype_of(name: str) -> Any:
    return jnp.dtype("bool" if name == "bool" else getattr(jnp, name))


def keeping() -> optax.GradientTransformation:
    """An optimizer with a state like the parameters, which holds the last updates: for any dtype."""
    return optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params), lambda updates, _state, _params=None: (updates, updates)
    )


def tree_of(dtype: Any) -> Any:
    """A matrix, a scalar and an empty array of this dtype, and float32 arrays."""
    return {
        "matrix": jnp.ones((2, 3), dtype),
        "scalar": jnp.ones((), dtype),
        "nothing": jnp.zeros((0, 2), dtype),
        "float32": jnp.ones(2, jnp.float32),
        "none": None,
    }


@pytest.mark.parametrize(("name", "x64"), DTYPES)
def test_a_step_keeps_every_dtype(name: str, x64: bool) -> None:
    """Traced with strict promotion, for init and update of every wrapper, instrumented."""
    with jax.enable_x64(x64), jax.numpy_dtype_promotion("strict"):
        tree = jax.eval_shape(lambda: tree_of(dtype_of(name)))
        for case in SINGLES:
            if case.pairs and not jnp.issubdtype(dtype_of(name), jnp.inexact):
                continue  # half of the way between integers is none
            transformation = optwrap.instrument(case.build(optwrap, keeping()))
            params = case.params(tree)
            state = jax.eval_shape(transformation.init, params)
            updates, after = jax.eval_shape(transformation.update, tree, state, params)
            assert_same_types(after, state)
            assert_same_types(updates, params)


@pytest.mark.parametrize(("name", "x64"), [case for case in DTYPES if case.values[0] != NO_ZERO])
def test_windows_and_guards_equal_numpy_for_every_dtype(name: str, x64: bool) -> None:
    """Means are computed in float32 or wider, and NaN is counted in every dtype that has it."""
    with jax.enable_x64(x64):
        dtype = dtype_of(name)
        wide = jnp.result_type(dtype, jnp.float32) if dtype.itemsize > 1 or name == "bool" else np.dtype(np.float32)
        window = optwrap.instrument(multi_steps(optwrap, keeping(), 2, skip="not_finite"))
        first, second = (jnp.asarray(values, jnp.float32).astype(dtype) for values in ([1, 2, 4], [3, 2, 1]))
        bad = jnp.asarray([1, np.nan, np.nan], jnp.float32).astype(dtype) if can_be_nan(dtype) else None

        step = jax.jit(window.update)
        state = window.init(first)
        _, state = step(first, state)
        if bad is not None:
            updates, state = step(bad, state)
            assert not np.any(np.asarray(updates, np.complex64))
            counted = unpack(np.asarray(optwrap.reading(state)))
            assert (counted.outcome, dict(counted.nonfinite_parameters)) == ("skipped_not_finite", {"leaf_0": 2})
            assert int(state.inner_state.skip_state["num_not_finite"]) == 2
        updates, state = step(second, state)
        counted = unpack(np.asarray(optwrap.reading(state)))
        assert (counted.outcome, counted.finite) == ("applied", True)
        mean = (np.asarray(first).astype(wide) + np.asarray(second).astype(wide)) / 2
        assert updates.dtype == dtype
        np.testing.assert_array_equal(np.asarray(updates), np.asarray(jnp.asarray(mean, wide).astype(dtype)))


def can_be_nan(dtype: Any) -> bool:
    if not jnp.issubdtype(dtype, jnp.inexact):
        return False
    return bool(np.isnan(np.asarray(np.nan, np.float32).astype(dtype).astype(np.complex64)))


@pytest.mark.parametrize("name", [name for name in TINY if can_be_nan(dtype_of(name))])
def test_a_guard_rejects_non_finite_eight_bit_floats(name: str) -> None:
    """It accepts the largest number of the dtype."""
    dtype = dtype_of(name)
    guard = optwrap.apply_if_finite(keeping(), 3)
    most = jnp.full(3, jnp.finfo(dtype).max, dtype)
    updates, state = guard.update(most, guard.init(most))
    assert_same(updates, most)
    _, state = guard.update(jnp.full(3, jnp.nan, jnp.float32).astype(dtype), state)
    assert (int(state.total_notfinite), bool(state.last_finite)) == (1, False)
    assert_same(state.inner_state, most)


@pytest.mark.parametrize("wrapper", ["apply_if_finite", "flatten", "masked", "instrument"])
def test_leaves_without_arithmetic_pass_through(wrapper: str) -> None:
    """float0, as gradients of integers are, and PRNG keys."""
    params = {"w": jnp.ones(3), "integer": jnp.arange(2), "key": jax.random.key(0)}
    grads: Any = jax.grad(lambda p: (p["w"] ** 2).sum(), allow_int=True)({k: params[k] for k in ("w", "integer")})
    assert grads["integer"].dtype == jax.dtypes.float0
    inner = optax.GradientTransformation(optax.identity().init, lambda updates, state, _params=None: (updates, state))
    transformation = {
        "apply_if_finite": lambda: optwrap.apply_if_finite(inner, 3),
        "flatten": lambda: optwrap.flatten(inner),
        "masked": lambda: optwrap.masked(inner, {"w": True, "integer": False, "key": False}),
        "instrument": lambda: optwrap.instrument(optwrap.apply_if_finite(inner, 3)),
    }[wrapper]()
    grads = {**grads, "key": params["key"]}
    updates, state = jax.jit(transformation.update)(grads, transformation.init(params), params)
    assert {name: leaf.dtype for name, leaf in updates.items()} == {name: leaf.dtype for name, leaf in grads.items()}
    np.testing.assert_array_equal(updates["w"], grads["w"])
    if wrapper == "instrument":
        assert unpack(np.asarray(optwrap.reading(state))).norm == pytest.approx(np.sqrt(12.0))


@pytest.mark.parametrize("case", [case for case in SINGLES if case.name in WRAPPERS], ids=lambda case: case.name)
def test_weak_types_change_nothing(case: Case) -> None:
    """Gradients and parameters made of Python numbers: values and types of the state are those of strong ones."""
    transformation = optwrap.instrument(case.build(optwrap))
    weak = {"w": jnp.asarray(0.5), "v": jnp.asarray(2.0) * 3}
    strong = jax.tree.map(lambda leaf: jax.lax.convert_element_type(leaf, jnp.float32), weak)
    assert all(jax.typeof(leaf).weak_type for leaf in weak.values())
    assert not any(jax.typeof(leaf).weak_type for leaf in strong.values())

    @functools.partial(jax.jit, static_argnums=0)
    def trained(count: int, grads: Any, params: Any) -> Any:
        state = transformation.init(params)
        for _ in range(count):
            params, state, _ = stepper(transformation)(grads, state, params)
        return params, state

    assert_same(trained(3, weak, case.params(weak)), trained(3, strong, case.params(strong)))
