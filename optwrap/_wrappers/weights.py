"""The weights of mini-steps, for `MultiSteps(..., weighted=True)`.

The state of `MultiSteps` is optax's own class, which has no field for weights. They are in its `skip_state`, beside the
state of the skip function.
"""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from optwrap._core import checks as _checks

LARGEST: Final = 1e30
"""The largest weight. A sum of 3e8 weights of this size still fits into float32."""
_KEYS: Final = ("weight", "weight_sum")


class Weights(NamedTuple):
    """The weights of a window: scalars of the default floating dtype, float32 or (with 64-bit types) float64."""

    own: jax.Array
    """The weight of the last mini-step; 0 if the given weight was invalid."""
    total: jax.Array
    """The sum over the window, this mini-step included; saturated at the dtype's largest value."""

    def plus(self, weight: ArrayLike, empty: jax.Array) -> "Weights":
        """The weights after one more mini-step.

        Args:
          weight: the weight of this mini-step, a real scalar from 0 to LARGEST. A traced value cannot raise: one that
            is negative, not finite or below the dtype's smallest normal number (1.2e-38 in float32) counts as 0, and
            one above LARGEST as LARGEST.
          empty: bool[], whether the window was empty before.

        Raises:
          TypeError: `weight` is not a real scalar.
          ValueError: `weight` is not traced, and not from 0 to LARGEST.
        """
        remedy = "pass the weight of this mini-step, such as its number of tokens"
        weight = _checks.real("MultiSteps: weight", weight, LARGEST, remedy)
        value = jnp.asarray(weight).astype(self.total.dtype)
        own = jnp.where((value > 0) & (value < jnp.inf), jnp.minimum(value, LARGEST), jnp.zeros_like(value))
        before = jnp.where(empty, jnp.zeros_like(self.total), self.total)
        return Weights(own, jnp.minimum(before + own, float(np.finfo(self.total.dtype).max)))

    @property
    def share(self) -> jax.Array:
        """The last mini-step's fraction of the window's weight, 0 to 1; 0 if that weight is 0."""
        return self.own / jnp.where(self.total > 0, self.total, jnp.ones_like(self.total))

    def beside(self, skip_state: Any) -> dict[str, Any]:
        """A dict with these weights and a skip function's state.

        If the state is a mapping, its entries are copied. Any other state is stored under `skip_state`, unless it has
        no leaves.

        Raises:
          ValueError: the mapping has entries named weight or weight_sum itself.
        """
        if isinstance(skip_state, Mapping):
            if any(key in skip_state for key in _KEYS):
                raise ValueError(
                    "MultiSteps: the skip_state of should_skip_update_fn must not have the keys weight and weight_sum, "
                    f"got {sorted(skip_state)}: rename them, because weighted=True keeps its own weights there"
                )
            entries = dict(skip_state)
        else:
            entries = {"skip_state": skip_state} if jax.tree.leaves(skip_state) else {}
        return {**entries, "weight": self.own, "weight_sum": self.total}


def no_weights() -> Weights:
    """The weights of an empty window."""
    zero = jnp.zeros([], jax.dtypes.canonicalize_dtype(np.float64))
    return Weights(zero, zero)


def weights_in(skip_state: Any) -> Weights:
    """The weights in a skip state made by `Weights.beside`.

    Raises:
      ValueError: there are none.
    """
    if not (isinstance(skip_state, Mapping) and all(key in skip_state for key in _KEYS)):
        got = sorted(skip_state) if isinstance(skip_state, Mapping) else _checks.shown(skip_state)
        raise ValueError(
            f"MultiSteps: state.skip_state must hold weight and weight_sum, got {got}: pass a state made with weighted="
            "True; a state that was made without weights cannot be used: flush it, and make a new one with init"
        )
    return Weights(skip_state["weight"], skip_state["weight_sum"])
