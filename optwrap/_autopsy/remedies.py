"""What usually helps against a fault, by the operation that caused it."""

from collections.abc import Sequence
from typing import Final

from optwrap._autopsy.parts import FaultStep, Operand

_DOUBLE_WHERE: Final = (
    "if a jnp.where discards the value, it is differentiated nevertheless: give the function a safe argument inside, "
    "jnp.where(ok, f(jnp.where(ok, x, 1)), 0)"
)
_SAFE_NORM: Final = (
    "the derivative of a square root or norm is infinite at 0: add an epsilon under the root, or take "
    "optax.safe_norm; where the value is masked, give the root a safe argument inside the jnp.where"
)
_HALF: Final = "compute this in float32, or scale the values down; for products and sums accumulate in float32: "
DECOMPOSITIONS: Final = frozenset({"eigh", "eig", "svd", "schur", "geqrf", "cholesky"})
_HALF_TYPES: Final = ("float16", "bfloat16")


def remedy(cause: FaultStep, derivative_of: str | None, feeding: Sequence[str], *, discarded: bool) -> str | None:  # noqa: PLR0911
    """What usually helps; None if nothing is known.

    Args:
      cause: the step to look at.
      derivative_of: the primitive of the forward pass that the step is the derivative of; None if it is of none.
      feeding: the primitives that computed its inputs.
      discarded: whether the forward pass discarded its infinity, and the backward pass multiplied it by zero.
    """
    if cause.kind == "argument":
        return f"check where {cause.path} comes from: it is not finite when the function is called"
    if cause.kind == "constant" and "nan" not in cause.value:
        return (
            "an infinity in the source, such as a mask or the start of a maximum, is left in an output: give an empty "
            "row or segment a finite value; if it is meant, it is no fault"
        )
    if cause.kind == "constant":
        return "an array that the function captured, or a number in its source, is not finite: replace it"
    if cause.kind == "integer_overflow":
        return f"{cause.dtype} wraps around: convert to a float, or to a wider integer, before this operation"
    if derivative_of in DECOMPOSITIONS:
        return f"the derivative of {derivative_of} is not finite where eigenvalues or singular values are equal or 0"
    if derivative_of is not None and (known := _derivative(derivative_of)):
        return known
    if discarded:
        return f"the value is infinite, and its derivative is multiplied by 0: {_DOUBLE_WHERE}"
    if cause.phase == "backward" and _zero_divisor(cause.primitive, cause.operands):
        return f"the derivative of this line is not finite here: {_DOUBLE_WHERE}"
    return _by_name(cause, feeding)


def _derivative(of: str) -> str | None:
    if of in ("sqrt", "rsqrt", "cbrt"):
        return _SAFE_NORM
    if of == "div":
        return f"the divisor is 0, and so the derivative is not finite: {_DOUBLE_WHERE}"
    if of in ("log", "log1p", "pow", "integer_pow", "atan2", "acos", "asin", "acosh", "atanh"):
        return f"the derivative of {of} is not finite here: {_DOUBLE_WHERE}"
    return None


def _by_name(cause: FaultStep, feeding: Sequence[str]) -> str | None:  # noqa: PLR0911, PLR0912  # a table with conditions
    name, operands = cause.primitive, cause.operands
    if name in ("log", "log1p"):
        return "keep its argument positive, jnp.log(jnp.maximum(x, tiny)); for x * log(x) take jax.scipy.special.xlogy"
    if name in ("sqrt", "rsqrt"):
        if "nan" in cause.value:
            return "keep its argument from going below 0: jnp.sqrt(jnp.maximum(x, 0))"
        return "add an epsilon under the root"
    if name in ("exp", "exp2", "expm1", "sinh", "cosh"):
        return "clip its argument, or subtract its maximum first: jax.nn.softmax, jax.nn.logsumexp, jax.nn.softplus"
    if name == "gather":
        return "the index is out of range, and jnp.take fills with NaN: correct the index, or pass mode='clip'"
    if name in ("div", "rem", "integer_pow", "pow") and _zero_divisor(name, operands):
        if "sqrt" in feeding:
            return "the standard deviation or norm is 0: add an epsilon to the variance, under the root"
        return "the divisor is 0: add an epsilon, or divide by jnp.where(d == 0, 1, d)"
    if name in ("triangular_solve", "lu", "tridiagonal_solve"):
        return "the matrix is singular: add a small multiple of the identity, or take jnp.linalg.lstsq or pinv"
    if name == "cholesky":
        return "the matrix is not positive definite: add a small multiple of the identity"
    if name in ("acos", "asin", "atanh", "acosh", "erf_inv"):
        return "rounding takes the argument out of the function's domain: jnp.clip it to the inside"
    if name == "sub" and all(operand.nonfinite for operand in operands):
        return "inf - inf is NaN: if a mask hides a whole row, give the row one finite value, or mask with -1e9"
    if name == "mul" and _holds(operands, 0) and any(operand.nonfinite for operand in operands):
        return f"0 * inf is NaN: {_DOUBLE_WHERE}"
    if cause.dtype in _HALF_TYPES:
        if name == "convert_element_type":
            return f"the value is too large for {cause.dtype}: keep it in float32, or scale it down before"
        return _HALF + "dtype=jnp.float32, preferred_element_type=jnp.float32"
    if name in ("pow", "cumprod", "reduce_prod"):
        return "compute with logarithms, or limit the base and the exponent"
    if name in ("mul", "square", "integer_pow", "add", "add_any", "reduce_sum", "dot_general", "cumsum", "div"):
        return f"the result is too large for {cause.dtype}: look at the range of the inputs, and scale or clip them"
    return None


def _holds(operands: Sequence[Operand], value: float) -> bool:
    """Whether the value is in the range of one of them."""
    return any(
        operand.least is not None and operand.greatest is not None and operand.least <= value <= operand.greatest
        for operand in operands
    )


def _zero_divisor(name: str, operands: Sequence[Operand]) -> bool:
    if name in ("div", "rem"):
        return _holds(operands[1:], 0)
    return name in ("pow", "integer_pow") and _holds(operands[:1], 0)
