"""Skip functions: they decide which mini-steps `MultiSteps` skips, or which steps `skip_if` skips."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from optwrap._core import checks as _checks
from optwrap._core.collectives import ALONE, Together
from optwrap._core.finite import (
    count_dtype,
    finite_probes,
    inexact_leaves,
    nonfinite_counts,
    saturating_sum,
    squared_norm,
    suspects,
)
from optwrap._core.norm_cache import cached_answer
from optwrap._core.trees import Tree, gradient_tree


class ShouldSkipUpdateFunction(Protocol):
    """A function that decides which mini-steps `MultiSteps` skips, or which steps `skip_if` skips."""

    def __call__(
        self, updates: Tree, gradient_step: ArrayLike, params: Tree | None
    ) -> tuple[jax.Array, Any]:  # pragma: no cover
        """Decides whether to skip this step.

        It is called once in `init`, with zeros, and once in every `update`.

        Args:
          updates: the incoming updates of this step.
          gradient_step: int32[], optimizer steps so far.
          params: the parameters; None if `update` was not given any.

        Returns:
          A pair. The first is bool[], true to skip the step. The second is a tree of arrays with the same structure,
          shapes and dtypes in every call; it becomes `MultiStepsState.skip_state` or `SkipIfState.skip_state`. If it is
          a mapping that holds the same bool under the key `should_skip`, `MultiSteps.has_updated` recognises a skip.
        """
        ...


def skip_not_finite(
    updates: Tree, gradient_step: ArrayLike, params: Tree | None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Skips steps with a non-finite value: a `ShouldSkipUpdateFunction`.

    Drop-in for `optax.skip_not_finite` (optax 0.2.8), whose count can wrap to 0.

    Args:
      updates: the incoming updates.
      gradient_step: not used.
      params: not used.

    Returns:
      `should_skip`, bool[], and a dict of `should_skip` and `num_not_finite`: the number of non-finite values, int32[]
      (int64[] if 64-bit types are enabled), saturated at the dtype's largest value.
    """
    del gradient_step, params
    return _skip_not_finite(updates, ALONE)


def _skip_not_finite(updates: Tree, together: Together) -> tuple[jax.Array, dict[str, jax.Array]]:
    leaves = inexact_leaves(updates)
    answer = cached_answer(leaves, together)
    if not leaves:
        finite, num_not_finite = jnp.array(True), jnp.zeros([], count_dtype())
    elif answer is not None and answer.counts is not None:
        finite, num_not_finite = answer.finite, saturating_sum(answer.counts)
    else:
        probes = finite_probes(leaves)
        finite = jnp.isfinite(together.any_order_total(probes))
        # Counting costs more than deciding, so count only if there is a non-finite value.
        num_not_finite = jax.lax.cond(finite, _no_count, _count(together), finite, leaves, suspects(leaves, probes))
    return ~finite, {"should_skip": ~finite, "num_not_finite": num_not_finite}


# Outside jit, JAX recompiles a condition whenever its branches are new function objects.


def _no_count(finite: jax.Array, *_: Any) -> jax.Array:
    return jnp.zeros_like(finite, dtype=count_dtype())


@functools.cache
def _count(together: Together) -> Callable[..., jax.Array]:
    return lambda _, leaves, suspects: saturating_sum(nonfinite_counts(leaves, suspects, together))


def skip_large_updates(
    updates: Tree, gradient_step: ArrayLike, params: Tree | None, max_squared_norm: ArrayLike
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Skips steps whose squared L2 norm is not below a limit.

    `functools.partial(skip_large_updates, max_squared_norm=...)` is a `ShouldSkipUpdateFunction`. A norm equal to the
    limit is skipped, and so is NaN. Drop-in for `optax.skip_large_updates` (optax 0.2.8).

    Args:
      updates: the incoming updates.
      gradient_step: not used.
      params: not used.
      max_squared_norm: the limit on the sum of squared absolute values over all leaves; a number, 0 or more. May be
        traced.

    Returns:
      `should_skip`, bool[], and a dict of `should_skip` and `norm_squared`: float32[], or float64[] if a leaf has 64
      bits.

    Raises:
      TypeError: `max_squared_norm` is not a real scalar.
      ValueError: it is negative or NaN.
    """
    del gradient_step, params
    return _skip_large_updates(updates, ALONE, max_squared_norm)


def _skip_large_updates(
    updates: Tree, together: Together, max_squared_norm: ArrayLike
) -> tuple[jax.Array, dict[str, jax.Array]]:
    max_squared_norm = _checked_max_squared_norm(max_squared_norm)
    norm_squared = squared_norm(updates, together)
    with jax.numpy_dtype_promotion("standard"):
        should_skip = ~(norm_squared < max_squared_norm)
    return should_skip, {"should_skip": should_skip, "norm_squared": norm_squared}


class SkipFunction:
    """A checked skip function. All devices that decide together get the same decision."""

    def __init__(self, argument: str, function: Any, *, together: bool) -> None:
        """Check the argument.

        Args:
          argument: the argument's name, for messages: `MultiSteps: should_skip_update_fn`.
          function: its value.
          together: whether devices decide together. Then optax's own functions, which do not reduce over devices, are
            replaced by optwrap's.

        Raises:
          TypeError: it is not callable, or it is `skip_large_updates` without its limit.
          ValueError: the limit is negative or NaN.
        """
        if not callable(function):
            raise TypeError(
                f"{argument} must be a function, got {_checks.shown(function)}: pass skip_not_finite, "
                "functools.partial(skip_large_updates, max_squared_norm=...) or your own"
            )
        self._argument = argument
        self.max_squared_norm = _max_squared_norm_of(argument, function)
        """The limit, if the function is `skip_large_updates` (optwrap's or optax's); else None."""
        self._function: ShouldSkipUpdateFunction = _replace_optax(function) if together else function

    def __call__(
        self, updates: Tree, gradient_step: ArrayLike, params: Tree | None, together: Together = ALONE
    ) -> tuple[jax.Array, Any]:
        """Returns `should_skip`, bool[], and the skip state.

        `skip_not_finite` and `skip_large_updates` see the updates on all devices. Any other function is called on each
        device; if it returns true on one, all devices skip. Its state may differ between devices, except `should_skip`
        in a mapping.

        Raises:
          TypeError: the function did not return a pair that begins with an array.
          ValueError: the array is not a single bool.
        """
        function, keywords = _unpartial(self._function)
        if function is skip_not_finite:
            return _skip_not_finite(updates, together)
        if function is skip_large_updates:
            return _skip_large_updates(updates, together, **keywords)
        skip, skip_state = self._checked(self._function(updates, gradient_step, params))
        if together == ALONE:
            return skip, skip_state
        skip = together.largest(skip)
        return skip, _with_should_skip(skip_state, lambda _: skip)

    def first_state(self, params: Tree) -> Any:
        """The skip state before the first step: the function's result for zero gradients."""
        # Not together: zeros give the same result on every device, and `init` may be called outside the mesh axes.
        zeros = jax.tree.map(jnp.zeros_like, gradient_tree(params))
        return self(zeros, jnp.zeros([], jnp.int32), params)[1]

    def _checked(self, returned: Any) -> tuple[jax.Array, Any]:
        remedy = "return (skip, skip_state) with skip a boolean scalar array such as jnp.any(...)"
        if not (isinstance(returned, tuple | list) and len(returned) == 2):
            raise TypeError(f"{self._argument} returned {_checks.shown(returned)}, not a pair: {remedy}")
        skip, skip_state = returned
        if not isinstance(skip, jax.Array | np.ndarray | np.generic):
            raise TypeError(
                f"{self._argument} returned {_checks.shown(skip)} ({type(skip).__name__}) as its first value, not an "
                f"array: {remedy}"
            )
        if skip.dtype != jnp.bool_ or skip.shape != ():
            raise ValueError(
                f"{self._argument} returned an array {skip.dtype}{list(skip.shape)} as its first value, expected "
                f"bool[]: {remedy}"
            )
        return jnp.asarray(skip), skip_state


def should_skip_of(skip_state: Any) -> ArrayLike | None:
    """The `should_skip` of a skip state, bool[]; None if it is not a mapping that has one."""
    should_skip: ArrayLike | None = skip_state.get("should_skip") if isinstance(skip_state, Mapping) else None
    return should_skip


def not_skipped_if(taken: jax.Array, skip_state: Any) -> Any:
    """The skip state after a step without a call of the skip function: `should_skip` is false if it was taken."""
    return _with_should_skip(skip_state, lambda should_skip: jnp.where(taken, False, should_skip))


def _with_should_skip(skip_state: Any, new: Callable[[Any], jax.Array]) -> Any:
    """The skip state with a new `should_skip`, if it is a mapping that has one."""
    flag = (jax.tree_util.DictKey("should_skip"),)
    return jax.tree_util.tree_map_with_path(lambda path, leaf: new(leaf) if path == flag else leaf, skip_state)


def _replace_optax(should_skip_update_fn: ShouldSkipUpdateFunction) -> ShouldSkipUpdateFunction:
    """The skip function; optwrap's function of the same name if it is optax's own."""
    function, keywords = _unpartial(should_skip_update_fn)
    if function is optax.skip_not_finite:
        return skip_not_finite
    if function is optax.skip_large_updates:
        return functools.partial(skip_large_updates, **keywords)
    return should_skip_update_fn


def _unpartial(function: Any) -> tuple[Any, dict[str, Any]]:
    """The function and the keywords of a `functools.partial` without positional arguments; else the function itself."""
    if isinstance(function, functools.partial) and not function.args:
        return function.func, function.keywords
    return function, {}


def _max_squared_norm_of(argument: str, should_skip_update_fn: Any) -> ArrayLike | None:
    function, keywords = _unpartial(should_skip_update_fn)
    if function not in (skip_large_updates, optax.skip_large_updates):
        return None
    if set(keywords) != {"max_squared_norm"}:
        raise TypeError(
            f"{argument}: skip_large_updates needs its limit, got keywords {sorted(keywords)}, expected "
            "max_squared_norm: pass functools.partial(skip_large_updates, max_squared_norm=...)"
        )
    return _checked_max_squared_norm(keywords["max_squared_norm"])


def _checked_max_squared_norm(value: Any) -> ArrayLike:
    return _checks.real(
        "skip_large_updates: max_squared_norm", value, np.inf, "give the squared norm from which to skip"
    )
