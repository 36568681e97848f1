"""Figures of several devices taken together, where the program is one device's own: `shard_map`, `pmap`, `vmap`.

Under plain jit an array is whole, and the compiler reduces it over the devices unasked. Inside `shard_map` and `pmap`
each device has its own, and what is not asked of all of them is decided by each for itself.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from optwrap._core.checks import shown

AxisName = str | tuple[str, ...] | None
"""One axis of a mesh (of `shard_map`, `pmap` or `vmap`), several of them, or none."""


def varying(aval: Any) -> frozenset[str]:
    """The axes of a shard_map over which an abstract array varies; JAX has renamed where it says so."""
    return frozenset(getattr(aval, "vma", ()) or getattr(getattr(aval, "mat", None), "varying", ()))


def vary(leaf: jax.Array, axes: frozenset[str]) -> jax.Array:
    """The leaf, with a type that varies over these axes too."""
    missing = tuple(sorted(axes - varying(jax.typeof(leaf))))
    return lax.pcast(leaf, missing, to="varying") if missing else leaf


class Together(NamedTuple):
    """The axes along which devices take their figures together.

    A figure is reduced over those of them along which it differs from device to device. Under `shard_map` with
    check_vma its type says whether it does: what is replicated is not added up once per device. Elsewhere nothing says
    so, and everything is taken to differ.
    """

    told: frozenset[str] | None
    """Axes of which a value's type says whether it varies over them; None for all that there are."""
    untold: frozenset[str]
    """Axes of which it does not."""

    def axes(self, value: jax.Array) -> tuple[str, ...]:
        """Those along which this value differs, or may."""
        varies = varying(jax.typeof(value))
        return tuple(sorted((varies if self.told is None else varies & self.told) | self.untold))

    def largest(self, value: jax.Array) -> jax.Array:
        """The largest on any device; of flags, whether any is set."""
        axes = self.axes(value)
        if not axes:
            return value
        number = value.astype(jnp.int32) if value.dtype == jnp.bool_ else value
        most: jax.Array = lax.pmax(number, axes)  # type: ignore[no-untyped-call]  # JAX leaves it untyped
        return most > 0 if value.dtype == jnp.bool_ else most

    def total(self, values: Sequence[jax.Array]) -> jax.Array:
        """The sum of real scalars (one at least), each over the devices on which it differs; in the widest dtype."""
        widest = jnp.float64 if any(value.dtype == jnp.float64 for value in values) else jnp.float32
        alike: dict[tuple[str, ...], list[jax.Array]] = {}
        for value in values:
            alike.setdefault(self.axes(value), []).append(value.astype(widest))
        sums = [_psum(_sum_once(group), axes) for axes, group in alike.items()]
        return sums[0] if len(sums) == 1 else _sum_once(sums)

    def total_count(self, count: jax.Array, most: int) -> jax.Array:
        """The sum over devices of a count, saturated at its dtype's largest value.

        Args:
          count: of a signed integer dtype, from 0.
          most: what it can be on one device.
        """
        axes = self.axes(count)
        largest = int(np.iinfo(count.dtype).max)
        if not axes or most * lax.axis_size(axes) <= largest:
            return _psum(count, axes)
        # Added as it is it could wrap, to 0 for one. Halves cannot: 2**15 devices have 16 bits each to fill.
        half = np.iinfo(count.dtype).bits // 2
        low, high = (_psum(part, axes) for part in (count & (2**half - 1), count >> half))
        high = high + (low >> half)
        return jnp.where(high >= 2 ** (half - 1), largest, (high << half) | (low & (2**half - 1)))


ALONE: Final = Together(frozenset(), frozenset())
"""Each device for itself."""


def _sum_once(values: Sequence[jax.Array]) -> jax.Array:
    """The sum of scalars, such that XLA computes it once.

    Without the barriers XLA makes a chain of additions of it, and repeats the chain in every fusion that uses the sum:
    with hundreds of parameters that is most of the time it takes to compile.
    """
    once = lax.optimization_barrier  # JAX leaves it untyped
    total: jax.Array = once(jnp.sum(once(jnp.stack(values))))  # type: ignore[no-untyped-call]
    return total


def _psum(value: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    if not axes:
        return value
    total: jax.Array = lax.psum(value, axes)  # type: ignore[no-untyped-call]  # JAX leaves it untyped
    return total


class Axes:
    """The `axis_name` of a wrapper, checked."""

    def __init__(
        self,
        argument: str,
        axis_name: AxisName,
        *,
        every_told: bool = False,
        called: str = "update",
        remedy: str = "name one of those; under plain jit gradients are whole, so leave it out",
    ) -> None:
        """Check the argument.

        Args:
          argument: what it is called, for messages: `apply_if_finite: axis_name`.
          axis_name: the value.
          every_told: whether to reduce also over axes that are not named, where a value's type says that it varies.
          called: what has to be called under these axes, for messages.
          remedy: what to do where there is no such axis, for messages.

        Raises:
          TypeError: it is no string and no tuple of strings.
          ValueError: a name is there twice.
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
        """The axes that are named, in their order."""
        self._every_told = every_told
        self._called = called
        self._remedy = remedy

    def here(self) -> Together:
        """What they come to in the function that is being traced.

        Raises:
          ValueError: it is not traced under an axis of that name.
        """
        # The index differs on each device: where its type does not say so, the types say nothing of that axis.
        told = frozenset(name for name in self.names if varying(jax.typeof(self._index(name))))
        return Together(None if self._every_told else told, frozenset(self.names) - told)

    def _index(self, name: str) -> jax.Array:
        try:
            return lax.axis_index(name)
        except NameError as error:
            there = ", ".join(map(repr, jax.sharding.get_abstract_mesh().manual_axes)) or "none"
            raise ValueError(
                f"{self._argument} must be an axis of the shard_map or pmap in which {self._called} is called, got "
                f"{name!r}, axes of shard_map there: {there}: {self._remedy}"
            ) from error
