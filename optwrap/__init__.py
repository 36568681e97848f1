"""optax's optimizer wrappers, right when gradients are not finite, and their counters out of the jitted step."""

from optax import ApplyIfFiniteState, LookaheadParams, LookaheadState, MaskedNode, MaskedState, MultiStepsState

from optwrap.accumulation import MultiSteps
from optwrap.conditional import apply_if_finite
from optwrap.layout import flatten
from optwrap.lookahead import lookahead
from optwrap.masking import masked
from optwrap.skipping import ShouldSkipUpdateFunction, skip_large_updates, skip_not_finite

__all__ = [
    "ApplyIfFiniteState",
    "LookaheadParams",
    "LookaheadState",
    "MaskedNode",
    "MaskedState",
    "MultiSteps",
    "MultiStepsState",
    "ShouldSkipUpdateFunction",
    "apply_if_finite",
    "flatten",
    "lookahead",
    "masked",
    "skip_large_updates",
    "skip_not_finite",
]
