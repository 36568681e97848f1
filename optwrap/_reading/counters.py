"""The packed counters: one uint32 array that is both the state of `instrument` and the reading that the host gets.

Only this module knows the meaning of each word. It works on both sides: `pack` and `split` take JAX arrays inside the
jitted step and numpy arrays on the host.

The words, in this order: the layout version, the numbers of accumulation windows and of scalars, then the fields of
`Counters` as they are declared. Signed integers and floats keep their bits; a bool is 0 or 1.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

VERSION: Final = 0x4F570005
"""Word 0 of every reading: "OW" in the upper half, the version of the layout in the lower half."""

OUTCOMES: Final = (
    "applied",
    "accumulated",
    "skipped_not_finite",
    "skipped_large",
    "skipped_other",
    "accepted_not_finite",
)
"""The outcomes of a step, in the order of `Counters.outcomes`."""

GOOD_OUTCOMES: Final = frozenset({"applied", "accumulated"})
"""The outcomes of a step in which nothing went wrong."""

GRADIENT_STEPS: Final = ("applied", "accepted_not_finite")
"""The outcomes of a step that reached the inner optimizer."""

INTEGER_GAUGES: Final = (
    "guard_not_finite_count",
    "guard_not_finite_limit",
    "mini_step",
    "every_k",
    "gradient_step",
    "steps_since_sync",
    "sync_period",
    "guard_rebases",
    "guard_would_skip_steps",
)
"""The gauges read from the wrappers' states, in the order of `Counters.gauges`."""

GAUGES: Final = (
    *INTEGER_GAUGES,
    "not_finite_streak",
    "not_finite_streak_peak",
    "gradient_norm",
    "gradient_norm_limit",
    "update_norm",
)
"""Every gauge that a `Reading` can have."""

ABSENT: Final = -1
"""The value of a gauge that no wrapper has. Not NaN, because `jax_debug_nans` would raise when `init` runs eagerly."""

LARGEST: Final = 3
"""Number of parameters whose share of the squared norm is reported."""

MAX_COUNT: Final = np.uint32(2**32 - 1)
"""Counters stay at this value once they reach it."""

Words = np.ndarray[Any, np.dtype[np.uint32]]
"""One reading on the host, uint32[words], or several with leading axes."""


class Sizes(NamedTuple):
    """The sizes that depend on the optimizer and are not found from the length of the packed array."""

    windows: int
    """W, the number of accumulation windows."""
    scalars: int
    """S, the number of injected hyperparameters."""


class Counters(NamedTuple):
    """The fields of the packed array, for P parameters, W accumulation windows and S scalars.

    P is the number of array leaves of the parameters, W the number of `MultiStepsState` nodes in the wrapped state, S
    the number of scalar hyperparameters of `optax.inject_hyperparams`, at most 16. All fields may have the same leading
    axes. Counts saturate at `MAX_COUNT`.
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
    """float32[]: a step with this norm or a larger one is skipped; ABSENT if there is no such limit."""
    gauges: jax.Array
    """int32[9]: INTEGER_GAUGES after the last step; ABSENT where no wrapper has that gauge."""
    replica: jax.Array
    """int32[]: index of the first replica whose own gradients were non-finite in the last step; ABSENT if there was
    none, or if the step was given no `replica_flags`."""
    replicas_not_finite: jax.Array
    """int32[]: how many replicas' gradients were non-finite in the last step; ABSENT without `replica_flags`."""
    largest: jax.Array
    """int32[3]: the parameters with the largest shares of the last step's squared gradient norm, the largest first;
    ABSENT where there is none: there are fewer parameters with a share, or a value is non-finite."""
    largest_shares: jax.Array
    """float32[3]: their shares, from 0 to 1."""
    update_norm: jax.Array
    """float32[]: global L2 norm of the update that the last step applied; ABSENT if it applied none, or if the
    instrumentation does not compute it."""
    window_not_finite: jax.Array
    """bool[W]: whether each accumulation window holds a non-finite value after the last step."""
    scalars: jax.Array
    """float32[S]: the injected hyperparameters after the last step, in the order of `Layout.scalars`."""
    parameters: jax.Array
    """uint32[P]: steps in which that parameter's gradient had a non-finite value."""
    not_finite_values: jax.Array
    """uint32[P]: number of non-finite values in each parameter's gradient in the last step."""


_VECTORS: Final = {
    "outcomes": len(OUTCOMES),
    "gauges": len(INTEGER_GAUGES),
    "largest": LARGEST,
    "largest_shares": LARGEST,
}
_SIGNED: Final = ("outcome", "gauges", "replica", "replicas_not_finite", "largest")
_FLOATS: Final = ("gradient_norm", "gradient_norm_limit", "largest_shares", "update_norm", "scalars")
_BOOLS: Final = ("finite", "window_not_finite")
_OF_A_PROGRAM: Final = ("window_not_finite", "scalars", "parameters", "not_finite_values")
"""The last fields, whose lengths depend on the optimizer and its parameters."""

_FIRST: Final = 3
"""Words before those of `Counters`."""

HEAD: Final = _FIRST + sum(_VECTORS.get(name, 1) for name in Counters._fields if name not in _OF_A_PROGRAM)
"""Words before those of the windows, scalars and parameters."""


def is_bad(outcome: str, finite: bool) -> bool:
    """Whether a step is bad: its `outcome` is not a good one, or its gradients were not `finite`."""
    return not finite or outcome not in GOOD_OUTCOMES


def pack(counters: Counters) -> jax.Array:
    """The packed array of these fields: uint32[..., HEAD + W + S + 2 P].

    Args:
      counters: arrays of the dtypes that `Counters` documents, with the same leading axes.
    """
    lead = jnp.shape(counters.outcomes)[:-1]
    head = jnp.array([VERSION, counters.window_not_finite.shape[-1], counters.scalars.shape[-1]], jnp.uint32)
    parts = [jnp.broadcast_to(head, (*lead, _FIRST))]
    for name, value in counters._asdict().items():
        words = _to_words(jnp.asarray(value))
        parts.append(words if name in _VECTORS or name in _OF_A_PROGRAM else words[..., None])
    return jnp.concatenate(parts, axis=-1)


def split(words: Any, sizes: Sizes) -> Counters:
    """The fields of a packed array: slices of it, with the dtypes that `Counters` documents.

    Args:
      words: uint32[..., HEAD + W + S + 2 P], a JAX or numpy array.
      sizes: W and S.
    """
    return Counters(*fields(words, sizes, Counters._fields))


def fields(words: Any, sizes: Sizes, names: Sequence[str]) -> list[Any]:
    """The fields of these names, as `split` returns them."""
    positions = _positions(words.shape[-1], sizes)
    found = []
    for name in names:
        start, size = positions[name]
        is_vector = name in _VECTORS or name in _OF_A_PROGRAM
        found.append(_from_words(name, words[..., start : start + size] if is_vector else words[..., start]))
    return found


def advance(words: jax.Array, sizes: Sizes, events: Mapping[str, Any], values: Mapping[str, Any]) -> jax.Array:
    """The packed array after a step.

    This is one elementwise computation over the vector, so XLA compiles it to one kernel. A concatenation of the fields
    would need one kernel for each.

    Args:
      words: uint32[HEAD + W + S + 2 P], the packed array before the step.
      sizes: W and S.
      events: by field name, the counts to increase by one (bool). They saturate at `MAX_COUNT`.
      values: by field name, the new value.

    Each entry of `events` and `values` is a scalar if the field is one; otherwise a list of scalars, or a vector.
    """
    index = lax.iota(jnp.int32, words.shape[-1])
    positions = _positions(words.shape[-1], sizes)

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


def parameter_count(length: int, sizes: Sizes) -> int:
    """P, the number of parameters in a packed array of this length.

    Raises:
      ValueError: no packed array with that many windows and scalars has this length.
    """
    fixed = HEAD + sum(sizes)
    rest = length - fixed
    if rest < 0 or rest % 2:
        raise ValueError(
            f"counters: expected {fixed} words (for {sizes.windows} accumulation windows and {sizes.scalars} injected "
            f"hyperparameters) plus two per parameter, got {length} words: pass a state or reading of this optimizer, "
            "made by this version of optwrap"
        )
    return rest // 2


def sizes_of(words: Words) -> Sizes:
    """W and S of a reading on the host."""
    return Sizes(int(words[1]), int(words[2]))


def count_if(count: jax.Array, event: jax.Array) -> jax.Array:
    """`count` (uint32), plus one where there was an event (bool); saturates at MAX_COUNT."""
    return count + (event & (count != MAX_COUNT)).astype(jnp.uint32)


def _positions(length: int, sizes: Sizes) -> dict[str, tuple[int, int]]:
    """Start and size of each field in a packed array of `length` words."""
    parameters = parameter_count(length, sizes)
    lengths = {
        **_VECTORS,
        "window_not_finite": sizes.windows,
        "scalars": sizes.scalars,
        "parameters": parameters,
        "not_finite_values": parameters,
    }
    positions, start = {}, _FIRST
    for name in Counters._fields:
        positions[name] = start, lengths.get(name, 1)
        start += lengths.get(name, 1)
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
