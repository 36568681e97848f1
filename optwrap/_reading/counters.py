"""The packed counters: one uint32 array that is both the state of `instrument` and the reading that the host gets.

This module alone knows which word means what. It works on both sides: `pack` and `split` take JAX arrays inside the
jitted step and numpy arrays on the host.

The words, in this order: the layout version, the number of accumulation windows, then the fields of `Counters` as they
are declared. Signed integers and floats keep their bits; a bool is 0 or 1.
"""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

VERSION: Final = 0x4F570004
"""Word 0 of every reading: "OW" in the upper half, the version of the layout in the lower half."""

OUTCOMES: Final = (
    "applied",
    "accumulated",
    "skipped_not_finite",
    "skipped_large",
    "skipped_other",
    "accepted_not_finite",
)
"""What can become of a step, in the order of `Counters.outcomes`."""

GOOD_OUTCOMES: Final = frozenset({"applied", "accumulated"})
"""The outcomes of a step in which nothing went wrong."""

INTEGER_GAUGES: Final = (
    "guard_not_finite_count",
    "guard_not_finite_limit",
    "mini_step",
    "every_k",
    "gradient_step",
    "steps_since_sync",
    "sync_period",
)
"""The gauges read from the wrappers' states, in the order of `Counters.gauges`."""

GAUGES: Final = (
    *INTEGER_GAUGES,
    "not_finite_streak",
    "not_finite_streak_peak",
    "gradient_norm",
    "gradient_norm_limit",
)
"""Every gauge that a `Reading` can have."""

ABSENT: Final = -1
"""The value of a gauge that no wrapper has, or that a wrapper hides. Not NaN: `jax_debug_nans` would stop each step."""

MAX_COUNT: Final = np.uint32(2**32 - 1)
"""Counters stay at this value once they reach it."""

Words = np.ndarray[Any, np.dtype[np.uint32]]
"""One reading on the host, uint32[words]; with leading axes several."""


class Counters(NamedTuple):
    """The fields of the packed array, for P parameters and W accumulation windows.

    P is the number of array leaves of the parameters, W the number of `MultiStepsState` nodes in the wrapped state.
    All fields may have the same leading axes. Counts saturate at `MAX_COUNT`.
    """

    fingerprint: jax.Array
    """uint32[]: `Layout.fingerprint` of the instrumentation; tells the readings of two programs apart."""
    outcomes: jax.Array
    """uint32[6]: steps by outcome, in the order of OUTCOMES; their sum is the number of steps."""
    not_finite_steps: jax.Array
    """uint32[]: steps whose incoming gradients had a non-finite value."""
    not_finite_streak: jax.Array
    """uint32[]: such steps in a row, up to and including the last step."""
    not_finite_streak_peak: jax.Array
    """uint32[]: the largest value that the streak has had."""
    outcome: jax.Array
    """int32[]: the last step's outcome, an index into OUTCOMES; -1 before the first step."""
    finite: jax.Array
    """bool[]: whether all values of the last step's incoming gradients were finite."""
    gradient_norm: jax.Array
    """float32[]: global L2 norm of the last step's incoming gradients."""
    gradient_norm_limit: jax.Array
    """float32[]: the norm from which a step is skipped as large; ABSENT if there is no such limit."""
    gauges: jax.Array
    """int32[7]: INTEGER_GAUGES after the last step; ABSENT where no wrapper has that gauge."""
    replica: jax.Array
    """int32[]: index of the first replica whose own gradients were non-finite in the last step; ABSENT if there was
    none, or if the step was given no `replica_flags`."""
    replicas_not_finite: jax.Array
    """int32[]: how many replicas' gradients were non-finite in the last step; ABSENT without `replica_flags`."""
    window_not_finite: jax.Array
    """bool[W]: whether each accumulation window, as it is now, holds a non-finite value."""
    parameters: jax.Array
    """uint32[P]: steps in which that parameter's gradient had a non-finite value."""
    not_finite_values: jax.Array
    """uint32[P]: number of non-finite values in each parameter's gradient in the last step."""


_VECTORS: Final = {"outcomes": len(OUTCOMES), "gauges": len(INTEGER_GAUGES)}
_SIGNED: Final = ("outcome", "gauges", "replica", "replicas_not_finite")
_FLOATS: Final = ("gradient_norm", "gradient_norm_limit")
_BOOLS: Final = ("finite", "window_not_finite")
_OF_A_PROGRAM: Final = ("window_not_finite", "parameters", "not_finite_values")
"""The fields at the end, whose length is not the same for every program."""

HEAD: Final = 2 + sum(_VECTORS.get(name, 1) for name in Counters._fields if name not in _OF_A_PROGRAM)
"""Words before those of the windows and parameters."""


def pack(counters: Counters) -> jax.Array:
    """The packed array of these fields: uint32[..., HEAD + W + 2 P].

    Args:
      counters: arrays of the dtypes that `Counters` says, with the same leading axes.
    """
    lead = jnp.shape(counters.outcomes)[:-1]
    head = jnp.array([VERSION, counters.window_not_finite.shape[-1]], jnp.uint32)
    parts = [jnp.broadcast_to(head, (*lead, 2))]
    for name, value in counters._asdict().items():
        words = _to_words(jnp.asarray(value))
        parts.append(words if name in _VECTORS or name in _OF_A_PROGRAM else words[..., None])
    return jnp.concatenate(parts, axis=-1)


def split(words: Any, windows: int) -> Counters:
    """The fields of a packed array: slices of it, with the dtypes that `Counters` says.

    Args:
      words: uint32[..., HEAD + W + 2 P], of JAX or numpy.
      windows: W.
    """
    fields = {}
    for name, (start, size) in _positions(words.shape[-1], windows).items():
        is_vector = name in _VECTORS or name in _OF_A_PROGRAM
        fields[name] = _from_words(name, words[..., start : start + size] if is_vector else words[..., start])
    return Counters(**fields)


def advance(words: jax.Array, windows: int, events: Mapping[str, Any], values: Mapping[str, Any]) -> jax.Array:
    """The packed array after a step.

    All of it is one elementwise computation over the vector, so that XLA makes one kernel of it. A concatenation of the
    fields would be a kernel for each.

    Args:
      words: uint32[HEAD + W + 2 P], the packed array before the step.
      windows: W.
      events: by the name of a field of counts, bool: which of them to increase by one. They saturate at `MAX_COUNT`.
      values: by the name of a field, its new value.

      For a field that is a scalar, both are scalars; for another one, a list of scalars, or an array of one axis.
    """
    index = lax.iota(jnp.int32, words.shape[-1])
    positions = _positions(words.shape[-1], windows)

    def spread(name: str, field: Any, onto: jax.Array) -> jax.Array:
        """`onto`, with the field's words in their places."""
        start, size = positions[name]
        if isinstance(field, jax.Array) and field.ndim:
            padded = lax.pad(field, jnp.zeros([], field.dtype), [(start, len(onto) - start - size, 0)])
            return jnp.where((index >= start) & (index < start + size), padded, onto)
        for i, scalar in enumerate(field if isinstance(field, list) else [field]):
            onto = jnp.where(index == start + i, scalar, onto)
        return onto

    increased = jnp.zeros(words.shape, jnp.bool_)
    for name, event in events.items():
        increased = spread(name, event, increased)
    words = count_if(words, increased)
    for name, value in values.items():
        words = spread(name, jax.tree.map(_to_words, value), words)
    return words


def parameter_count(length: int, windows: int) -> int:
    """P, of a packed array of this many words.

    Raises:
      ValueError: no packed array with that many windows has this length.
    """
    rest = length - HEAD - windows
    if rest < 0 or rest % 2:
        raise ValueError(
            f"counters: expected {HEAD} words, {windows} of accumulation windows and two for each parameter, got "
            f"{length} words: they were made by another version of optwrap, or for another optimizer"
        )
    return rest // 2


def window_count(words: Words) -> int:
    """W, of one reading on the host; it has to have two words at least."""
    return int(words[1])


def count_if(count: jax.Array, event: jax.Array) -> jax.Array:
    """`count` (uint32), plus one where there was an event (bool); saturates at MAX_COUNT."""
    return count + (event & (count != MAX_COUNT)).astype(jnp.uint32)


def _positions(length: int, windows: int) -> dict[str, tuple[int, int]]:
    """Start and size of each field in a packed array of `length` words."""
    parameters = parameter_count(length, windows)
    sizes = {**_VECTORS, "window_not_finite": windows, "parameters": parameters, "not_finite_values": parameters}
    positions, start = {}, 2
    for name in Counters._fields:
        positions[name] = start, sizes.get(name, 1)
        start += sizes.get(name, 1)
    return positions


def _to_words(value: jax.Array) -> jax.Array:
    if value.dtype in (jnp.bool_, jnp.uint32):
        return value.astype(jnp.uint32)
    return lax.bitcast_convert_type(value, jnp.uint32)


def _from_words(name: str, part: Any) -> Any:
    if name in _BOOLS:
        return part != 0
    if name not in _SIGNED and name not in _FLOATS:
        return part
    dtype = np.int32 if name in _SIGNED else np.float32
    return part.view(dtype) if isinstance(part, np.ndarray | np.generic) else lax.bitcast_convert_type(part, dtype)
