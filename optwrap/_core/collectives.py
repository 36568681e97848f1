"""Reductions over devices inside `shard_map`, `pmap` and `vmap`.

Under plain jit an array is whole, and the compiler reduces it over the devices. Inside `shard_map` and `pmap` each
device has its own values, and decides for itself unless a value is reduced over the mesh axes.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from optwrap._core.checks import shown

AxisName = str | tuple[str, ...] | None
"""The name of a mesh axis (of `shard_map`, `pmap` or `vmap`), a tuple of names, or None."""


def varying(aval: Any) -> frozenset[str]:
    """The axes of a shard_map along which an abstract array varies."""
    # The attribute has another name in newer JAX.
    return frozenset(getattr(aval, "vma", ()) or getattr(getattr(aval, "mat", None), "varying", ()))


def vary(leaf: jax.Array, axes: frozenset[str]) -> jax.Array:
    """The leaf, with a type that also varies along these axes."""
    missing = tuple(sorted(axes - varying(jax.typeof(leaf))))
    return lax.pcast(leaf, missing, to="varying") if missing else leaf


class Together(NamedTuple):
    """The mesh axes over which values are reduced.

    A value is reduced only over the axes along which it differs between devices, so that a replicated value is not
    added up once per device. Under `shard_map` with check_vma a value's type shows along which axes it varies. For
    other axes every value is assumed to differ.
    """

    typed: frozenset[str] | None
    """The axes along which a value's type shows whether it varies; None for every axis."""
    untyped: frozenset[str]
    """The axes along which its type does not show that."""

    def axes(self, value: jax.Array) -> tuple[str, ...]:
        """The axes over which this value is to be reduced, sorted."""
        varies = varying(jax.typeof(value))
        return tuple(sorted((varies if self.typed is None else varies & self.typed) | self.untyped))

    def largest(self, value: jax.Array) -> jax.Array:
        """The largest value on any device; for a bool, whether it is true on any."""
        axes = self.axes(value)
        if not axes:
            return value
        number = value.astype(jnp.int32) if value.dtype == jnp.bool_ else value
        most: jax.Array = lax.pmax(number, axes)  # type: ignore[no-untyped-call]  # JAX leaves it untyped
        return most > 0 if value.dtype == jnp.bool_ else most

    def totals(self, values: Sequence[jax.Array]) -> jax.Array:
        """Real scalars, or vectors one after the other (at least one), each value summed over devices.

        Returns:
          A vector in the widest of their dtypes, float32 at least.
        """
        widest = jnp.float64 if any(value.dtype == jnp.float64 for value in values) else jnp.float32
        alike: dict[tuple[str, ...], list[jax.Array]] = {}
        positions: dict[tuple[str, ...], list[int]] = {}
        start = 0
        for value in values:
            vector = value.astype(widest) if value.ndim else lax.expand_dims(value.astype(widest), (0,))
            axes = self.axes(value)
            alike.setdefault(axes, []).append(vector)
            positions.setdefault(axes, []).extend(range(start, start + len(vector)))
            start += len(vector)
        vectors = [_psum(lax.concatenate(group, 0), axes) for axes, group in alike.items()]
        if len(vectors) == 1:
            return vectors[0]
        return jnp.concatenate(vectors)[np.argsort(np.concatenate(list(positions.values())))]

    def total(self, values: Sequence[jax.Array]) -> jax.Array:
        """The sum of real scalars (at least one) over devices, in the widest of their dtypes, float32 at least.

        It adds them as optax does, one after the other, so the last bit is the same.
        """
        return self._total(values, _sum_in_order)

    def any_order_total(self, values: Sequence[jax.Array]) -> jax.Array:
        """The same sum, which compiles sooner. Its last bits may differ."""
        return self._total(values, sum_once)

    def _total(self, values: Sequence[jax.Array], add: Callable[[jax.Array], jax.Array]) -> jax.Array:
        widest = jnp.float64 if any(value.dtype == jnp.float64 for value in values) else jnp.float32
        alike: dict[tuple[str, ...], list[jax.Array]] = {}
        for value in values:
            alike.setdefault(self.axes(value), []).append(value.astype(widest))
        sums = [_psum(add(jnp.stack(group)), axes) for axes, group in alike.items()]
        return sums[0] if len(sums) == 1 else add(jnp.stack(sums))

    def total_count(self, count: jax.Array, most: int) -> jax.Array:
        """The sum over devices of a count, saturated at its dtype's largest value.

        Args:
          count: an integer scalar of a signed dtype, 0 or more.
          most: the largest value that it can have on one device.
        """
        axes = self.axes(count)
        largest = int(np.iinfo(count.dtype).max)
        if not axes or most * lax.axis_size(axes) <= largest:
            return _psum(count, axes)
        # The sum could wrap. Sums of the two halves of the bits cannot, on up to 2**15 devices.
        half = np.iinfo(count.dtype).bits // 2
        low, high = (_psum(part, axes) for part in (count & (2**half - 1), count >> half))
        high = high + (low >> half)
        return jnp.where(high >= 2 ** (half - 1), largest, (high << half) | (low & (2**half - 1)))


ALONE: Final = Together(frozenset(), frozenset())
"""No reduction: each device decides for itself."""


def sum_once(vector: jax.Array) -> jax.Array:
    """The sum of a vector, which XLA:CPU computes only once.

    It would turn a sum of stacked scalars into a chain of additions, and repeat the chain in every fusion that uses
    the sum. With hundreds of parameters this would take most of the compile time. Behind the barrier it sees a vector.
    """
    total: jax.Array = jnp.sum(lax.optimization_barrier(vector))  # type: ignore[no-untyped-call]
    return total


def _sum_in_order(vector: jax.Array) -> jax.Array:
    total: jax.Array = lax.optimization_barrier(jnp.sum(vector))  # type: ignore[no-untyped-call]
    return total


def _psum(value: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    if not axes:
        return value
    total: jax.Array = lax.psum(value, axes)  # type: ignore[no-untyped-call]  # JAX leaves it untyped
    return total


class Axes:
    """The checked `axis_name` argument of a wrapper."""

    def __init__(
        self,
        argument: str,
        axis_name: AxisName,
        *,
        every_typed: bool = False,
        called: str = "update",
        remedy: str = "name one of those; under plain jit gradients are whole, so leave it out",
    ) -> None:
        """Check the argument.

        Args:
          argument: its name in messages: `apply_if_finite: axis_name`.
          axis_name: its value.
          every_typed: whether to reduce also over axes that are not named, if a value's type shows that it varies along
            them.
          called: in messages, the function that has to be called under these axes.
          remedy: in messages, what to do if there is no such axis.

        Raises:
          TypeError: it is neither a string nor a tuple of strings.
          ValueError: a name occurs twice.
        """
        names = (axis_name,) if isinstance(axis_name, str) else () if axis_name is None else axis_name
        allowed = "the name of a mesh axis, a tuple of names, or None"
        if not (isinstance(names, tuple) and all(isinstance(name, str) for name in names)):
            raise TypeError(
                f"{argument} must be {allowed}, got {shown(axis_name)} ({type(axis_name).__name__}): name the axes of "
                "shard_map or pmap along which the gradients differ"
            )
        if len(set(names)) < len(names):
            raise ValueError(f"{argument} must be {allowed}, got {shown(axis_name)}: give each name once")
        self._argument = argument
        self.names = names
        """The named axes, in order."""
        self._every_typed = every_typed
        self._called = called
        self._remedy = remedy

    def here(self) -> Together:
        """The axes to reduce over in the function that is being traced.

        Raises:
          ValueError: the function is not traced under an axis of that name.
        """
        # The index along an axis differs on each device. If its type does not show that, types do not track this axis.
        typed = frozenset(name for name in self.names if varying(jax.typeof(self._index(name))))
        return Together(None if self._every_typed else typed, frozenset(self.names) - typed)

    def _index(self, name: str) -> jax.Array:
        try:
            return lax.axis_index(name)
        except NameError as error:
            manual = ", ".join(map(repr, jax.sharding.get_abstract_mesh().manual_axes)) or "none"
            raise ValueError(
                f"{self._argument} must be an axis of the shard_map or pmap in which {self._called} is called, got "
                f"{name!r}, axes of shard_map there: {manual}: {self._remedy}"
            ) from error
