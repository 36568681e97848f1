"""Every nesting, with every fault: the readings equal those of the simulation."""

import dataclasses
import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import optwrap
from optwrap._reading.state import reading
from optwrap._reading.unpack import Layout, unpack
from optwrap._step.instrument import instrument
from tests.optwrap import simulation as sim

SHAPES = {"a": (3,), "b": (2, 2), "c": (2,)}  # optax's blend of a scalar leaks or not, as XLA pleases
LAYOUT = Layout(tuple(SHAPES))
STEPS = 18
MAX_SQUARED_NORM = 100.0  # gradients without a spike have 9 at most


@dataclasses.dataclass(frozen=True)
class Lib:
    """optax's wrappers, or optwrap's: the same nesting is built of either, and simulated."""

    wrappers: ModuleType

    @property
    def declares(self) -> bool:
        return self.wrappers is optwrap

    def guard(self, inner: Any, limit: int, **on_limit: str) -> Any:
        tx, part = inner
        tx = self.wrappers.apply_if_finite(tx, limit, **on_limit)
        return tx, sim.Guard(part, limit, self.declares, gives_up=not on_limit)

    def window(self, inner: Any, k: int | Callable[[Any], Any], skip: str | None = None) -> Any:
        tx, part = inner
        function = None if skip is None else self.skipping(skip)
        tx = self.wrappers.MultiSteps(tx, k, should_skip_update_fn=function).gradient_transformation()
        every_k = (lambda step: int(k(step))) if callable(k) else (lambda _: k)
        return tx, sim.Window(part, every_k, sim.Skipping(skip, MAX_SQUARED_NORM), leaky=not self.declares)

    def skip_if(self, inner: Any, skip: str) -> Any:
        tx, part = inner
        return self.wrappers.skip_if(tx, self.skipping(skip)), sim.SkipIf(part, sim.Skipping(skip, MAX_SQUARED_NORM))

    def skipping(self, kind: str) -> Any:
        functions = {
            "not_finite": self.wrappers.skip_not_finite,
            "large": functools.partial(self.wrappers.skip_large_updates, max_squared_norm=MAX_SQUARED_NORM),
            "negative": lambda updates, _, __: (jax.tree.leaves(updates)[0].ravel()[0] < 0, ()),
        }
        return functions[kind]

    def lookahead(self, inner: Any, period: int) -> Any:
        tx, part = inner
        return self.wrappers.lookahead(tx, period, 0.5), sim.Lookahead(part, period, self.declares)

    def masked(self, inner: Any, names: str) -> Any:
        tx, part = inner
        return self.wrappers.masked(tx, {name: name in names for name in SHAPES}), sim.Masked(part, set(names))


def adam() -> Any:
    return optax.adam(1e-3), sim.Adam()


def sgd() -> Any:
    return optax.sgd(1e-3), sim.Elementwise(lambda x: -0.001 * x)


def sign() -> Any:
    """Maps Inf to 1, so its output does not show a non-finite input."""
    return stateless(jnp.sign, np.sign)


def zero() -> Any:
    return optax.set_to_zero(), sim.Elementwise(np.zeros_like)


def stateless(function: Any, simulated: Any) -> Any:
    return optax.stateless(lambda updates, _: jax.tree.map(function, updates)), sim.Elementwise(simulated)


def chain(*inner: Any) -> Any:
    return optax.chain(*(tx for tx, _ in inner)), sim.Chain(*(part for _, part in inner))


def partition(**groups: Any) -> Any:
    labels = {name: next(group for group in groups if name in group) for name in SHAPES}
    tx = optax.multi_transform({group: tx for group, (tx, _) in groups.items()}, labels)
    return tx, sim.Chain(*(sim.Masked(part, set(group)) for group, (_, part) in groups.items()))


MENDING = (optax.zero_nans(), sim.Elementwise(lambda x: np.where(np.isnan(x), 0, x)))
SHIFT = stateless(lambda x: x + 1e-4, lambda x: x + np.float32(1e-4))
SPOILING = stateless(lambda x: jnp.where(x < -50, jnp.nan, x), lambda x: np.where(x < -50, np.nan, x))

NESTINGS: dict[str, Callable[[Lib], Any]] = {
    "bare": lambda _: adam(),
    "guard": lambda lib: lib.guard(adam(), 2),
    "guard that never rejects": lambda lib: lib.guard(adam(), 0),
    "guard that never gives up": lambda lib: lib.guard(sgd(), 1, on_limit="reject"),
    "guard that never gives up in a window in one that does": lambda lib: lib.guard(
        lib.window(lib.guard(adam(), 0, on_limit="reject"), 2), 1
    ),
    "guard, stateless inside": lambda lib: lib.guard(sgd(), 2),
    "guard, stateless inside, in a chain": lambda lib: chain(lib.guard(sgd(), 1), SHIFT),
    "guard, stateless inside, in lookahead": lambda lib: lib.lookahead(lib.guard(sgd(), STEPS), 2),
    "guard, sign inside": lambda lib: lib.guard(sign(), 1),
    "window": lambda lib: lib.window(adam(), 3),
    "window of one": lambda lib: lib.window(adam(), 1),
    "window by schedule": lambda lib: lib.window(adam(), lambda step: jnp.where(step >= 2, 2, 3)),
    "window skipping not finite": lambda lib: lib.window(adam(), 3, "not_finite"),
    "window skipping large": lambda lib: lib.window(adam(), 2, "large"),
    "window skipping for its own reason": lambda lib: lib.window(adam(), 2, "negative"),
    "guard around window": lambda lib: lib.guard(lib.window(adam(), 3), 1),
    "guard around window skipping not finite": lambda lib: lib.guard(lib.window(adam(), 2, "not_finite"), 1),
    "guard around window skipping large": lambda lib: lib.guard(lib.window(adam(), 4, "large"), 2),
    "window around guard": lambda lib: lib.window(lib.guard(adam(), 1), 3),
    "guard around window around guard": lambda lib: lib.guard(lib.window(lib.guard(adam(), 1), 2), 2),
    "window around window": lambda lib: lib.window(lib.window(adam(), 2, "large"), 2),
    "skip_if not finite": lambda lib: lib.skip_if(adam(), "not_finite"),
    "skip_if large": lambda lib: lib.skip_if(adam(), "large"),
    "skip_if for its own reason": lambda lib: lib.skip_if(sgd(), "negative"),
    "skip_if large around guard": lambda lib: lib.skip_if(lib.guard(adam(), 1), "large"),
    "skip_if large around skip_if not finite": lambda lib: lib.skip_if(lib.skip_if(sgd(), "not_finite"), "large"),
    "skip_if not finite around window skipping large": lambda lib: lib.skip_if(
        lib.window(adam(), 2, "large"), "not_finite"
    ),
    "skip_if for its own reason around lookahead around guard": lambda lib: lib.skip_if(
        lib.lookahead(lib.guard(adam(), 2), 3), "negative"
    ),
    "guard around skip_if large": lambda lib: lib.guard(lib.skip_if(adam(), "large"), 1),
    "window around skip_if large": lambda lib: lib.window(lib.skip_if(adam(), "large"), 2),
    "masked around skip_if not finite": lambda lib: lib.masked(lib.skip_if(adam(), "not_finite"), "ac"),
    "masked around skip_if large": lambda lib: lib.masked(lib.skip_if(adam(), "large"), "bc"),
    "skip_if not finite after mending": lambda lib: chain(MENDING, lib.skip_if(adam(), "not_finite")),
    "skip_if large after spoiling": lambda lib: chain(SPOILING, lib.skip_if(adam(), "large")),
    "groups with skip_if and window": lambda lib: partition(
        ab=lib.skip_if(adam(), "not_finite"), c=lib.window(adam(), 2)
    ),
    "lookahead": lambda lib: lib.lookahead(adam(), 4),
    "lookahead around guard": lambda lib: lib.lookahead(lib.guard(adam(), 2), 4),
    "lookahead around window around guard": lambda lib: lib.lookahead(lib.window(lib.guard(adam(), 1), 2), 3),
    "masked around guard": lambda lib: lib.masked(lib.guard(adam(), 1), "ac"),
    "masked around window": lambda lib: lib.masked(lib.window(adam(), 3), "ab"),
    "guard after mending": lambda lib: chain(MENDING, lib.guard(adam(), 1)),
    "guard after spoiling": lambda lib: chain(SPOILING, lib.guard(adam(), 1)),
    "window skipping not finite after spoiling": lambda lib: chain(SPOILING, lib.window(adam(), 2, "not_finite")),
    "window skipping large after spoiling": lambda lib: chain(SPOILING, lib.window(adam(), 2, "large")),
    "groups with guard and window": lambda lib: partition(ab=lib.guard(adam(), 1), c=lib.window(adam(), 2)),
    "groups with guard and nothing": lambda lib: partition(a=lib.guard(adam(), 1), bc=adam()),
    "groups with guard and frozen": lambda lib: partition(ab=lib.guard(adam(), 1), c=zero()),
    "groups with two windows": lambda lib: partition(ac=lib.window(adam(), 2), b=lib.window(adam(), 3)),
    "groups with window and nothing": lambda lib: partition(a=lib.window(adam(), 3), bc=adam()),
    "groups with window and frozen": lambda lib: partition(ab=lib.window(adam(), 3), c=zero()),
    "groups with guarded window and nothing": lambda lib: partition(a=lib.guard(lib.window(adam(), 2), 1), bc=sgd()),
    "guard around groups with window and nothing": lambda lib: lib.guard(
        partition(ac=lib.window(adam(), 2), b=adam()), 2
    ),
}

FAULTS = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf, "huge": 1e30, "spike": -100.0}


@st.composite
def gradients(draw: st.DrawFn) -> dict[str, Any]:
    """Gradients of STEPS steps, stacked: values in (-1, 1) with faults over stretches of steps, in any element."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    stacked = {name: np.asarray(rng.uniform(-1, 1, (STEPS, *shape)), np.float32) for name, shape in SHAPES.items()}
    fault = st.tuples(
        st.integers(0, STEPS - 1),
        st.integers(1, 5),
        st.sampled_from("abc"),
        st.integers(0, 3),
        st.sampled_from([*FAULTS]),
    )
    for start, length, name, element, kind in draw(st.lists(fault, max_size=8)):
        leaf = stacked[name].reshape(STEPS, -1)
        leaf[start : start + length, element % leaf.shape[1]] = FAULTS[kind]
    return stacked


@functools.cache
def compiled(nesting: str, lib: Lib) -> Any:
    """The readings of all steps, uint32[STEPS, words], from a fresh optimizer: one scan, compiled once."""
    tx, _ = NESTINGS[nesting](lib)
    tx = instrument(tx)

    @jax.jit
    def run(stacked: Any) -> jax.Array:
        params: Any = {name: jnp.ones(shape) for name, shape in SHAPES.items()}
        if "lookahead" in nesting:
            params = optax.LookaheadParams.init_synced(params)

        def step(carry: Any, gradients: Any) -> Any:
            params, state = carry
            updates, state = tx.update(gradients, state, params)
            return (optax.apply_updates(params, updates), state), reading(state)

        _, words = jax.lax.scan(step, (params, tx.init(params)), stacked)
        return jnp.asarray(words)

    return run


OPTAX = [
    nesting
    for nesting in NESTINGS
    if not nesting.startswith(("bare", "lookahead", "guard around window skipping", "guard that never gives up"))
    and "skip_if" not in nesting
]


@pytest.mark.thin(5)
@pytest.mark.parametrize(
    ("lib", "nesting"),
    [*((Lib(optwrap), nesting) for nesting in NESTINGS), *((Lib(optax), nesting) for nesting in OPTAX)],
    ids=lambda of: of.wrappers.__name__ if isinstance(of, Lib) else of,
)
@settings(max_examples=15, deadline=None)
@given(stacked=gradients())
def test_readings_equal_the_simulation(lib: Lib, nesting: str, stacked: dict[str, Any]) -> None:
    run = compiled(nesting, lib)
    words = np.asarray(run(stacked))
    _, simulated = NESTINGS[nesting](lib)
    with np.errstate(all="ignore"):
        steps = sim.simulate(simulated, [{name: leaf[i] for name, leaf in stacked.items()} for i in range(STEPS)])

    for number, (row, expected) in enumerate(zip(words, steps, strict=True), 1):
        got = unpack(row, LAYOUT)
        gauges = dict(got.gauges)
        np.testing.assert_allclose(gauges.pop("gradient_norm"), np.float32(expected.norm), rtol=1e-5)
        limits = [gauges.pop("gradient_norm_limit", None), expected.gauges.pop("gradient_norm_limit", None)]
        assert limits[0] == limits[1]
        assert (got.step, got.outcome, got.finite) == (number, expected.outcome, expected.finite)
        assert got.nonfinite_parameters == expected.nonfinite_parameters
        assert got.totals.outcomes == expected.outcomes
        assert got.totals.not_finite_steps == expected.not_finite_steps
        assert got.totals.parameters == expected.parameters
        assert gauges == expected.gauges
    assert run._cache_size() == 1
