"""The step itself hands its reading to the host: what `instrument(..., emit="callback")` puts into it.

`jax.pure_callback`, since what counts as an effect takes the program off jit's fast path. XLA may run a pure callback
twice, or leave it out if nobody needs its result: the receiver must not mind the first, and a result that the
optimizer's state carries on prevents the second. Each operand is a transfer of its own on an accelerator, so there is
one.
"""

import logging
import os
import signal
import threading
from typing import Any, Final, Protocol, runtime_checkable

import jax
import numpy as np
from jax import lax

from optwrap.telemetry.reading import Layout

_log = logging.getLogger("optwrap")

_ZERO: Final = np.zeros([], np.uint32)


@runtime_checkable
class Observer(Protocol):
    """Who takes readings: `Monitor`, or anything with these two methods."""

    def describe(self, layout: Layout, *, stepping: bool = False) -> None:
        """Take note of how the parameters are called. Comes whenever `init` or a step is traced, so possibly often."""

    def observe(self, reading: np.ndarray[Any, np.dtype[np.uint32]]) -> None:
        """Take one reading; neither block nor raise. The same reading may come twice."""


def report(words: jax.Array, token: jax.Array, observer: Observer) -> jax.Array:
    """Hand `words` to `observer` when the device gets here; the token for the state to carry on.

    The step waits for `observe` to return, and for nothing else. Under a plain jit over a mesh the call comes in the
    process of the mesh's first device only. Not under `jax.export`, which takes no callbacks.

    Args:
      words: uint32[n], one packed reading.
      token: uint32[], what the previous call returned: through it the calls come in the steps' order.
      observer: who takes it.
    """
    said: set[type[BaseException]] = set()

    def deliver(words: Any) -> np.ndarray[Any, np.dtype[np.uint32]]:
        try:
            observer.observe(np.array(words, np.uint32))
        except KeyboardInterrupt:
            # Small programs run in the caller's thread, where Ctrl-C may come in here. It comes again after the step.
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
        except BaseException as error:
            # Raised into the step it would end the training, with the donated state already gone.
            if type(error) not in said:
                said.add(type(error))
                _log.exception("optwrap: a reading was lost, as will be others like it: %r raised", observer)
        return _ZERO

    # The token is 0, which XLA does not know.
    operand = lax.stop_gradient(words.at[0].add(token))
    result: jax.Array = jax.pure_callback(deliver, _ZERO, operand, vmap_method="sequential")
    return token + result
