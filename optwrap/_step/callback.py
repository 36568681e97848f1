"""emit="callback": the jitted step hands its own reading to the monitor.

The callback is a `jax.pure_callback`, because a callback with effects takes the program off jit's fast path. XLA may
run a pure callback twice, or drop it if its result is unused. So its result, 0, is combined with the counters that the
step returns, and the observer must accept the same reading twice. The whole reading is one operand, because an
accelerator transfers each operand separately.
"""

import logging
from collections.abc import Callable
from typing import Any, Final, Never

import jax
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap

from optwrap._reading.counters import Words
from optwrap._reading.observer import Observer

_log: Final = logging.getLogger("optwrap")


def report(words: jax.Array, observer: Observer) -> jax.Array:
    """Have the device call `observer.observe` with this reading, and wait until it returns.

    Under a plain jit over a mesh the call comes once, in the process of the mesh's first device. `jax.export` refuses
    programs with callbacks.

    Args:
      words: the packed counters after the step, uint32[words].
      observer: receives them as a numpy array.

    Returns:
      The same words. They depend on the callback, so it runs before anything that uses them.

    Raises:
      NotImplementedError: the step is in a `jax.vmap`, when that is traced. The members of an ensemble would call one
        after another or all at once, as JAX pleases, and the observer could not tell them apart.
    """
    call = _calling(observer)

    @custom_vmap
    def on_host(words: jax.Array) -> jax.Array:
        zero: jax.Array = jax.pure_callback(call, np.zeros([], np.uint32), words)
        return zero

    on_host.def_vmap(_refuse)
    zero: jax.Array = on_host(lax.stop_gradient(words))
    return words ^ zero


def _refuse(*_: Any) -> Never:
    raise NotImplementedError(
        'instrument: emit="callback" is in a jax.vmap, which is not supported: return optwrap.reading(opt_state) from '
        'the vmapped step instead, with emit="reading", and pass it to observe of a Monitor(members=n): each member of '
        "the ensemble becomes a run of its own"
    )


def _calling(observer: Observer) -> Callable[[Any], Words]:
    """The function that runs on the host: passes the words to `observer`, and returns 0 even if that raises."""
    logged: set[type[Exception]] = set()

    def call(words: Any) -> Words:
        try:
            observer.observe(np.array(words, np.uint32))
        except Exception as error:
            # If this raised, the step would fail and the training would lose its donated state.
            if type(error) not in logged:
                logged.add(type(error))
                _log.exception(
                    "optwrap: a reading was lost because %r raised; further errors of this type are not logged",
                    observer,
                )
        return np.zeros([], np.uint32)

    return call
