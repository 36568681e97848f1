"""Mini-steps that count for more or less than others, for `MultiSteps(..., weighted=True)`.

The state of `MultiSteps` is optax's own and has no field for weights: they live in its `skip_state`, beside what a skip
function left there.
"""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from optwrap._core import checks as _checks

LARGEST: Final = 1e30
"""The largest weight: hundreds of millions of such a weight have a sum in float32, of which each is a share."""
_KEYS: Final = ("weight", "weight_sum")


class Weights(NamedTuple):
    """The weights of a window. Scalars of the default floating dtype: float32, or float64 where 64 bits are enabled."""

    own: jax.Array
    """That of the last mini-step, 0 if it is to count for nothing."""
    total: jax.Array
    """Of all mini-steps of the window, this one included; saturated at the dtype's largest value."""

    def plus(self, weight: ArrayLike, empty: jax.Array) -> "Weights":
        """After one more mini-step.

        Args:
          weight: what it counts for: a real scalar from 0 to LARGEST. On the device nothing can raise: there what is no
            finite number from 0 counts as 0, and so does one below the dtype's smallest normal number (1.2e-38 in
            float32); what is above LARGEST counts as that.
          empty: bool[], whether the window held nothing before.

        Raises:
          TypeError: it is no real scalar.
          ValueError: it is known now, and no number from 0 to LARGEST.
        """
        remedy = "give what this mini-step counts for, such as its number of tokens"
        weight = _checks.real("MultiSteps: weight", weight, LARGEST, remedy)
        value = jnp.asarray(weight).astype(self.total.dtype)
        own = jnp.where((value > 0) & (value < jnp.inf), jnp.minimum(value, LARGEST), jnp.zeros_like(value))
        before = jnp.where(empty, jnp.zeros_like(self.total), self.total)
        return Weights(own, jnp.minimum(before + own, float(np.finfo(self.total.dtype).max)))

    @property
    def share(self) -> jax.Array:
        """The part of the window's weight that the last mini-step has, 0 to 1; 0 where nothing has any."""
        return self.own / jnp.where(self.total > 0, self.total, jnp.ones_like(self.total))

    def beside(self, skip_state: Any) -> dict[str, Any]:
        """These in one dict with a skip function's state: with its entries where that is a mapping.

        Another structure stands under `skip_state`; nothing does where there is no skip function.

        Raises:
          ValueError: the mapping has entries of these names itself.
        """
        if isinstance(skip_state, Mapping):
            if any(key in skip_state for key in _KEYS):
                raise ValueError(
                    f"MultiSteps: should_skip_update_fn: its skip_state must not have the keys weight and weight_sum, "
                    f"got {sorted(skip_state)}: call it something else, since weighted=True keeps its own there"
                )
            entries = dict(skip_state)
        else:
            entries = {"skip_state": skip_state} if jax.tree.leaves(skip_state) else {}
        return {**entries, "weight": self.own, "weight_sum": self.total}


def no_weights() -> Weights:
    """Those of a window that has not begun."""
    zero = jnp.zeros([], jax.dtypes.canonicalize_dtype(np.float64))
    return Weights(zero, zero)


def weights_in(skip_state: Any) -> Weights:
    """The weights that `Weights.beside` put into a skip state.

    Raises:
      ValueError: there are none.
    """
    if not (isinstance(skip_state, Mapping) and all(key in skip_state for key in _KEYS)):
        got = sorted(skip_state) if isinstance(skip_state, Mapping) else _checks.shown(skip_state)
        raise ValueError(
            f"MultiSteps: state.skip_state must hold weight and weight_sum, got {got}: pass a state made with weighted="
            "True; one that has accumulated without weights can be flushed, and begun anew"
        )
    return Weights(skip_state["weight"], skip_state["weight_sum"])
