"""Which optimizer a Monitor reports: the layout of the one whose `update` was traced last."""

import dataclasses
import time
import weakref

from optwrap._reading.unpack import Layout, Source


class OneOptimizer:
    """Keeps the layout of one optimizer, and refuses a second one beside it."""

    def __init__(self) -> None:
        self.layout: Layout | None = None
        """None until `init` or `update` is traced."""
        self._stepping: weakref.ref[Source] | None = None
        """The instrumentation whose `update` was traced last."""
        self._stepping_since = 0
        """When that was traced first, on the clock of `Source.created`."""

    def describe(self, layout: Layout, *, stepping: bool, monitor: object) -> None:
        """Take a layout, unless it is that of an optimizer that is only initialised while another one steps.

        Args:
          layout: the parameters' paths.
          stepping: whether `update` is traced, and not `init`.
          monitor: whose optimizer it is, for the message.

        Raises:
          ValueError: the `update` of another optimizer was traced before, and both existed then.
        """
        last = None if self._stepping is None else self._stepping()
        this = None if layout.source is None else layout.source()
        if last is not None and this is not last and (this is None or this.created < self._stepping_since):
            if stepping and this is not None:
                raise ValueError(
                    f"Monitor: {monitor!r} is given to a second optimizer; allowed: one instrument for each Monitor; "
                    "give each optimizer its own, Monitor(run=...) under a name of its own"
                )
            if not stepping:
                return  # the readings are those of the one that steps
        if stepping and this is not last:
            self._stepping, self._stepping_since = layout.source, time.monotonic_ns()
        if self.layout == layout and layout.replicas is None:
            # `init` is traced again whenever an outer instrumentation is, and does not know the replicas.
            layout = dataclasses.replace(layout, replicas=self.layout.replicas)
        self.layout = layout
