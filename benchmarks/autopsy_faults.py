"""Faults with a known cause, for `optwrap.autopsy`, in one table. autopsy_healthy.py has functions without one.

Each fault is a function of a parameter `w` and an input `x`, float32[4] both. The line that is to blame ends in the
comment `# here`, and is in the scope `block`.
"""

# ruff: noqa: D103  # the name of a fault says what it is

import dataclasses
from collections.abc import Callable
from typing import Any, Final, Literal

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
Function = Callable[[Array, Array], Any]

ONES: Final = np.ones(4, np.float32)
ZEROS: Final = np.zeros(4, np.float32)
MIXED: Final = np.array([1, 0, 2, 3], np.float32)
"""One zero."""
LARGE: Final = np.array([1, 2, 100, 3], np.float32)
BAD: Final = np.array([1, np.nan, 2, 3], np.float32)
INFINITE: Final = np.array([1, 2, np.inf, 3], np.float32)


@dataclasses.dataclass(frozen=True)
class Fault:
    """A function that returns a non-finite value or gradient, and why."""

    function: Function
    primitive: str
    """The primitive that is to blame; `argument` or `constant`."""
    remedy: str
    """A word of the remedy; empty if there is none."""
    w: Any = dataclasses.field(default_factory=lambda: ONES)
    x: Any = dataclasses.field(default_factory=lambda: ONES)
    direction: Literal["forward", "backward"] = "forward"
    """Backward: the value is finite, and the gradient is not."""
    path: str = ""
    """Of the argument that is to blame: `w[1]`."""
    iteration: int | None = None
    """Of the innermost loop."""

    @property
    def name(self) -> str:
        """The name of the function, in words."""
        return self.function.__name__.replace("_", " ")


FAULTS: Final[list[Fault]] = []
"""All faults."""


def fault(primitive: str, remedy: str = "", **more: Any) -> Callable[[Function], Function]:
    """Add a function to the faults."""

    def add(function: Function) -> Function:
        FAULTS.append(Fault(function, primitive, remedy, **more))
        return function

    return add


@fault("log", "positive", x=MIXED)
def log_of_zero(w: Array, x: Array) -> Any:
    return jnp.log(w * x)  # here


@fault("log", "positive", x=-ONES)
def log_of_a_negative(w: Array, x: Array) -> Any:
    return w + jnp.log(x)  # here


@fault("log", "xlogy", x=MIXED)
def entropy_of_zero(w: Array, x: Array) -> Any:
    p = x / jnp.sum(x)
    return w * p * jnp.log(p)  # here


@fault("log1p", "positive", x=-ONES)
def log1p_of_minus_one(w: Array, x: Array) -> Any:
    return w * jnp.log1p(x)  # here


@fault("sqrt", "below 0", x=-ONES)
def sqrt_of_a_negative(w: Array, x: Array) -> Any:
    return jnp.sqrt(w * x)  # here


@fault("rsqrt", "epsilon")
def layer_norm_of_a_constant(w: Array, x: Array) -> Any:
    centred = x - jnp.mean(x)
    scale = jax.lax.rsqrt(jnp.mean(centred**2))  # here
    return w * centred * scale


@fault("div", "variance")
def division_by_a_zero_deviation(w: Array, x: Array) -> Any:
    return w * (x - jnp.mean(x)) / jnp.std(x)  # here


@fault("div", "divisor", x=MIXED)
def division_by_zero(w: Array, x: Array) -> Any:
    return w / x  # here


@fault("div", "divisor", w=ZEROS, x=MIXED)
def zero_by_zero(w: Array, x: Array) -> Any:
    return w / x  # here


@fault("div", "norm", x=ZEROS)
def cosine_with_a_zero_vector(w: Array, x: Array) -> Any:
    return jnp.vdot(w, x) / jnp.sqrt(jnp.sum(w**2) * jnp.sum(x**2))  # here


@fault("div", "divisor", x=MIXED)
def divergence_with_an_empty_bin(w: Array, x: Array) -> Any:
    ratio = w / x  # here
    return jnp.sum(w * jnp.log(ratio))


@fault("exp", "clip", x=LARGE)
def exp_overflow(w: Array, x: Array) -> Any:
    return jnp.exp(w * x)  # here


@fault("exp", "softmax", x=LARGE)
def softmax_without_the_maximum(w: Array, x: Array) -> Any:
    e = jnp.exp(w * x)  # here
    return e / jnp.sum(e)


@fault("exp", "softplus", x=LARGE)
def softplus_by_hand(w: Array, x: Array) -> Any:
    return jnp.log(1 + jnp.exp(w * x))  # here


@fault("exp", "clip", w=ZEROS, x=LARGE)
def zero_times_an_overflow(w: Array, x: Array) -> Any:
    e = jnp.exp(x)  # here
    return w * e


@fault("mul", "float32", x=LARGE * 10)
def float16_product(w: Array, x: Array) -> Any:
    half = x.astype(jnp.float16)
    return w * (half * half)  # here


@fault("convert_element_type", "float32", x=LARGE * 1e4)
def float16_cast(w: Array, x: Array) -> Any:
    half = x.astype(jnp.float16)  # here
    return w * half


@fault("dot_general", "float32", x=LARGE * 10)
def float16_matrix_product(w: Array, x: Array) -> Any:
    half = x.astype(jnp.float16)
    return w * jnp.vdot(half, half)  # here


@fault("mul", "float32", x=LARGE * 1e30)
def bfloat16_product(w: Array, x: Array) -> Any:
    short = x.astype(jnp.bfloat16)
    return w * (short * jnp.bfloat16(1e10))  # here


@fault("square", "scale", x=LARGE * 1e30)
def square_overflow(w: Array, x: Array) -> Any:
    return w * jnp.square(x)  # here


@fault("reduce_sum", "scale", x=ONES * 2e38)
def sum_overflow(w: Array, x: Array) -> Any:
    return w * jnp.sum(x)  # here


@fault("cumprod", "logarithms", x=LARGE * 1e20)
def product_along_an_axis(w: Array, x: Array) -> Any:
    return w * jnp.cumprod(x)  # here


@fault("pow", "divisor", x=MIXED)
def zero_to_a_negative_power(w: Array, x: Array) -> Any:
    return jnp.power(x, -w)  # here


@fault("pow", "logarithms", x=-ONES)
def negative_to_a_fraction(w: Array, x: Array) -> Any:
    return jnp.power(x, 0.5 * w)  # here


@fault("gather", "index", x=ONES)
def index_out_of_range(w: Array, x: Array) -> Any:
    index = jnp.arange(4) * 2
    return w * jnp.take(x, index)  # here


@fault("gather", "index", x=ONES)
def read_with_fill(w: Array, x: Array) -> Any:
    return w * x.at[jnp.array([1, 9])].get(mode="fill").sum()  # here


@fault("acos", "clip", x=ONES * 1.0001)
def arc_cosine_after_rounding(w: Array, x: Array) -> Any:
    return w * jnp.arccos(x)  # here


@fault("atanh", "clip")
def inverse_tanh_of_one(w: Array, x: Array) -> Any:
    return w * jnp.arctanh(x)  # here


@fault("erf_inv", "clip")
def quantile_of_one(w: Array, x: Array) -> Any:
    return w * jax.scipy.special.erfinv(x)  # here


@fault("lgamma", "", x=ZEROS)
def lgamma_of_zero(w: Array, x: Array) -> Any:
    return w * jax.scipy.special.gammaln(x)  # here


@fault("rem", "divisor", x=MIXED)
def remainder_by_zero(w: Array, x: Array) -> Any:
    return jax.lax.rem(w, x)  # here


@fault("cholesky", "")
def cholesky_of_an_indefinite_matrix(w: Array, x: Array) -> Any:
    matrix = jnp.outer(x, x) - jnp.eye(4)
    return w * jnp.linalg.cholesky(matrix)[0]  # here


@fault("triangular_solve", "singular")
def singular_matrix(w: Array, x: Array) -> Any:
    return jnp.linalg.solve(jnp.outer(x, x), w * jnp.arange(4))  # here


@fault("sub", "mask", x=ONES)
def softmax_of_a_masked_row(w: Array, x: Array) -> Any:
    scores = jnp.where(jnp.arange(4) > 9, w * x, -jnp.inf)
    return jax.nn.softmax(scores)  # here


@fault("sub", "inf - inf", x=INFINITE)
def infinity_minus_infinity(w: Array, x: Array) -> Any:
    bound = jnp.where(w > 0, jnp.inf, w)
    return bound - bound + jnp.minimum(x, 1)  # here


@fault("mul", "0 * inf")
def mask_by_multiplication(w: Array, x: Array) -> Any:
    scores = jnp.where(x > 0, -jnp.inf, w)
    return jnp.sum(scores * (x < 0))  # here


@fault("mul", "int32", x=np.array([1, 2, 50_000, 3], np.int32))
def integer_product(w: Array, x: Array) -> Any:
    squared = x * x  # here
    return w * jnp.sqrt(squared.astype(jnp.float32))


@fault("cumsum", "int32", x=np.full(4, 2**30, np.int32))
def integer_sum(w: Array, x: Array) -> Any:
    total = jnp.cumsum(x)  # here
    return w * jnp.log(total)


@fault("dot_general", "int32", x=np.full(4, 2**16, np.int32))
def integer_matrix_product(w: Array, x: Array) -> Any:
    product = x @ x  # here
    return w / product


@fault("argument", "x", x=BAD, path="x[1]")
def bad_batch(w: Array, x: Array) -> Any:
    return jnp.sum(w * x)


@fault("argument", "x", x=INFINITE, path="x[2]")
def infinite_batch(w: Array, x: Array) -> Any:
    return (x - jnp.mean(x)) * w


@fault("argument", "w", w=BAD, path="w[1]")
def bad_parameter(w: Array, x: Array) -> Any:
    return jnp.tanh(w) @ x


@fault("constant", "captured")
def bad_captured_array(w: Array, x: Array) -> Any:
    return w * x * jnp.asarray(BAD)  # here


@fault("mul", "scale", x=LARGE * 1e10, iteration=3)
def growth_in_a_scan(w: Array, x: Array) -> Any:
    def body(carry: Array, _: Any) -> tuple[Array, Array]:
        grown = carry * x  # here
        return grown, jnp.sum(carry)

    return jax.lax.scan(body, w, None, length=6)[0]


@fault("div", "divisor", x=np.array([3, 2, 1, 0], np.float32), iteration=3)
def division_in_a_scan(w: Array, x: Array) -> Any:
    def body(carry: Array, row: Array) -> tuple[Array, Array]:
        divided = carry / row  # here
        return divided, divided

    return jax.lax.scan(body, w, x)[1]


@fault("sqrt", "below 0", iteration=2)
def sqrt_in_a_while_loop(w: Array, x: Array) -> Any:
    def body(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        count, value = carry
        return count + 1, jnp.sqrt(value) - x  # here

    return jax.lax.while_loop(lambda carry: carry[0] < 4, body, (jnp.array(0), w))[1]


@fault("log", "positive", iteration=1)
def log_in_a_fori_loop(w: Array, x: Array) -> Any:
    return jax.lax.fori_loop(0, 3, lambda _, value: jnp.log(value) * x, w)  # here


@fault("log", "positive", x=np.array([3, 6, 1, 2], np.float32), iteration=5)
def log_in_a_loop_under_vmap(w: Array, x: Array) -> Any:
    def one(scale: Array, end: Array) -> Any:
        def body(state: tuple[Array, Array]) -> tuple[Array, Array]:
            count, value = state
            return count + 1, scale * jnp.log(5 - count) + value  # here

        return jax.lax.while_loop(lambda state: state[0] < end, body, (jnp.array(0.0), scale))[1]

    return jax.vmap(one)(w, x)


@fault("log", "positive", x=MIXED)
def log_in_a_branch(w: Array, x: Array) -> Any:
    def taken() -> Any:
        return w * jnp.log(x)  # here

    return jax.lax.cond(jnp.sum(x) > 1, taken, lambda: w)


@fault("exp", "clip", x=LARGE)
def exp_in_a_vmap(w: Array, x: Array) -> Any:
    def one(scale: Array, value: Array) -> Any:
        return scale * jnp.exp(value)  # here

    return jax.vmap(one)(w, x)


@fault("exp", "clip", x=LARGE)
def exp_in_a_remat(w: Array, x: Array) -> Any:
    @jax.checkpoint
    def layer(value: Array) -> Any:
        return w * jnp.exp(value)  # here

    return layer(x)


@jax.custom_jvp
def _loglike(value: Array) -> Any:
    return jnp.log(value)  # here


@_loglike.defjvp
def _loglike_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (value,), (tangent,) = primals, tangents
    return _loglike(value), tangent / jnp.maximum(value, 1e-3)


@fault("log", "positive", x=MIXED)
def log_in_a_custom_jvp(w: Array, x: Array) -> Any:
    return w * _loglike(x)


@jax.jit
def _jitted(value: Array) -> Any:
    return jnp.log(value)  # here


@fault("log", "positive", x=MIXED)
def log_in_the_second_call_of_a_jitted_function(w: Array, x: Array) -> Any:
    return _jitted(w) + _jitted(x)


@fault("sqrt", "below 0", x=-ONES)
def two_infinities_and_one_fault(w: Array, x: Array) -> Any:
    scores = jnp.where(jnp.arange(4) > 1, w, -jnp.inf)
    values = jnp.sqrt(x)  # here
    return jnp.sum(jnp.concatenate([jax.nn.softmax(scores), jnp.exp(scores), values]))


@fault("div", "root", w=MIXED, direction="backward")
def sqrt_that_a_where_discards(w: Array, x: Array) -> Any:
    return jnp.where(w > 0, jnp.sqrt(w), 0) * x  # here


@fault("div", "jnp.where", w=MIXED, direction="backward")
def log_that_a_where_discards(w: Array, x: Array) -> Any:
    return jnp.where(w > 0, jnp.log(w), 0) * x  # here


@fault("integer_pow", "jnp.where", w=MIXED, direction="backward")
def quotient_that_a_where_discards(w: Array, x: Array) -> Any:
    return jnp.where(w > 0, x / w, 0)  # here


@fault("exp", "jnp.where", w=LARGE, direction="backward")
def exp_that_a_where_discards(w: Array, x: Array) -> Any:
    return jnp.where(w < 10, jnp.exp(w), w) * x  # here


@fault("div", "root", w=ZEROS, direction="backward")
def norm_of_zero(w: Array, x: Array) -> Any:
    return jnp.linalg.norm(w) * x  # here


@fault("div", "root", direction="backward")
def deviation_of_a_constant(w: Array, x: Array) -> Any:
    return jnp.std(w) * x  # here


@fault("div", "root", w=ZEROS, direction="backward")
def distance_to_itself(w: Array, x: Array) -> Any:
    distance = jnp.sqrt(jnp.sum((w[:, None] - w[None]) ** 2, -1))  # here
    return distance * x


@fault("integer_pow", "equal", direction="backward")
def eigenvectors_of_equal_eigenvalues(w: Array, x: Array) -> Any:
    vectors = jnp.linalg.eigh(jnp.diag(w))[1]  # here
    return jnp.sum(vectors**3) * x


@fault("pow", "jnp.where", w=MIXED, direction="backward")
def root_by_a_power(w: Array, x: Array) -> Any:
    return jnp.power(w, 0.5) * x  # here


@fault("rsqrt", "jnp.where", direction="backward")
def arc_cosine_of_one(w: Array, x: Array) -> Any:
    return jnp.arccos(w) * x  # here


@fault("mul", "float32", x=LARGE * 20, direction="backward")
def float16_gradient(w: Array, x: Array) -> Any:
    half = x.astype(jnp.float16)
    return (w.astype(jnp.float16) * jnp.float16(1e-3) * half * half).astype(jnp.float32)  # here


@jax.custom_vjp
def _clipped(value: Array) -> Any:
    return jnp.minimum(value, 1)


def _clipped_forward(value: Array) -> tuple[Array, Array]:
    return _clipped(value), value


def _clipped_backward(value: Array, cotangent: Array) -> tuple[Array]:
    return (cotangent / (value - 1),)


_clipped.defvjp(_clipped_forward, _clipped_backward)


@fault("div", "", direction="backward")
def division_in_a_custom_vjp(w: Array, x: Array) -> Any:
    return _clipped(w) * x  # here: JAX gives the equations of the rule the line of the call


@fault("div", "root", w=ZEROS, direction="backward", iteration=0)
def norm_in_a_scan(w: Array, x: Array) -> Any:
    def body(carry: Array, row: Array) -> tuple[Array, None]:
        return carry + jnp.linalg.norm(w * row) * x, None  # here

    return jax.lax.scan(body, x, x)[0]


@fault("div", "root", w=ZEROS, direction="backward")
def norm_in_a_remat(w: Array, x: Array) -> Any:
    @jax.checkpoint
    def layer(value: Array) -> Any:
        return jnp.linalg.norm(value) * x  # here

    return layer(w)
