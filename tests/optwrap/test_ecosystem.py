"""The wrappers with flax, Equinox and optax's own tools: the same bits as optax's, instrumented alike."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import optwrap
from tests.optwrap.transformations import (
    FLOAT32,
    OPTAX_RAISES,
    PAIRS,
    SINGLES,
    UNOPTIMIZED,
    WRAPPERS,
    Case,
    assert_same,
    by_name,
    gradients,
    momentum,
    run,
)

pytestmark = pytest.mark.thin(5)

Tree = Any
Make = Callable[[Any], Any]
"""Makes a transformation from an optimizer."""
Train = Callable[[Case, Any], tuple[Tree, Tree]]
"""Trains a little, and gives the parameters and the optimizer's state."""

STEPS = 5
X = jnp.linspace(-1.0, 1.0, 12).reshape(4, 3)
ONE_EACH = SINGLES[: len(WRAPPERS)]
FIELDS = (
    *("notfinite_count", "last_finite", "total_notfinite", "inner_state"),
    *("mini_step", "gradient_step", "acc_grads", "skip_state", "inner_opt_state", "should_skip"),
    *("fast_state", "steps_since_sync", "trace", "learning_rate"),
)
"""Of the wrappers' states, and of what they wrap."""


def distance(outputs: jax.Array) -> jax.Array:
    """A loss."""
    return jnp.mean(jnp.square(outputs - 0.5))


def with_train_state(case: Case, tx: Any) -> tuple[Tree, Tree]:
    """A `TrainState` of flax, around two plain arrays."""
    start = {"w": jnp.linspace(-0.5, 0.5, 6).reshape(3, 2), "b": jnp.zeros(2)}
    state = TrainState.create(
        apply_fn=lambda params: X @ params["w"] + params["b"][None], params=case.params(start), tx=tx
    )

    def step(state: Any) -> Any:
        grads = jax.grad(lambda params: distance(state.apply_fn(params)))(
            state.params.fast if case.pairs else state.params
        )
        return state.apply_gradients(grads=grads)

    step = jax.jit(step, compiler_options=UNOPTIMIZED)
    for _ in range(STEPS):
        state = step(state)
    assert int(state.step) == STEPS
    return state.params, state.opt_state


class Network(nnx.Module):
    """Two layers."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(3, 4, rngs=rngs)
        self.second = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.second(nnx.relu(self.first(x)))


def with_nnx(case: Case, tx: Any) -> tuple[Tree, Tree]:
    """`flax.nnx.Optimizer`."""
    del case
    model = Network(nnx.Rngs(0))
    graph, state = nnx.split((model, nnx.Optimizer(model, tx, wrt=nnx.Param)))

    def step(state: Any) -> Any:
        model, optimizer = nnx.merge(graph, state)
        optimizer.update(model, nnx.grad(lambda model: distance(model(X)))(model))
        return nnx.state((model, optimizer))

    step = jax.jit(step, compiler_options=UNOPTIMIZED)
    for _ in range(STEPS):
        state = step(state)
    model, optimizer = nnx.merge(graph, state)
    return nnx.to_pure_dict(nnx.state(model, nnx.Param)), nnx.as_pure(optimizer.opt_state)


def with_equinox(case: Case, tx: Any) -> tuple[Tree, Tree]:
    """An Equinox model: a tree that can be called, with None where a leaf is no parameter."""
    model = eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0))
    trained, static = eqx.partition(model, eqx.is_inexact_array)
    params = case.params(trained)
    state = tx.init(params)

    def step(params: Tree, state: Tree) -> tuple[Tree, Tree]:
        model = eqx.combine(params.fast if case.pairs else params, static)
        grads = eqx.filter_grad(lambda model: distance(jax.vmap(model)(X)))(model)
        updates, state = tx.update(grads, state, params)
        return eqx.apply_updates(params, updates), state

    step = jax.jit(step, compiler_options=UNOPTIMIZED)
    for _ in range(STEPS):
        params, state = step(params, state)
    return params, state


@pytest.mark.parametrize("train", [with_train_state, with_nnx, with_equinox])
@by_name(ONE_EACH)
def test_models_of_other_libraries_train_as_with_optax(case: Case, train: Train) -> None:
    """Bit for bit, and the instrumentation is found in the state and has counted every step."""
    if (train, case.name) == (with_nnx, "lookahead"):
        pytest.skip("nnx.Optimizer has the parameters of one model, and no pair, with either library")
    expected = train(case, case.build(optax))
    assert_same(train(case, case.build(optwrap)), expected)
    params, state = train(case, optwrap.instrument(case.build(optwrap)))
    assert_same((params, state.inner_state), expected)
    assert optwrap.unpack(np.asarray(optwrap.reading(state))).step == STEPS
    assert optwrap.reading(state).dtype == jnp.uint32


def test_nnx_has_no_pair_for_lookahead() -> None:
    """Optax has the same limitation."""
    for library in (optax, optwrap):
        with pytest.raises((TypeError, AttributeError)):
            with_nnx(Case("lookahead", ()), library.lookahead(momentum(), 2, 0.5))


@by_name([case for case in SINGLES + PAIRS if case.name not in OPTAX_RAISES])
def test_the_fields_of_the_state_are_found_by_their_names(case: Case) -> None:
    """`optax.tree.get_all_with_path` finds the same fields in the same places, inside an instrumentation, too."""
    batches = [gradients(FLOAT32, step) for step in range(3)]
    ours, theirs = (run(case, library, FLOAT32, batches)[-1].state for library in (optwrap, optax))
    around = jax.eval_shape(optwrap.instrument(case.build(optwrap)).init, case.params(FLOAT32))
    for field in FIELDS:
        mine, other = (optax.tree.get_all_with_path(state, field) for state in (ours, theirs))
        assert [path for path, _ in mine] == [path for path, _ in other]
        assert_same([value for _, value in mine], [value for _, value in other])
        assert {path for path, _ in mine} <= {path[1:] for path, _ in optax.tree.get_all_with_path(around, field)}


@by_name([case for case in SINGLES if case.name != "flatten"])
def test_map_params_looks_through_the_instrumentation(case: Case) -> None:
    """It finds the same copies of the parameters as in optax's state, and no counter."""
    params = case.params(FLOAT32)

    def marked(tx: Any) -> Tree:
        state = jax.eval_shape(tx.init, params)
        return optax.tree.map_params(tx, lambda _: "param", state, transform_non_params=lambda _: "other")

    around = marked(optwrap.instrument(case.build(optwrap)))
    assert around.inner_state == marked(case.build(optax))
    assert set(jax.tree.leaves(around.counters)) == {"other"}


LABELS = {"layer": "wrapped", "b": "plain"}
COMPOSITIONS: dict[str, tuple[Make, Make]] = {
    "chain": (lambda tx: optax.chain(optax.clip(0.5), tx), lambda tx: tx),
    "multi_transform": (
        lambda tx: optax.multi_transform({"wrapped": tx, "plain": optax.sgd(0.5)}, LABELS),
        lambda tx: tx,
    ),
    "hyperparams_inside": (
        lambda tx: tx,
        lambda tx: optax.chain(tx, optax.inject_hyperparams(optax.scale_by_learning_rate)(0.25)),
    ),
    "schedule_inside": (
        lambda tx: tx,
        lambda tx: optax.chain(tx, optax.inject_hyperparams(optax.scale)(optax.linear_schedule(1.0, 0.5, 3))),
    ),
}
"""What is put around a wrapper, and what around the optimizer inside it."""


@by_name(ONE_EACH)
@pytest.mark.parametrize("composition", COMPOSITIONS)
def test_compositions_train_as_with_optax(composition: str, case: Case) -> None:
    """In `chain` and `multi_transform`, and around `inject_hyperparams`, instrumented from outside."""
    if (composition, case.name) == ("multi_transform", "lookahead"):
        pytest.skip(
            "partitions choose among gradients' leaves, and a pair has others: with either library put it outside"
        )
    outside, inside = COMPOSITIONS[composition]

    def trained(library: Any) -> tuple[Tree, Tree]:
        tx = outside(case.build(library, inside(momentum())))
        if library is optwrap:
            tx = optwrap.instrument(tx)
        params = case.params(FLOAT32)

        def step(grads: Tree, state: Tree, params: Tree) -> tuple[Tree, Tree]:
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        state = jax.jit(tx.init)(params)
        step = jax.jit(step, compiler_options=UNOPTIMIZED)
        for i in range(STEPS):
            if composition == "hyperparams_inside" and i == 2:
                state = optax.tree.set(state, learning_rate=jnp.float32(0.125))
            params, state = step(gradients(FLOAT32, i), state, params)
        return params, state

    params, state = trained(optwrap)
    assert_same((params, state.inner_state), trained(optax))
    assert optwrap.unpack(np.asarray(optwrap.reading(state))).step == STEPS
