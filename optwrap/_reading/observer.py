"""`Observer`: the interface of a monitor that `instrument` calls."""

from typing import Any, Protocol, runtime_checkable

from optwrap._reading.unpack import Layout


@runtime_checkable
class Observer(Protocol):
    """Receives the readings of an instrumented optimizer: a `Monitor`, or any object with these two methods.

    For example::

        class Printer:
            def describe(self, layout, *, stepping=False):
                self.layout = layout

            def observe(self, reading):
                for words in np.atleast_2d(np.asarray(reading)):
                    print(optwrap.unpack(words, self.layout).outcome)
    """

    def describe(self, layout: Layout, *, stepping: bool = False) -> None:
        """Receive the parameters' names. `instrument` calls this whenever `init` or `update` is traced.

        Args:
          layout: the static description of the readings that follow.
          stepping: whether `update` is being traced, not `init`.
        """

    def observe(self, reading: Any, /) -> None:
        """Take one reading, uint32[words], or several, uint32[..., words]. Must not block, and must not raise.

        If `update` is given scalars (emit="callback"), they are keyword arguments, float32[]; then this method must
        take them: `def observe(self, reading, /, **scalars)`.

        With emit="callback" the readings are numpy arrays without leading axes, and JAX may deliver one twice.
        """
