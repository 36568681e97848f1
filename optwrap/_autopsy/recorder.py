"""`Recorder`: keeps what is needed to repeat the step that went bad."""

import collections
import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from optwrap._core import checks
from optwrap._reading.unpack import unpack


@dataclasses.dataclass(frozen=True)
class HeldStep:
    """The arguments of one step: `optwrap.autopsy(fn, *held.args, **held.kwargs)`."""

    step: int
    """Its number: 1 for the first call of `update` on a new optimizer state."""
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


class Recorder:
    """Keeps the arguments of the last steps, so that the first bad one can be repeated.

    It holds references, and runs nothing on the device unless it is told to copy. For example::

        recorder = optwrap.Recorder(keep=2)
        for batch in batches:
            recorder.hold(params, batch)
            params, opt_state, reading = train_step(params, opt_state, batch)
            recorder.observe(reading)
            if (bad := recorder.bad_step()) is not None:
                print(optwrap.autopsy(jax.value_and_grad(loss), *bad.args))

    A step that donates its parameters destroys them, so they have to be copied: `Recorder(copy=(0,))` copies the first
    argument of `hold` in every step.

    Args:
      keep: number of steps whose arguments are kept, from 1. `observe` waits until the device has computed the reading
        of the step `keep` steps ago, so a loop that runs further ahead of the device needs a larger number.
      copy: positions of the arguments of `hold` that are copied, because the step donates them or changes them in place
        (a model of flax.nnx), or because the loader uses a numpy array again.

    Raises:
      TypeError: `keep` is no integer, or `copy` no tuple of integers.
      ValueError: `keep` is less than 1, or a position is negative.
    """

    def __init__(self, keep: int = 2, *, copy: tuple[int, ...] = ()) -> None:
        remedy = "choose how many of the last steps are kept"
        self._keep = int(checks.integer("Recorder: keep", keep, 1, remedy))  # type: ignore[arg-type]  # concrete
        remedy = "pass positions of the arguments of hold, as in copy=(0, 1)"
        if not isinstance(copy, tuple | list):
            raise TypeError(
                f"Recorder: copy must be a tuple, got {checks.shown(copy)} ({type(copy).__name__}): {remedy}"
            )
        for position in copy:
            checks.integer("Recorder: copy", position, 0, remedy)
        self._copy = frozenset(copy)
        self._pending: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self._held: collections.deque[tuple[Any, tuple[Any, ...], dict[str, Any]]] = collections.deque()
        self._bad: HeldStep | None = None

    def hold(self, /, *args: Any, **kwargs: Any) -> None:
        """Keep the arguments of the next step. Call it before the step, with the arguments for `autopsy`.

        Args:
          *args: pytrees of arrays. Those at the positions `copy` are copied.
          **kwargs: pytrees of arrays, never copied.

        Raises:
          ValueError: there is no argument at a position in `copy`.
        """
        if missing := sorted(position for position in self._copy if position >= len(args)):
            raise ValueError(
                f"Recorder: copy has position {missing[0]}, and hold got {len(args)} positional arguments: pass by "
                "position what is copied"
            )
        copied = tuple(jax.tree.map(_copied, arg) if i in self._copy else arg for i, arg in enumerate(args))
        self._pending = copied, kwargs

    def observe(self, reading: Any) -> None:
        """Take the reading of the step whose arguments `hold` was given last.

        Args:
          reading: the result of `optwrap.reading`, uint32[words], with any leading axes. Do not donate it.

        Raises:
          RuntimeError: the step of an earlier reading failed, or the reading was donated.
          ValueError: `hold` was not called since the last `observe`, or an earlier reading is none.
        """
        if self._pending is None:
            raise ValueError("Recorder: observe was called twice, or before hold: call hold before each step")
        if self._bad is None:
            self._held.append((reading, *self._pending))
            while len(self._held) > self._keep:
                self._judge(*self._held.popleft())
        self._pending = None

    def bad_step(self) -> HeldStep | None:
        """The first step with non-finite gradients that was observed; None if there is none.

        It waits for the device. From the first bad step on nothing else is kept.

        Raises:
          RuntimeError: the step of a reading failed, or the reading was donated.
          ValueError: something that is no reading was observed.
        """
        while self._held and self._bad is None:
            self._judge(*self._held.popleft())
        return self._bad

    def _judge(self, reading: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        rows = np.asarray(jax.device_get(reading))
        for row in rows.reshape(-1, rows.shape[-1] if rows.ndim else 1):
            unpacked = unpack(row)
            if not unpacked.finite and unpacked.outcome is not None:
                self._bad = HeldStep(unpacked.step, args, kwargs)
                self._held.clear()
                return


def _copied(leaf: Any) -> Any:
    return leaf.copy() if isinstance(leaf, jax.Array | np.ndarray) else leaf
