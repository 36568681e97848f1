"""Reads a packed reading on the host, into plain Python values."""

import dataclasses
import functools
import time
import weakref
import zlib
from collections.abc import Mapping
from typing import Any, Final, Protocol

import jax
import numpy as np

from optwrap._reading.counters import (
    ABSENT,
    GRADIENT_STEPS,
    HEAD,
    INTEGER_GAUGES,
    OUTCOMES,
    VERSION,
    Counters,
    Words,
    parameter_count,
    sizes_of,
    split,
)
from optwrap._reading.replicas import Replica, Replicas
from optwrap._reading.scalars import shortest


class Source:
    """One instrumentation. A monitor tells two apart by it."""

    def __init__(self) -> None:
        self.created: Final = time.monotonic_ns()


@dataclasses.dataclass(frozen=True)
class Layout:
    """The static description of an instrumentation's readings. `instrument` passes it to the monitor when traced."""

    parameters: tuple[str, ...]
    """Path of each parameter, in the order of the tree's leaves: `decoder/layer_3/mlp/w`."""
    scalars: tuple[str, ...] = ()
    """Names of the injected hyperparameters that the readings hold."""
    source: "weakref.ref[Source] | None" = dataclasses.field(default=None, compare=False, repr=False)
    """Identity of the instrumentation; tells two with the same parameters apart."""
    replicas: Replicas | None = dataclasses.field(default=None, compare=False, repr=False)
    """The replicas that `replica_flags` cover; None if the traced step had no flags."""

    @functools.cached_property
    def fingerprint(self) -> int:
        """CRC-32 of the paths and of the scalars' names (uint32). Every reading carries it."""
        names = "\1".join(["\0".join(self.parameters), *self.scalars])
        return zlib.crc32(names.encode("utf-8", "surrogatepass"))


class Described(Protocol):
    """Something that knows the parameters' names: a `Monitor`."""

    @property
    def layout(self) -> Layout | None:
        """The names; None until `init` or `update` is traced."""


@dataclasses.dataclass(frozen=True)
class Totals:
    """Cumulative counts since the optimizer's state was made."""

    outcomes: Mapping[str, int]
    """Steps by outcome: applied, accumulated, skipped_not_finite, skipped_large, skipped_other, accepted_not_finite."""
    not_finite_steps: int
    """Steps whose gradients had a non-finite value."""
    parameters: Mapping[str, int]
    """Steps with non-finite values by parameter, in the tree's order; parameters that had none are left out."""
    replicas: Mapping[Replica, int] = dataclasses.field(default_factory=dict)
    """Steps in which that replica was the first with non-finite gradients; at most 64 replicas, and one entry for all
    others. Only a Monitor counts these: `unpack` returns none."""

    @property
    def steps(self) -> int:
        """Calls of `update`."""
        return sum(self.outcomes.values())

    @property
    def gradient_steps(self) -> int:
        """Calls that reached the inner optimizer."""
        return sum(self.outcomes[outcome] for outcome in GRADIENT_STEPS)


@dataclasses.dataclass(frozen=True)
class Reading:
    """One step, as plain Python values."""

    totals: Totals
    """Counts up to and including this step."""
    outcome: str | None
    """The step's own outcome; None before the first step."""
    finite: bool
    """Whether all values of the incoming gradients were finite."""
    norm: float
    """Global L2 norm of the incoming gradients; NaN or infinite if a value is non-finite."""
    nonfinite_parameters: Mapping[str, int]
    """Number of non-finite values in this step by parameter, in the tree's order; parameters without are left out."""
    gauges: Mapping[str, float | int]
    """The gauges that the optimizer has: not_finite_streak, not_finite_streak_peak and gradient_norm always;
    gradient_norm_limit, guard_not_finite_count, guard_not_finite_limit, mini_step, every_k, gradient_step,
    steps_since_sync, sync_period, guard_rebases and guard_would_skip_steps where a wrapper has them; update_norm if the
    step has one."""
    largest_parameters: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """The share of the squared norm, from 0 to 1, of the three parameters with the largest shares, the largest first.
    Empty if the norm is zero or a value is non-finite."""
    update_norm: float | None = None
    """Global L2 norm of the update that the step applied; None if it applied none, or without `update_norm=True`. In a
    skipped step it is the norm for the parameters outside the guard that skipped, if they moved."""
    scalars: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """The hyperparameters of `optax.inject_hyperparams` by name, as of this step. From a Monitor also the scalars that
    were observed with the reading."""
    replica: int | None = None
    """Index of the first replica whose own gradients were non-finite; None if there was none, or no flags."""
    replicas_not_finite: int | None = None
    """Number of replicas whose own gradients were non-finite; None if the step was given no flags."""

    @property
    def step(self) -> int:
        """The step's number: 1 for the first call of `update` on this state."""
        return self.totals.steps


def unpack(reading: Any, monitor_or_layout: Described | Layout | None = None) -> Reading:
    """The contents of one reading as plain Python values, for your own logger.

    For example::

        params, opt_state, reading = train_step(params, opt_state, batch)
        step = optwrap.unpack(reading, monitor)
        print(step.step, step.outcome, step.norm)

    This waits for the device. `Monitor.latest` and `Monitor(on_step=...)` do not.

    Args:
      reading: uint32[words], the result of `optwrap.reading`, on the host or on any devices; one row of it if it has
        leading axes.
      monitor_or_layout: where the parameters' names come from: the `Monitor` of the instrumentation, or a `Layout` as
        `Observer.describe` gets it. Without it, and before `init` is traced, they are `leaf_0`, `leaf_1`, ...

    Raises:
      ValueError: `reading` is not a reading, was made by another version of optwrap, or belongs to another
        instrumentation than the layout.
    """
    counters = _split(_on_host(reading))
    layout = monitor_or_layout
    if layout is not None and not isinstance(layout, Layout):
        layout = layout.layout
    size = len(counters.parameters)
    fingerprint = int(counters.fingerprint)
    if layout is not None and (fingerprint != layout.fingerprint or size != len(layout.parameters)):
        raise ValueError(
            f"reading: made by another instrumentation ({size} parameters, fingerprint {fingerprint:#x}) than the one "
            f"that the layout describes ({len(layout.parameters)} parameters, {layout.fingerprint:#x}): give each "
            "instrument its own Monitor"
        )
    paths = tuple(f"leaf_{i}" for i in range(size)) if layout is None else layout.parameters
    names = tuple(f"scalar_{i}" for i in range(len(counters.scalars))) if layout is None else layout.scalars

    def by_path(values: Any) -> dict[str, int]:
        return {paths[i]: int(values[i]) for i in np.flatnonzero(values)}

    gauges: dict[str, float | int] = {
        name: value for name, value in zip(INTEGER_GAUGES, counters.gauges.tolist(), strict=True) if value != ABSENT
    }
    gauges["not_finite_streak"] = int(counters.not_finite_streak)
    gauges["not_finite_streak_peak"] = int(counters.not_finite_streak_peak)
    gauges["gradient_norm"] = float(counters.gradient_norm)
    update_norm = None if counters.update_norm == ABSENT else float(counters.update_norm)
    if update_norm is not None:
        gauges["update_norm"] = update_norm
    if counters.gradient_norm_limit >= 0:
        gauges["gradient_norm_limit"] = float(counters.gradient_norm_limit)
    return Reading(
        totals=Totals(
            outcomes=dict(zip(OUTCOMES, counters.outcomes.tolist(), strict=True)),
            not_finite_steps=int(counters.not_finite_steps),
            parameters=by_path(counters.parameters),
        ),
        outcome=None if counters.outcome < 0 else OUTCOMES[int(counters.outcome)],
        finite=bool(counters.finite),
        norm=float(counters.gradient_norm),
        nonfinite_parameters=by_path(counters.not_finite_values),
        gauges=gauges,
        largest_parameters={
            paths[i]: share
            for i, share in zip(counters.largest.tolist(), counters.largest_shares.tolist(), strict=True)
            if i != ABSENT
        },
        update_norm=update_norm,
        # Before the first step they have no values.
        scalars={} if counters.outcome < 0 else dict(zip(names, map(shortest, counters.scalars), strict=True)),
        replica=_or_none(counters.replica),
        replicas_not_finite=_or_none(counters.replicas_not_finite),
    )


def _or_none(value: Any) -> int | None:
    number = int(value)
    return None if number == ABSENT else number


def _on_host(reading: Any) -> Any:
    if isinstance(reading, jax.core.Tracer):
        raise ValueError(
            "reading: expected an array, got a traced value: return it from the jitted step, then unpack it"
        )
    # device_get is an explicit transfer, which jax.transfer_guard("disallow") permits.
    return np.asarray(jax.device_get(reading)) if isinstance(reading, jax.Array) else reading


def _split(words: Words) -> Counters:
    if getattr(words, "dtype", None) != np.uint32 or words.ndim != 1 or len(words) < HEAD:
        got = f"{words.dtype}{list(words.shape)}" if hasattr(words, "dtype") else type(words).__name__
        raise ValueError(
            f"reading: expected a uint32 vector of at least {HEAD} words as optwrap.reading() returns it, got {got}: "
            "pass the reading, or one row of it where it has leading axes"
        )
    if int(words[0]) != VERSION:
        raise ValueError(
            f"reading: the first word is {int(words[0]):#x}, expected {VERSION:#x}: it was not made by this version of "
            "optwrap; read it with the version that made it, or continue with counters at zero: "
            "optwrap.adopt(tx, state.inner_state, params)"
        )
    sizes = sizes_of(words)
    parameter_count(len(words), sizes)
    return split(words, sizes)
