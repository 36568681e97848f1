"""The progress bar: batch, loss, streak and skipped steps. The training does not wait for it."""

import math
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from optwrap._reading.unpack import unpack

_LAG = 0.1
"""Seconds after which the device is assumed to have finished a step."""
_BETWEEN_LINES = 5.0
"""Seconds between two lines if there is no terminal."""


class Progress:
    """Shows one training on `console`: a bar on a terminal, otherwise a line now and then.

    The values are a tenth of a second old, so that the host does not wait for the step that it has just dispatched.
    """

    def __init__(self, console: Console, title: str, batches: int) -> None:
        self._console = console
        self._title = title
        self._batches = batches
        self._terminal = console.is_terminal
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("batch {task.completed}/{task.total}"),
            TextColumn("{task.fields[shown]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not self._terminal,
        )
        self._task = self._bar.add_task(title, total=batches, shown="compiling")
        self._asked: tuple[int, jax.Array, jax.Array | None] | None = None
        self._asked_at = -math.inf

    def advance(self, batch: int, loss: jax.Array, reading: Callable[[], jax.Array] | None = None) -> None:
        """Note that a micro-step has been dispatched.

        Args:
          batch: the number of its batch, from 1. After a rollback it is smaller than before.
          loss: float32[], not waited for.
          reading: dispatches a reading of the state after it; called for a few steps only.
        """
        waited = time.monotonic() - self._asked_at
        if self._asked is not None and waited >= _LAG:
            self._show(*self._asked)
            self._asked = None
        if batch == self._batches or (self._asked is None and (self._terminal or waited >= _BETWEEN_LINES)):
            self._asked = batch, loss, None if reading is None else reading()
            self._asked_at = time.monotonic()

    def _show(self, batch: int, loss: jax.Array, reading: jax.Array | None) -> None:
        shown = f"loss {float(loss):.3f}"
        if reading is not None:
            seen = unpack(np.asarray(reading))
            skipped = sum(steps for outcome, steps in seen.totals.outcomes.items() if outcome.startswith("skipped"))
            streak, longest = seen.gauges["not_finite_streak"], seen.gauges["not_finite_streak_peak"]
            shown += f"  streak {streak}, longest {longest}  skipped {skipped}"
        if self._terminal:
            self._bar.update(self._task, completed=batch, shown=shown)
        else:
            self._console.print(
                f"{self._title}: batch {batch}/{self._batches}  {shown}", highlight=False, markup=False, soft_wrap=True
            )

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._asked is not None:
            self._show(*self._asked)
        self._bar.stop()
