"""Reads observed arrays on the host: one row of words for each step, from readings with any leading axes."""

import contextlib
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from optwrap._reading.counters import VERSION, Words
from optwrap._reading.unpack import Reading

Values = np.ndarray[Any, np.dtype[np.float64]]
Numbers = np.ndarray[Any, np.dtype[np.int64]]


class Step(NamedTuple):
    """One step of a block of steps that were observed at once."""

    reading: Reading
    words: Words
    time: float
    """Seconds since 1970."""
    interpolated: bool
    """Whether `time` is an estimate, as in a block of several steps."""


def is_ready(observed: object) -> bool:
    """Whether `on_host` can read `observed` without waiting for a device."""
    if isinstance(observed, jax.Array) and not isinstance(observed, jax.core.Tracer):
        # `is_ready` is not in jax.Array's interface, but all of JAX's arrays have it. On a deleted array it crashes
        # (jaxlib 0.10.2: a null pointer). Where the computation failed it may raise; `on_host` then raises, too.
        ready = getattr(observed, "is_ready", None)
        with contextlib.suppress(Exception):
            return ready is None or observed.is_deleted() or bool(ready())
    return True


def on_host(observed: object) -> Words:
    """A copy of `observed` in host memory, uint32[..., words].

    Raises:
      ValueError: it is not a uint32 array with at least one axis.
      Exception: JAX raises because the step that made the array failed, or because its buffer was donated.
    """
    if isinstance(observed, jax.core.Tracer):
        raise ValueError(
            "observe: got a traced value; allowed: an array; return the reading from the jitted step, then observe it"
        )
    if not isinstance(observed, jax.Array | np.ndarray):
        raise ValueError(f"observe: got a {type(observed).__name__}; allowed: what optwrap.reading() returns")
    if observed.dtype != np.uint32 or not observed.ndim or not observed.size:
        raise ValueError(
            f"observe: got {observed.dtype}{list(observed.shape)}; allowed: uint32[words], as optwrap.reading() "
            "returns it, or uint32[..., words]: leading axes are time, in row-major order, or replicas of one step"
        )
    if isinstance(observed, jax.Array):
        # device_get is an explicit transfer, which jax.transfer_guard("disallow") permits.
        if observed.is_fully_addressable or observed.is_fully_replicated:
            return np.array(jax.device_get(observed))
        # Each process holds some of the rows. They are replicas of one step; `read_steps` raises if they are not.
        parts = {str(shard.index): shard.data for shard in observed.addressable_shards}
        return np.concatenate([jax.device_get(part) for part in parts.values()])
    return observed


def as_members(words: Words, members: int) -> list[Words]:
    """The readings of each member of an ensemble, along the first axis.

    Raises:
      ValueError: the first axis has another length.
    """
    if words.ndim == 1 or len(words) != members:
        raise ValueError(
            f"observe: got uint32{list(words.shape)}; allowed with Monitor(members={members}): the member as the first "
            f"axis, uint32[{members}, ..., words]; move the axis there, jnp.moveaxis(reading, 1, 0)"
        )
    return list(words)


def as_rows(words: Words) -> Words:
    """One row for each step, uint32[n, words], from any leading axes, as `rows_by_step` finds them."""
    return rows_by_step(words)[0]


def rows_by_step(words: Words) -> tuple[Words, Numbers]:
    """One row for each step, uint32[n, words], and the step that each row of `words` belongs to, int64[rows].

    An axis along which all is equal holds replicas of one step (from pmap): one of them stays. The others are time, in
    row-major order. A row that repeats the one before it is no new step: the loop did not call the optimizer.
    """
    lead, width = words.shape[:-1], words.shape[-1]
    for axis in reversed(range(len(lead))):
        if (words == words.take([0], axis)).all():
            words = words.take([0], axis)
    kept, words = words.shape[:-1], words.reshape(-1, width)
    new = np.concatenate([[True], (words[1:] != words[:-1]).any(axis=1)])
    step_of = np.broadcast_to((np.cumsum(new) - 1).reshape(kept), lead).reshape(-1)
    rows: Words = words[new]
    return rows, step_of


def mean_by_step(values: Values, step_of: Numbers) -> Values:
    """The mean of the values of each step, float64[n]: of replicas, and of rows that repeat a step."""
    means: Values = np.bincount(step_of, weights=values) / np.bincount(step_of)
    return means


def steps_in(observed: object) -> int:
    """The number of step records in an array of readings; 0 if it is no such array."""
    if isinstance(observed, jax.core.Tracer) or not isinstance(observed, jax.Array | np.ndarray):
        return 0
    if observed.dtype != np.uint32 or not observed.ndim or not observed.size:
        return 0
    if isinstance(observed, np.ndarray) and observed.flat[0] != VERSION:
        return 0
    return math.prod(observed.shape[:-1])


def read_steps(
    words: Words, unpack: Callable[[Words], Reading], time: float, previous_time: float | None
) -> list[Step]:
    """Unpack steps in order, and spread their times evenly since the previous reading.

    Args:
      words: uint32[n, words], one row for each step.
      unpack: reads one row.
      time: when the last of them was observed, in seconds since 1970.
      previous_time: when the reading before them was observed, in seconds since 1970.

    Raises:
      ValueError: the rows are not rising steps, or `unpack` raises.
    """
    if len(words) == 1:
        return [Step(unpack(words[0]), words[0], time, False)]
    found = [unpack(row) for row in words]
    steps = [reading.step for reading in found]
    if any(later <= earlier for earlier, later in itertools.pairwise(steps)):
        shown = ", ".join(map(str, steps[:8])) + (", ..." if len(steps) > 8 else "")
        raise ValueError(
            f"observe: got {len(steps)} rows of steps {shown}; allowed with leading axes: rising steps in row-major "
            "order (from lax.scan, nested or not), or equal rows (from pmap); for an ensemble (vmap) pass "
            "Monitor(members=n) and put the member's axis first"
        )
    n = len(steps)
    since = time if previous_time is None else min(previous_time, time)
    return [
        Step(reading, row, since + (time - since) * (i + 1) / n, True)
        for i, (reading, row) in enumerate(zip(found, words, strict=True))
    ]
