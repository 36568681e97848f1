"""Which steps to leave out: mini-steps of `MultiSteps`, or any step by `skip_if`."""

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
from optwrap._core.norm_cache import cached_answer
from optwrap._core.trees import (
    Tree,
    count_dtype,
    finite_probes,
    gradient_tree,
    inexact_leaves,
    nonfinite_counts,
    saturating_sum,
    squared_norm,
    suspects,
)


class ShouldSkipUpdateFunction(Protocol):
    """Says which mini-steps `MultiSteps` leaves out, or which steps `skip_if` does."""

    def __call__(
        self, updates: Tree, gradient_step: ArrayLike, params: Tree | None
    ) -> tuple[jax.Array, Any]:  # pragma: no cover
        """Whether to leave out this step.

        It is called once in `init`, with zeros, and once in every `update`.

        Args:
          updates: the incoming updates of this step.
          gradient_step: int32[], optimizer steps so far.
          params: the parameters, where they are known.

        Returns:
          bool[], true to leave the step out; and a tree of arrays of the same structure, shapes and dtypes in every
          call, which becomes `MultiStepsState.skip_state` or `SkipIfState.skip_state`. A mapping with the key
          `should_skip`, holding that same bool, lets `MultiSteps.has_updated` see a skip.
        """
        ...


def skip_not_finite(
    updates: Tree, gradient_step: ArrayLike, params: Tree | None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Leave out steps with a value that is not finite: a `ShouldSkipUpdateFunction`.

    Args:
      updates: the incoming updates.
      gradient_step: not used.
      params: not used.

    Returns:
      bool[], and the same as `should_skip` beside `num_not_finite`: int32[] (int64[] where 64-bit types are enabled),
      how many values are not finite, saturated at the dtype's largest value.
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
        finite = jnp.isfinite(together.total(probes))
        # Counting costs more than deciding, and is needed only where there is something to count.
        num_not_finite = jax.lax.cond(finite, _no_count, _count(together), finite, leaves, suspects(leaves, probes))
    return ~finite, {"should_skip": ~finite, "num_not_finite": num_not_finite}


# Without jit, JAX compiles a condition anew whenever its branches are other functions than before.


def _no_count(finite: jax.Array, *_: Any) -> jax.Array:
    return jnp.zeros_like(finite, dtype=count_dtype())


@functools.cache
def _count(together: Together) -> Callable[..., jax.Array]:
    return lambda _, leaves, suspects: saturating_sum(nonfinite_counts(leaves, suspects, together))


def skip_large_updates(
    updates: Tree, gradient_step: ArrayLike, params: Tree | None, max_squared_norm: ArrayLike
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Leave out steps whose squared L2 norm is not below a limit: with the limit, a `ShouldSkipUpdateFunction`.

    Use `functools.partial(skip_large_updates, max_squared_norm=...)`. A norm at the limit, and one that is NaN, are
    left out, too.

    Args:
      updates: the incoming updates.
      gradient_step: not used.
      params: not used.
      max_squared_norm: the limit on the sum of squared absolute values over all leaves; a number from 0. May be traced.

    Returns:
      bool[], and the same as `should_skip` beside `norm_squared`: float32[], or float64[] where a leaf has 64 bits.

    Raises:
      TypeError: `max_squared_norm` is no real scalar.
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
    """A skip function as a wrapper asks it: checked, and the same on all devices that are to decide together."""

    def __init__(self, argument: str, function: Any, *, together: bool) -> None:
        """Check the argument.

        Args:
          argument: what it is called, for messages: `MultiSteps: should_skip_update_fn`.
          function: the value.
          together: whether devices are to decide together: then optax's own functions, which know nothing of other
            devices, are replaced by those of the same name here.

        Raises:
          TypeError: it is not callable, or it is `skip_large_updates` without its limit.
          ValueError: that limit is negative or NaN.
        """
        if not callable(function):
            raise TypeError(
                f"{argument} must be a function, got {_checks.shown(function)}: pass skip_not_finite, "
                "functools.partial(skip_large_updates, max_squared_norm=...) or your own"
            )
        self._argument = argument
        self.max_squared_norm = _max_squared_norm_of(argument, function)
        """The limit of `skip_large_updates`, ours or optax's, where that is the function."""
        self._function: ShouldSkipUpdateFunction = _ours(function) if together else function

    def __call__(
        self, updates: Tree, gradient_step: ArrayLike, params: Tree | None, together: Together = ALONE
    ) -> tuple[jax.Array, Any]:
        """What the function says: bool[], and its state.

        The state of `skip_not_finite` and `skip_large_updates` is that of the updates on all devices. Any other
        function is asked on each device, and if it says so on one, all of them skip; its state is each device's own,
        but for `should_skip` in a mapping.

        Raises:
          TypeError: what the function returned is not a pair whose first is an array.
          ValueError: the array is not a single bool.
        """
        function, keywords = _named(self._function)
        if function is skip_not_finite:
            return _skip_not_finite(updates, together)
        if function is skip_large_updates:
            return _skip_large_updates(updates, together, **keywords)
        skip, skip_state = self._checked(self._function(updates, gradient_step, params))
        if together == ALONE:
            return skip, skip_state
        skip = together.largest(skip)
        return skip, _saying(skip_state, lambda _: skip)

    def first_state(self, params: Tree) -> Any:
        """The state before the first step: what the function says of gradients that are zero."""
        # On zeros all devices say the same, and `init` may be called where there are no axes.
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


def said_to_skip(skip_state: Any) -> ArrayLike | None:
    """Whether the last step was left out, as a mapping with `should_skip` says (bool[]); None where nothing says so."""
    said: ArrayLike | None = skip_state.get("should_skip") if isinstance(skip_state, Mapping) else None
    return said


def not_skipped_if(taken: jax.Array, skip_state: Any) -> Any:
    """The skip state, saying that nothing was left out where a step was taken that no skip function was asked about."""
    return _saying(skip_state, lambda said: jnp.where(taken, False, said))


def _saying(skip_state: Any, of: Callable[[Any], jax.Array]) -> Any:
    """The skip state, with another flag `should_skip` where it is a mapping that has one."""
    flag = (jax.tree_util.DictKey("should_skip"),)
    return jax.tree_util.tree_map_with_path(lambda path, leaf: of(leaf) if path == flag else leaf, skip_state)


def _ours(should_skip_update_fn: ShouldSkipUpdateFunction) -> ShouldSkipUpdateFunction:
    """The skip function; where it is optax's own, that of the same name here."""
    function, keywords = _named(should_skip_update_fn)
    if function is optax.skip_not_finite:
        return skip_not_finite
    if function is optax.skip_large_updates:
        return functools.partial(skip_large_updates, **keywords)
    return should_skip_update_fn


def _named(function: Any) -> tuple[Any, dict[str, Any]]:
    """The function, out of a `functools.partial` that gives it keywords only; and those keywords."""
    if isinstance(function, functools.partial) and not function.args:
        return function.func, function.keywords
    return function, {}


def _max_squared_norm_of(argument: str, should_skip_update_fn: Any) -> ArrayLike | None:
    function, keywords = _named(should_skip_update_fn)
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
