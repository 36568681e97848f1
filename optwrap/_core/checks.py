"""Checks of arguments, made when a wrapper is constructed or first traced."""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

INT32_MAX: Final = 2**31 - 1

_MAX_PATHS: Final = 6
"""Paths in one error message."""


def is_concrete(value: object) -> bool:
    """Whether the value can be read now: it is not a tracer, and no part of it is on another process."""
    if isinstance(value, jax.core.Tracer):
        return False
    return not isinstance(value, jax.Array) or value.is_fully_addressable


def shown(value: object) -> str:
    """A value for an error message: an array by dtype and shape, anything else by its repr, at most 80 characters."""
    if isinstance(value, jax.core.Tracer | jax.Array | np.ndarray) and (np.ndim(value) or not is_concrete(value)):
        return f"an array {value.dtype}{list(np.shape(value))}"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def integer_type(argument: str, value: Any, allowed: str, remedy: str) -> None:
    """Check for a scalar integer of Python, numpy or JAX, traced or not. A bool is not accepted.

    Raises:
      TypeError: it is not such an integer.
    """
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        fits = bool(np.issubdtype(value.dtype, np.integer)) and np.ndim(value) == 0
    else:
        fits = isinstance(value, int) and not isinstance(value, bool)
    if not fits:
        raise TypeError(f"{argument} must be {allowed}, got {shown(value)} ({type(value).__name__}): {remedy}")


def integer(argument: str, value: Any, least: int, remedy: str) -> ArrayLike:
    """Check for a scalar integer from `least` to 2**31 - 1. If it is traced, only its type is checked.

    Returns:
      The Python int if the value is known now, else the traced array.

    Raises:
      TypeError: not a scalar integer.
      ValueError: out of range.
    """
    allowed = f"an integer from {least} to {INT32_MAX}"
    integer_type(argument, value, allowed, remedy)
    if not is_concrete(value):
        return value  # type: ignore[no-any-return]  # a jax.Array: all else is concrete
    number = int(value)
    if not least <= number <= INT32_MAX:
        raise ValueError(f"{argument} must be {allowed}, got {number}: {remedy}")
    return number


def real(argument: str, value: Any, most: float, remedy: str) -> ArrayLike:
    """Check for a scalar real number from 0 to `most`, not NaN. If it is traced, only its type is checked.

    Returns:
      The value. An integer that is known now becomes a float: it may be too large for JAX's integers.

    Raises:
      TypeError: not a real number, or not a scalar.
      ValueError: out of range, or NaN.
    """
    allowed = "a number from 0" + (f" to {most:g}" if math.isfinite(most) else "")
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        kinds = (jnp.floating, jnp.integer)
        fits = any(jnp.issubdtype(value.dtype, kind) for kind in kinds) and np.ndim(value) == 0
    else:
        fits = isinstance(value, int | float) and not isinstance(value, bool)
    if not fits:
        raise TypeError(f"{argument} must be {allowed}, got {shown(value)} ({type(value).__name__}): {remedy}")
    if not is_concrete(value):
        return value  # type: ignore[no-any-return]  # a jax.Array: all else is concrete
    try:
        number = float(value)
    except OverflowError as error:
        raise ValueError(f"{argument} must be {allowed}, got an integer too large for a float: {remedy}") from error
    if not 0 <= number <= most:
        raise ValueError(f"{argument} must be {allowed}, got {number}: {remedy}")
    whole = isinstance(value, int) or (hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jnp.integer))
    return number if whole else value


def flag(argument: str, value: Any, remedy: str) -> bool:
    """Check for a bool that is known now: of Python or numpy, or the integers 0 and 1.

    Raises:
      TypeError: it is not one of these.
    """
    if isinstance(value, bool | np.bool_) or (isinstance(value, int | np.integer) and value in (0, 1)):
        return bool(value)
    raise TypeError(f"{argument} must be True or False, got {shown(value)} ({type(value).__name__}): {remedy}")


def one_of(argument: str, value: Any, allowed: Sequence[str], remedy: str) -> None:
    """Check for one of the allowed strings.

    Raises:
      ValueError: it is another value.
    """
    if not (isinstance(value, str) and value in allowed):
        names = " or ".join(map(repr, allowed))
        raise ValueError(f"{argument} must be {names}, got {shown(value)} ({type(value).__name__}): {remedy}")


State = TypeVar("State")


def state(wrapper: str, value: Any, expected: type[State]) -> State:
    """Check for the state of a wrapper: an instance of the class that its `init` returns.

    Raises:
      TypeError: it is of another class: the state of another wrapper, or a checkpoint restored without a target.
    """
    if not isinstance(value, expected):
        raise TypeError(
            f"{wrapper}: state must be the {expected.__name__} that init returns, got {shown(value)} "
            f"({type(value).__name__}): pass the state that init or the last update of this transformation returned; "
            "restore a checkpoint into a state made by init"
        )
    return value


def alike(argument: str, tree: Any, expected: Any, whose: str, remedy: str, *, more: bool = False) -> None:
    """Check for a tree with the structure and shapes of `expected`. Nothing is broadcast.

    Args:
      argument: the name of the tree in the message.
      tree: arrays, or abstract arrays.
      expected: the same.
      whose: the name of `expected` in the message.
      remedy: what to do.
      more: whether the tree may have more leaves, and other containers.

    Raises:
      ValueError: the two differ; the message names the paths.
    """
    if _all_fit(tree, expected, operator.eq):
        return
    got, wanted = _shapes(tree), _shapes(expected)
    structures: list[Any] = [jax.tree.structure(tree), jax.tree.structure(expected)]
    differences = [f"{path} is missing" for path in wanted if path not in got]
    if not more:
        differences += [f"{path} is unexpected" for path in got if path not in wanted]
        if structures[0] != structures[1] and not differences:
            differences = [f"got the structure {structures[0]}, expected {structures[1]}"]
    if differences:
        listed = "; ".join(differences[:_MAX_PATHS]) + ("; ..." if len(differences) > _MAX_PATHS else "")
        raise ValueError(f"{argument} must have the leaves of {whose}: {listed}: {remedy}")
    for path, shape in wanted.items():
        if got[path] != shape:
            raise ValueError(f"{argument}{path} must have the shape of {whose}, {shape}, got {got[path]}: {remedy}")


def gradients(wrapper: str, grads: Any, params: Any) -> None:
    """Check that gradients have the shapes of the parameters with the same paths.

    Per-sample gradients, which some optimizers take, may have more axes in front. Leaves that only one of the two trees
    has are not checked, because frozen parameters may have no gradients.

    Args:
      wrapper: the name of the wrapper in the message.
      grads: arrays, or abstract arrays.
      params: the same; None if they are not known.

    Raises:
      ValueError: a gradient has another shape; the message names its path.
    """
    if params is None or _all_fit(grads, params, _ends_with):
        return
    wanted = _shapes(params)
    for path, shape in _shapes(grads).items():
        if path in wanted and not _ends_with(shape, wanted[path]):
            raise ValueError(
                f"{wrapper}: updates{path} must have the shape of its parameter, {wanted[path]}, or that shape with "
                f"further axes in front, got {shape}: pass the gradients of these parameters"
            )


Shape = tuple[int, ...]


def _ends_with(shape: Shape, end: Shape) -> bool:
    return len(shape) >= len(end) and shape[len(shape) - len(end) :] == end


def _all_fit(tree: Any, expected: Any, fits: Callable[[Shape, Shape], bool]) -> bool:
    """Whether the structures are equal and all shapes fit. Quick, because it computes no paths."""
    leaves, others = jax.tree.leaves(tree), jax.tree.leaves(expected)
    structures: list[Any] = [jax.tree.structure(tree), jax.tree.structure(expected)]
    return structures[0] == structures[1] and all(
        fits(np.shape(leaf), np.shape(other)) for leaf, other in zip(leaves, others, strict=True)
    )


def _shapes(tree: Any) -> dict[str, Shape]:
    """The shape of every leaf by its path, which is empty if the tree is a single array."""
    return {jax.tree_util.keystr(path): np.shape(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def transformation(argument: str, value: Any) -> Any:
    """The value as an `optax.GradientTransformationExtraArgs`.

    Accepts a transformation, any other object with `init` and `update`, and an object with a method
    `gradient_transformation`, such as `MultiSteps`.

    Raises:
      TypeError: it is not one of these.
    """
    if callable(as_transformation := getattr(value, "gradient_transformation", None)):
        offered = as_transformation()
        if isinstance(value, optax.MultiSteps) and not isinstance(offered, optax.GradientTransformationExtraArgs):
            # optax's own MultiSteps takes extra arguments, but the transformation that it returns does not.
            offered = optax.GradientTransformationExtraArgs(value.init, value.update)
        value = offered
    if not (callable(getattr(value, "init", None)) and callable(getattr(value, "update", None))):
        hint = " (call it: optax.adam(1e-3), not optax.adam)" if callable(value) else ""
        raise TypeError(
            f"{argument} must be an optax.GradientTransformation, got {shown(value)} ({type(value).__name__}): "
            f"pass an object with init and update{hint}"
        )
    return optax.with_extra_args_support(value)
