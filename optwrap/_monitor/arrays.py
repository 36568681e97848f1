"""From what a training loop observes to readings of single steps, on the host and in the reporting thread."""

import contextlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from optwrap._reading.counters import Words
from optwrap._reading.unpack import Reading


class Row(NamedTuple):
    """One step of what was observed at once."""

    reading: Reading
    words: Words
    time: float
    interpolated: bool


def is_ready(observed: object) -> bool:
    """Whether `on_host` can read `observed` without waiting for a device."""
    if isinstance(observed, jax.Array) and not isinstance(observed, jax.core.Tracer):
        # Not in jax.Array's interface, but all of JAX's own arrays have it. Of an array that was deleted it must not be
        # asked (jaxlib 0.10.2: a null pointer); where its computation failed it may raise, which on_host will hear too.
        ready = getattr(observed, "is_ready", None)
        with contextlib.suppress(Exception):
            return ready is None or observed.is_deleted() or bool(ready())
    return True


def on_host(observed: object) -> Words:
    """A copy of `observed` that shares no memory with a device.

    Raises:
      ValueError: it is no array of uint32, or one of which this process has no part.
      Exception: whatever JAX raises where the step that made it failed, or its buffer was donated.
    """
    if isinstance(observed, jax.core.Tracer):
        raise ValueError("observe: got a traced value; return the reading from the jitted step and observe the result")
    if not isinstance(observed, jax.Array | np.ndarray):
        raise ValueError(f"observe: got a {type(observed).__name__}; allowed: what optwrap.reading() returns")
    if observed.dtype != np.uint32 or observed.ndim not in (1, 2) or not observed.size:
        raise ValueError(
            f"observe: got {observed.dtype}{list(observed.shape)}; allowed: uint32[words] as optwrap.reading() returns "
            "it, or uint32[n, words] of n steps in a row or n replicas of one step"
        )
    if isinstance(observed, jax.Array):
        # device_get is an explicit transfer, which jax.transfer_guard("disallow") lets through.
        if observed.is_fully_addressable or observed.is_fully_replicated:
            return np.array(jax.device_get(observed))
        # Every process has some of the rows; which ones does not matter, as they are replicas or nothing for us.
        parts = {str(shard.index): shard.data for shard in observed.addressable_shards}
        return np.concatenate([jax.device_get(part) for part in parts.values()])
    return observed


def readings(words: Words) -> tuple[Words, bool]:
    """The readings in an observed array, uint32[n, words], and whether there is only one.

    Args:
      words: one reading, or a leading axis of them: consecutive steps, as lax.scan stacks them, or equal rows, the
        replicas of one step, as pmap returns them.
    """
    if words.ndim == 1:
        return words[None], True
    if (words == words[0]).all():
        return words[:1], True
    return words, False


def rows(words: Words, unpack: Callable[[Words], Reading], time: float, previous_time: float | None) -> list[Row]:
    """The steps in `words`, uint32[n, words].

    Args:
      words: a reading for each step.
      unpack: reads one row.
      time: when it was observed, in seconds since 1970.
      previous_time: when the reading before it was; the times of steps in a row are spread evenly from then on.

    Raises:
      ValueError: the rows are neither, or `unpack` refuses one.
    """
    if len(words) == 1:
        return [Row(unpack(words[0]), words[0], time, False)]
    found = [unpack(row) for row in words]
    steps = [reading.step for reading in found]
    if steps != list(range(steps[0], steps[0] + len(steps))):
        shown = ", ".join(map(str, steps[:8])) + (", ..." if len(steps) > 8 else "")
        raise ValueError(
            f"observe: got {len(steps)} rows of the steps {shown}; allowed with a leading axis: steps in a row, each "
            "one more than the one before (lax.scan), or equal rows (pmap)"
        )
    n = len(steps)
    since = time if previous_time is None else min(previous_time, time)
    return [
        Row(reading, row, since + (time - since) * (i + 1) / n, True)
        for i, (reading, row) in enumerate(zip(found, words, strict=True))
    ]
