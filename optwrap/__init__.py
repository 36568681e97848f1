"""optax's optimizer wrappers, right when gradients are not finite, and their counters out of the jitted step."""

from optax import ApplyIfFiniteState, LookaheadParams, LookaheadState, MaskedNode, MaskedState, MultiStepsState

from optwrap._version import __version__ as __version__
from optwrap.accumulation import MultiSteps
from optwrap.conditional import apply_if_finite
from optwrap.fused import apply_gradients, settle
from optwrap.layout import flatten
from optwrap.lookahead import lookahead
from optwrap.masking import masked
from optwrap.skip_if import SkipIfState, skip_if
from optwrap.skipping import ShouldSkipUpdateFunction, skip_large_updates, skip_not_finite
from optwrap.telemetry.adopt import adopt
from optwrap.telemetry.instrument import instrument
from optwrap.telemetry.monitor import Monitor
from optwrap.telemetry.reading import reading
from optwrap.telemetry.replicas import replica_flags
from optwrap.telemetry.state import InstrumentState

__all__ = [
    "ApplyIfFiniteState",
    "InstrumentState",
    "LookaheadParams",
    "LookaheadState",
    "MaskedNode",
    "MaskedState",
    "Monitor",
    "MultiSteps",
    "MultiStepsState",
    "ShouldSkipUpdateFunction",
    "SkipIfState",
    "adopt",
    "apply_gradients",
    "apply_if_finite",
    "flatten",
    "instrument",
    "lookahead",
    "masked",
    "reading",
    "replica_flags",
    "settle",
    "skip_if",
    "skip_large_updates",
    "skip_not_finite",
]
