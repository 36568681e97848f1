"""The step itself hands its readings to the host: what `instrument(..., emit="callback")` puts into it.

`jax.pure_callback`, since what counts as an effect takes the program off jit's fast path. XLA may run a pure callback
twice, or leave it out if nobody needs its result: the receiver must not mind the first, and a result that the
optimizer's state carries on prevents the second. Each operand is a transfer of its own on an accelerator, so there is
one.

Most of what a callback costs it costs however little it carries. So steps in which all is well can wait in the
optimizer's state until there are some, and one in which it is not takes them along at once.
"""

import logging
from typing import Any, Final, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from optwrap._reading.counters import GOOD_OUTCOMES, MOST_WAITING, OUTCOMES, Counters
from optwrap._reading.unpack import HEAD, Layout, Words, by_step, pack, pack_head
from optwrap._step.interrupts import is_a_handlers, raise_later

DEFAULT_EVERY: Final = 1
"""Steps per callback. More are cheaper (docs/performance.md), but then the loop has to hand over those that are left,
and to say what it has restored: what waits in a state does not tell which life it is of."""

_log = logging.getLogger("optwrap")

_LENGTH: Final = 1 + HEAD * MOST_WAITING


@runtime_checkable
class Observer(Protocol):
    """Who takes readings: `Monitor`, or anything with these two methods."""

    def describe(self, layout: Layout, *, stepping: bool = False) -> None:
        """Take note of how the parameters are called. Comes whenever `init` or a step is traced, so possibly often."""

    def observe(self, reading: Words) -> None:
        """Take a step, uint32[words], or n in a row, uint32[n, words]; never block or raise. Either may come twice."""


def none_waiting(every: int) -> jax.Array:
    """`Counters.waiting` before the first step; where each is handed over by itself there is room for none."""
    return jnp.zeros([1 if every == 1 else _LENGTH], jnp.uint32)


def report(after: Counters, waiting: jax.Array, every: int, observer: Observer) -> jax.Array:
    """Let the step wait, or hand it and all that wait to `observer` when the device gets here.

    They are handed over every `every` steps, and at once after a step that was skipped, was accepted although not
    finite, or had gradients that are not finite. The device waits for `observe` to return, and for nothing else. Under
    a plain jit over a mesh the call comes in the process of the mesh's first device only. Not under `jax.export`, which
    takes no callbacks.

    Args:
      after: the counters after the step.
      waiting: `Counters.waiting` before it.
      every: 1 to MOST_WAITING.
      observer: who takes them.

    Returns:
      `Counters.waiting` after it.
    """
    if every > 1 and waiting.shape != (_LENGTH,):  # of a state whose steps did not wait until now
        waiting = none_waiting(every)
    if waiting.shape == (_LENGTH,):
        waiting = _with(after, waiting)
    fine = jnp.array([outcome in GOOD_OUTCOMES for outcome in OUTCOMES])
    due = (waiting[0] >= every) | ~fine[after.outcome] | ~after.finite
    deliver = _delivery(observer)

    def hand_over(due: jax.Array | bool) -> jax.Array:
        words = pack(after._replace(waiting=waiting))
        # Under vmap both branches run, whatever is due: a reading without its first word says that it is not. And where
        # none waits the first of `waiting` is 0, which XLA does not know: it keeps the calls in order.
        first = jnp.where(due, words[0], 0) + (waiting[0] if waiting.shape == (1,) else 0)
        operand = lax.stop_gradient(words.at[0].set(first))
        none: jax.Array = jax.pure_callback(deliver, np.zeros([], np.uint32), operand, vmap_method="expand_dims")
        return waiting.at[0].set(none)

    return hand_over(True) if every == 1 else lax.cond(due, lambda: hand_over(due), lambda: waiting)


def _with(after: Counters, waiting: jax.Array) -> jax.Array:
    """`waiting`, and one step more."""
    # A state may come from a checkpoint in which more wait than are waited for here.
    place = jnp.minimum(waiting[0], MOST_WAITING - 1).astype(jnp.int32)
    waiting = lax.dynamic_update_slice(waiting, pack_head(after), [1 + HEAD * place])
    return waiting.at[0].set(place.astype(jnp.uint32) + 1)


def _delivery(observer: Observer) -> Any:
    """The callback: hands what it is given to `observer`, and returns 0, whatever happens."""
    said: set[type[BaseException]] = set()

    def hand_over(words: Any) -> None:
        found = np.array(words, np.uint32)
        readings = _readings(found.reshape(-1, found.shape[-1]))
        if readings is not None:
            observer.observe(readings)

    def deliver(words: Any) -> np.ndarray[Any, np.dtype[np.uint32]]:
        for tries_left in (1, 0):
            try:
                hand_over(words)
                break
            except BaseException as error:
                # Raised into the step it would end the training, with the donated state already gone. What a signal's
                # handler raised, so that the process ends, comes again after the step. It may have come before the
                # reading was taken, and others follow: that one comes again, too, which does no harm if it was.
                if tries_left and is_a_handlers(error) and raise_later(error):
                    continue
                if type(error) not in said:
                    said.add(type(error))
                    _log.exception("optwrap: a reading was lost, as will be others like it: %r raised", observer)
                break
        return np.zeros(np.shape(words)[:-1], np.uint32)

    return deliver


def _readings(members: Words) -> Words | None:
    """What to observe of uint32[n, words], n the members of a vmap, else 1; None where nothing is due."""
    if not members[:, 0].any():
        return None
    alike = (members == members[0]).all()
    members[:, 0] = members[:, 0].max()  # of those that are not due, too
    if alike:
        steps = by_step(members[0])
        return steps[0] if len(steps) == 1 else steps
    # Optimizers of their own, which are no steps in a row: that is for whoever observes to say.
    return np.stack([by_step(member)[-1] for member in members])
