"""Optimizer wrappers for optax that handle non-finite gradients, and counters that a jitted step returns."""

from optax import ApplyIfFiniteState, LookaheadParams, LookaheadState, MaskedNode, MaskedState, MultiStepsState

from optwrap import trackers
from optwrap._autopsy.autopsy import autopsy
from optwrap._autopsy.findings import Findings
from optwrap._autopsy.parts import Fault, FaultStep, LargestValue, LoopIteration, Operand
from optwrap._autopsy.recorder import HeldStep, Recorder
from optwrap._core.apply_gradients import apply_gradients, settle
from optwrap._monitor.local.record import StepRecord
from optwrap._monitor.monitor import Monitor
from optwrap._reading.observer import Observer
from optwrap._reading.replicas import Replica
from optwrap._reading.state import InstrumentState, reading
from optwrap._reading.unpack import Layout, Reading, Totals, unpack
from optwrap._step.adopt import adopt
from optwrap._step.instrument import instrument
from optwrap._step.replicas import ReplicaFlags, replica_flags
from optwrap._stop.policy import StopPolicy
from optwrap._stop.stop import BadStep, Stop
from optwrap._version import __version__ as __version__
from optwrap._wrappers.apply_if_finite import apply_if_finite
from optwrap._wrappers.flatten import flatten
from optwrap._wrappers.lookahead import lookahead
from optwrap._wrappers.masked import masked
from optwrap._wrappers.multi_steps import MultiSteps
from optwrap._wrappers.skip_functions import ShouldSkipUpdateFunction, skip_large_updates, skip_not_finite
from optwrap._wrappers.skip_if import SkipIfState, skip_if
from optwrap._wrappers.skip_spikes import SkipSpikesState, skip_spikes

__all__ = [
    "ApplyIfFiniteState",
    "BadStep",
    "Fault",
    "FaultStep",
    "Findings",
    "HeldStep",
    "InstrumentState",
    "LargestValue",
    "Layout",
    "LookaheadParams",
    "LookaheadState",
    "LoopIteration",
    "MaskedNode",
    "MaskedState",
    "Monitor",
    "MultiSteps",
    "MultiStepsState",
    "Observer",
    "Operand",
    "Reading",
    "Recorder",
    "Replica",
    "ReplicaFlags",
    "ShouldSkipUpdateFunction",
    "SkipIfState",
    "SkipSpikesState",
    "StepRecord",
    "Stop",
    "StopPolicy",
    "Totals",
    "adopt",
    "apply_gradients",
    "apply_if_finite",
    "autopsy",
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
    "skip_spikes",
    "trackers",
    "unpack",
]
