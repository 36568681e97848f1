"""emit="callback": the jitted step hands its own reading to the monitor.

The callback is a `jax.pure_callback`, because a callback with effects takes the program off jit's fast path. XLA may
run a pure callback twice, or drop it if its result is unused. So its result, 0, is combined with the counters that the
step returns, and the observer must accept the same reading twice. The whole reading is one operand, because an
accelerator transfers each operand separately.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any, Final, Never

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap

from optwrap._reading.counters import Words
from optwrap._reading.observer import Observer

_log: Final = logging.getLogger("optwrap")


def report(words: jax.Array, observer: Observer, scalars: Mapping[str, jax.Array]) -> jax.Array:
    """Have the device call `observer.observe` with this reading, and wait until it returns.

    Under a plain jit over a mesh the call comes once, in the process of the mesh's first device. `jax.export` refuses
    programs with callbacks.

    Args:
      words: the packed counters after the step, uint32[words].
      observer: receives them as a numpy array.
      scalars: each float32[]; the observer gets them as keyword arguments.

    Returns:
      The same words. They depend on the callback, so it runs before anything that uses them.

    Raises:
      NotImplementedError: the step is in a `jax.vmap`, when that is traced. The members of an ensemble would call one
        after another or all at once, as JAX pleases, and the observer could not tell them apart.
    """
    values = [lax.bitcast_convert_type(value, jnp.uint32) for value in scalars.values()]
    operand = jnp.concatenate([words, jnp.stack(values)]) if values else words
    call = _calling(observer, tuple(scalars))

    @custom_vmap
    def on_host(operand: jax.Array) -> jax.Array:
        zero: jax.Array = jax.pure_callback(call, np.zeros([], np.uint32), operand)
        return zero

    on_host.def_vmap(_refuse)
    zero: jax.Array = on_host(lax.stop_gradient(operand))
    return words ^ zero


def _refuse(*_: Any) -> Never:
    raise NotImplementedError(
        'instrument: emit="callback" is in a jax.vmap, which is not supported: return optwrap.reading(opt_state) from '
        'the vmapped step instead, with emit="reading", and pass it to observe of a Monitor(members=n): each member of '
        "the ensemble becomes a run of its own"
    )


def _calling(observer: Observer, names: tuple[str, ...]) -> Callable[[Any], Words]:
    """The function that runs on the host: passes the words to `observer`, and returns 0 even if that raises.

    Args:
      observer: gets the words.
      names: the names of the scalars, whose bits are the last words.
    """
    logged: set[type[Exception]] = set()

    def call(words: Any) -> Words:
        try:
            row, bits = np.split(np.array(words, np.uint32), [len(words) - len(names)])
            observe: Any = observer.observe  # an observer need not take scalars if none are given
            observe(row, **dict(zip(names, bits.view(np.float32), strict=True)))
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
