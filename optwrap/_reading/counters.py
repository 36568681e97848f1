"""The instrumentation's state: what it remembers from step to step, arrays only."""

from typing import Any, Final, NamedTuple

import jax

OUTCOMES: Final = (
    "applied",
    "accumulated",
    "skipped_not_finite",
    "skipped_large",
    "skipped_other",
    "accepted_not_finite",
)
"""What can become of a call of `update`, in the order of `Counters.outcomes`."""

GOOD_OUTCOMES: Final = frozenset({"applied", "accumulated"})
"""The outcomes of a step in which nothing went wrong."""

INT_GAUGES: Final = (
    "guard_not_finite_count",
    "guard_not_finite_limit",
    "mini_step",
    "every_k",
    "gradient_step",
    "steps_since_sync",
    "sync_period",
)
"""The integer gauges, in the order of `Counters.gauges`."""

OF_REPLICAS: Final = ("replica", "replicas_not_finite")
"""What `Counters.gauges` has behind them: of the last call's replicas the first whose own gradients were not finite,
ABSENT where there was none, and how many were; both ABSENT where the call was given no `replica_flags`. No array with
a place for each, so that a checkpoint can be restored on another number of devices."""

ABSENT: Final = -1
"""The value of a gauge where there is no such wrapper, or where it hides the figure. No NaN: under `jax_debug_nans` it
would end every step."""


MOST_WAITING: Final = 32
"""Steps that can wait on the device with emit="callback" and callback_every: there is room for so many."""


class Counters(NamedTuple):
    """What `instrument` counts.

    P is the number of array leaves of the gradients, W the number of accumulation windows (`MultiStepsState`) in the
    wrapped state. Counters saturate at their dtype's largest value.
    """

    outcomes: jax.Array
    """int32[6]: calls so far by outcome, in the order of OUTCOMES; their sum is the number of steps."""
    not_finite_steps: jax.Array
    """int32[]: calls so far whose incoming gradients had a value that is not finite."""
    not_finite_streak: jax.Array
    """int32[]: such calls in a row, up to and including the last call."""
    not_finite_streak_peak: jax.Array
    """int32[]: the largest that streak has been."""
    parameters: jax.Array
    """int32[P]: calls so far in which that parameter's gradient had a value that is not finite."""
    window_not_finite: jax.Array
    """bool[W]: whether each accumulation window, as it stands now, has taken in a value that is not finite; one that is
    false where there is no window."""
    outcome: jax.Array
    """int32[]: the last call's outcome, an index into OUTCOMES; -1 before the first call."""
    finite: jax.Array
    """bool[]: whether the last call's incoming gradients were all finite."""
    gradient_norm: jax.Array
    """float32[]: global L2 norm of the last call's incoming gradients."""
    not_finite_values: jax.Array
    """int32[P]: how many values of each parameter's gradient were not finite in the last call."""
    gauges: jax.Array
    """int32[9]: INT_GAUGES after the last call, and OF_REPLICAS; ABSENT where there is none. One leaf for both."""
    gradient_norm_limit: jax.Array
    """float32[]: the norm from which a step is skipped as large; ABSENT where there is no such limit."""
    fingerprint: jax.Array
    """uint32[]: `Layout.fingerprint` of the instrumentation that counted: tells readings of two programs apart."""
    waiting: jax.Array
    """uint32[1], 0; with callback_every above 1 uint32[1 + 24 * MOST_WAITING]: how many steps wait on the device to be
    handed to the host, and of each the first 24 words of its reading. What the host callback returned, 0 each time,
    goes into the first: what XLA cannot know to be 0 keeps the callbacks in the program and in order. One leaf for all
    of it, since each costs in every step."""


class InstrumentState(NamedTuple):
    """State of `instrument`: the wrapped transformation's own, and what was counted beside it.

    A checkpoint of this state carries the counters on, so that they are those of the training and not of one process.
    """

    inner_state: Any
    """The state of the wrapped transformation, untouched."""
    counters: dict[str, Counters]
    """One entry, under the instrumentation's name: a key of a dict is static, and is no leaf, so the state needs no
    node of its own kind to remember how it is called."""
