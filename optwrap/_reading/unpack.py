"""The packed reading: one small uint32 array on the device, and what the host reads in it.

This module is the only one that knows the order of the words. `pack` runs inside the jitted step; `unpack` and
`by_step` run on the host, in numpy, in the Monitor's thread.

A reading is 24 words and two for each parameter. Where steps wait on the device (callback_every) the words of those
that wait follow: 24 each, since of a step that waits no parameter's count changed.
"""

import dataclasses
import functools
import weakref
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from optwrap._reading.counters import ABSENT, INT_GAUGES, MOST_WAITING, OF_REPLICAS, OUTCOMES, Counters, InstrumentState
from optwrap._reading.replicas import Replica, Replicas

Words = np.ndarray[Any, np.dtype[np.uint32]]

MAGIC: Final = 0x4F570003
"""First word of every reading; its low half is the version of the layout."""

MAGIC_WAITING: Final = 0x4F570004
"""First word of one that is followed by the steps that wait."""

_SCALARS: Final = (
    "not_finite_steps",
    "not_finite_streak",
    "not_finite_streak_peak",
    "outcome",
    "finite",
    "gradient_norm",
    "gradient_norm_limit",
)
HEAD: Final = 2 + len(OUTCOMES) + len(INT_GAUGES) + len(OF_REPLICAS) + len(_SCALARS)
"""Words of a reading before those of the parameters."""

_TAIL: Final = 1 + HEAD * MOST_WAITING
"""Words for the steps that wait."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """What is static about an instrumentation's readings: known when the step is traced, sent to the Monitor then."""

    parameters: tuple[str, ...]
    """Path of each gradient leaf, in the tree's own order: `decoder/layer_3/mlp/w`."""
    source: "weakref.ref[object] | None" = dataclasses.field(default=None, compare=False, repr=False)
    """Which instrumentation says so, for as long as it lives; two of one layout are told apart by it."""
    replicas: Replicas | None = dataclasses.field(default=None, compare=False, repr=False)
    """What is known of the replicas, where the step that was traced is given their flags."""

    @functools.cached_property
    def fingerprint(self) -> int:
        """CRC-32 of the paths (uint32)."""
        return zlib.crc32("\0".join(self.parameters).encode("utf-8", "surrogatepass"))


@dataclasses.dataclass(frozen=True)
class Totals:
    """Cumulative counts, as the optimizer's state has them."""

    outcomes: Mapping[str, int]
    not_finite_steps: int
    parameters: Mapping[str, int]
    """Steps with values that were not finite by parameter, in the tree's order; parameters without one are left out."""
    replicas: Mapping[Replica, int] = dataclasses.field(default_factory=dict)
    """Steps in which that replica was the first whose own gradients were not finite. No reading has them: they are
    counted on the host, of the steps that were observed."""

    @property
    def steps(self) -> int:
        """Calls of `update`."""
        return sum(self.outcomes.values())

    @property
    def gradient_steps(self) -> int:
        """Calls that reached the inner optimizer."""
        return self.outcomes["applied"] + self.outcomes["accepted_not_finite"]


@dataclasses.dataclass(frozen=True)
class Reading:
    """One step, unpacked."""

    totals: Totals
    outcome: str | None
    """The step's own outcome; None before the first step."""
    finite: bool
    norm: float
    nonfinite_parameters: Mapping[str, int]
    """Values that were not finite in this step, by parameter, in the tree's order."""
    gauges: Mapping[str, float | int]
    """INT_GAUGES that are there, not_finite_streak, not_finite_streak_peak, gradient_norm, gradient_norm_limit."""
    replica: int | None = None
    """The first replica whose own gradients were not finite in this step; None where there was none, or no flags."""
    replicas_not_finite: int | None = None
    """How many replicas' were; None where the step was given no flags."""

    @property
    def step(self) -> int:
        """The step's number: 1 for the first call of `update` that the state has lived."""
        return self.totals.steps


def pack(counters: Counters) -> jax.Array:
    """One uint32 array holding everything a host wants of `counters`; floats are bitcast.

    Axes that all the counters lead with (replicas, steps) stay in front.

    Returns:
      uint32[24 + 2 P], and where steps can wait as many words more as `Counters.waiting` has.
    """
    lead = jnp.shape(counters.outcomes)[:-1]
    parts = [pack_head(counters), _words(counters.parameters, lead), _words(counters.not_finite_values, lead)]
    if jnp.shape(counters.waiting)[-1] == _TAIL:
        parts[:1] = [jnp.full((*lead, 1), MAGIC_WAITING, jnp.uint32), parts[0][..., 1:]]
        parts.append(jnp.asarray(counters.waiting))
    return jnp.concatenate(parts, axis=-1)


def pack_head(counters: Counters) -> jax.Array:
    """The first 24 words of a reading, uint32[24]: all but those of the parameters."""
    lead = jnp.shape(counters.outcomes)[:-1]
    return jnp.concatenate(
        [
            jnp.full((*lead, 1), MAGIC, jnp.uint32),
            _words(counters.fingerprint, lead),
            _words(counters.outcomes, lead),
            _words(counters.gauges, lead),
            *(_words(getattr(counters, name), lead) for name in _SCALARS),
        ],
        axis=-1,
    )


def _words(x: jax.typing.ArrayLike, lead: tuple[int, ...]) -> jax.Array:
    x = jnp.asarray(x)
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint32)
    return lax.bitcast_convert_type(x, jnp.uint32).reshape(*lead, -1)


def by_step(words: Words) -> Words:
    """The readings of the steps that `words`, one packed reading, is of, oldest first: uint32[n, 24 + 2 P].

    One, unless steps wait: then these, the newest of them the last.
    """
    if len(words) < HEAD + _TAIL or int(words[0]) != MAGIC_WAITING:
        return words[None]
    newest, tail = words[:-_TAIL].copy(), words[-_TAIL:]
    newest[0] = MAGIC
    waiting = max(1, min(int(tail[0]), MOST_WAITING))
    rows = np.zeros([waiting, len(newest)], np.uint32)
    rows[:, :HEAD] = tail[1:].reshape(MOST_WAITING, HEAD)[:waiting]
    leaves = (len(newest) - HEAD) // 2
    # All before the newest were fine: of no parameter the count changed in them.
    rows[:, HEAD : HEAD + leaves] = newest[HEAD : HEAD + leaves] - (newest[HEAD + leaves :] > 0)
    rows[-1] = newest
    return rows


def unpack(words: Words, layout: Layout | None = None) -> Reading:
    """What `pack` put into `words`, of the newest step.

    Args:
      words: one reading, on the host.
      layout: the instrumentation's; without it parameters are called `leaf_0`, `leaf_1`, ...

    Raises:
      ValueError: `words` is no reading, or one of another instrumentation than `layout`'s.
    """
    if words.dtype == np.uint32 and words.ndim == 1:
        words = by_step(words)[-1]
    if words.dtype != np.uint32 or words.ndim != 1 or len(words) < HEAD or (len(words) - HEAD) % 2:
        raise ValueError(
            f"a reading is a uint32 vector of {HEAD} + 2 P words as optwrap.reading() returns it, "
            f"got {words.dtype}{list(words.shape)}"
        )
    if int(words[0]) != MAGIC:
        raise ValueError(f"reading: first word is {int(words[0]):#x}, expected {MAGIC:#x}: not made by this optwrap")
    leaves = (len(words) - HEAD) // 2
    if layout is None:
        paths: tuple[str, ...] = tuple(f"leaf_{i}" for i in range(leaves))
    elif int(words[1]) != layout.fingerprint or leaves != len(layout.parameters):
        raise ValueError(
            f"reading: made by another instrumentation ({leaves} parameters, fingerprint {int(words[1]):#x}) than the "
            f"one this Monitor was given to ({len(layout.parameters)} parameters, {layout.fingerprint:#x}): "
            "give each instrument its own Monitor"
        )
    else:
        paths = layout.parameters

    at = 2
    outcomes = dict(zip(OUTCOMES, words[at : at + len(OUTCOMES)].tolist(), strict=True))
    at += len(OUTCOMES)
    integers = (*INT_GAUGES, *OF_REPLICAS)
    gauges: dict[str, float | int] = {
        name: value
        for name, value in zip(integers, words[at : at + len(integers)].view(np.int32).tolist(), strict=True)
        if value != ABSENT
    }
    at += len(integers)
    replica, replicas_not_finite = (gauges.pop(name, None) for name in OF_REPLICAS)
    scalars = dict(zip(_SCALARS, words[at:HEAD], strict=True))
    steps_not_finite, values_not_finite = words[HEAD : HEAD + leaves], words[HEAD + leaves :]

    norm = float(scalars["gradient_norm"].view(np.float32))
    limit = float(scalars["gradient_norm_limit"].view(np.float32))
    gauges["not_finite_streak"] = int(scalars["not_finite_streak"])
    gauges["not_finite_streak_peak"] = int(scalars["not_finite_streak_peak"])
    gauges["gradient_norm"] = norm
    if limit >= 0:
        gauges["gradient_norm_limit"] = limit
    outcome = int(scalars["outcome"].view(np.int32))

    def named(values: Words) -> dict[str, int]:
        return {paths[i]: int(values[i]) for i in np.flatnonzero(values)}

    return Reading(
        totals=Totals(
            outcomes=outcomes,
            not_finite_steps=int(scalars["not_finite_steps"]),
            parameters=named(steps_not_finite),
        ),
        outcome=None if outcome < 0 else OUTCOMES[outcome],
        finite=bool(scalars["finite"]),
        norm=norm,
        nonfinite_parameters=named(values_not_finite),
        gauges=gauges,
        replica=None if replica is None else int(replica),
        replicas_not_finite=None if replicas_not_finite is None else int(replicas_not_finite),
    )


def reading(state: Any, name: str | None = None) -> jax.Array:
    """The packed reading of the instrumentation in `state`, to be returned from your jitted step.

    Args:
      state: an optimizer state, or any tree that holds one, with the state of an `instrument` anywhere in it.
      name: which one, where there are several: the `name` its `instrument` was given.

    Returns:
      uint32[24 + 2 P], P the number of parameters: a new array, safe to keep when `state` is donated, and the same on
      every device. Where steps wait on the device (`callback_every`) it is 769 words longer, and has those.

    Raises:
      TypeError: `name` is no string.
      ValueError: no such instrumentation in `state`, or several.
    """
    if name is not None and not isinstance(name, str):
        raise TypeError(f"reading: name must be a string, got {name!r} ({type(name).__name__})")
    every = list(_found((), state))
    fitting = [(path, key, counters) for path, key, counters in every if name in (None, key)]
    if len(fitting) == 1:
        return pack(fitting[0][2])

    there = ", ".join(f"{key!r} at {_shown(path)}" for path, key, _ in every) or "none"
    if not every:
        remedy = "wrap the optimizer, tx = optwrap.instrument(tx), before tx.init, and pass the state that it returns"
    elif not fitting:
        remedy = "pass the name of one of these"
    elif name is None:
        remedy = "say which with reading(state, name=...)"
        if len({key for _, key, _ in every}) < len(every):
            remedy = "give each its own, instrument(tx, name=...), and " + remedy
    else:
        remedy = "give each its own name, instrument(tx, name=...)"
    wanted = "one instrumentation" if name is None else f"one instrumentation named {name!r}"
    raise ValueError(f"reading: expected {wanted} in the state, found {there}: {remedy}")


def has_instrumentation(state: Any) -> bool:
    """Whether the state of an `instrument` is anywhere in `state`."""
    return next(_found((), state), None) is not None


def _found(path: tuple[Any, ...], tree: Any) -> Iterator[tuple[tuple[Any, ...], str, Counters]]:
    """Path, name and counters of every instrumentation in `tree`, the outermost first."""

    def is_state(node: Any) -> bool:
        return isinstance(node, InstrumentState)

    for at, node in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_state):
        if is_state(node):
            for name, counters in node.counters.items():
                yield (*path, *at), name, counters
            yield from _found((*path, *at, jax.tree_util.GetAttrKey("inner_state")), node.inner_state)


def _shown(path: tuple[Any, ...]) -> str:
    return f"state{jax.tree_util.keystr(path)}"
