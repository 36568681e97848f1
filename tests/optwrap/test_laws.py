"""Laws that every wrapper keeps, and every nesting of two: over the table in `transformations`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optwrap
from tests.optwrap.compilations import traces
from tests.optwrap.transformations import (
    FLOAT32,
    OPTAX_RAISES,
    OURS_PAIRS,
    OURS_SINGLES,
    PAIRS,
    SINGLES,
    TREES,
    WRAPPERS,
    Case,
    as_optax_has_it,
    assert_close,
    assert_same,
    assert_same_types,
    by_name,
    compiled,
    gradients,
    run,
    stepper,
)

pytestmark = pytest.mark.thin(3)

STEPS = 7

OPTAX_DIFFERS = {(name, "complex64") for name in WRAPPERS if name.startswith("multi_steps")} | {
    ("multi_steps_skip_not_finite", "empty"),
    ("flatten", "mixed"),
    ("flatten", "empty"),
}
"""Where optax loses something on finite values: see docs/reference/differences-from-optax.md."""

ONE_EACH = SINGLES[: len(WRAPPERS)] + [case for case in OURS_SINGLES if case.name in ("skip_if", "skip_spikes")]
EVERY_SINGLE = SINGLES + OURS_SINGLES
EVERY_PAIR = PAIRS + OURS_PAIRS


@pytest.mark.parametrize(
    ("case", "tree"),
    [(case, tree) for case in ONE_EACH for tree in TREES if (case.name, tree) not in OPTAX_DIFFERS]
    + [(case, "float32") for case in EVERY_SINGLE if case not in ONE_EACH],
    ids=lambda value: getattr(value, "name", value),
)
def test_finite_gradients_give_what_optax_gives(case: Case, tree: str) -> None:
    """Parameters, updates and states are optax's, bit for bit, in values, dtypes and structure."""
    batches = [gradients(TREES[tree], step) for step in range(STEPS)]
    ours, theirs = (run(case, library, TREES[tree], batches, "as users") for library in (optwrap, optax))
    for mine, other in zip(ours, theirs, strict=True):
        assert_same(as_optax_has_it(mine), other)


@by_name([case for case in EVERY_PAIR if case.name not in OPTAX_RAISES])
def test_finite_gradients_give_what_optax_gives_where_two_are_nested(case: Case) -> None:
    """The same for nestings of two."""
    batches = [gradients(FLOAT32, step) for step in range(STEPS)]
    ours, theirs = (run(case, library, FLOAT32, batches, "as users") for library in (optwrap, optax))
    for mine, other in zip(ours, theirs, strict=True):
        assert_same(as_optax_has_it(mine), other)


@pytest.mark.parametrize(
    ("case", "tree"),
    [(case, tree) for case in EVERY_SINGLE for tree in TREES] + [(case, "mixed") for case in EVERY_PAIR],
    ids=lambda value: getattr(value, "name", value),
)
def test_update_keeps_structure_shapes_and_dtypes(case: Case, tree: str) -> None:
    """The state and the parameters after a step are of the same types as before; the updates fit the parameters."""
    transformation, params = case.build(optwrap), case.params(TREES[tree])
    state = jax.eval_shape(transformation.init, params)
    after = jax.eval_shape(stepper(transformation), TREES[tree], state, params)
    assert_same_types(after.state, state)
    assert_same_types(after.updates, params)
    assert_same_types(after.params, params)


@by_name([case for case in ONE_EACH if case.name != "apply_if_finite"])  # that of optax raises
def test_gradients_wider_than_the_parameters_give_what_optax_gives(case: Case) -> None:
    """With float32 gradients of bfloat16 parameters MultiSteps casts the state back, the others let it widen."""
    tree = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), FLOAT32)
    batches = [gradients(FLOAT32, step) for step in range(4)]
    ours, theirs = (run(case, library, tree, batches, "as users")[-1] for library in (optwrap, optax))
    assert_same(as_optax_has_it(ours), theirs)


@by_name(EVERY_SINGLE + EVERY_PAIR)
def test_init_takes_shapes_for_parameters(case: Case) -> None:
    """`init` of `ShapeDtypeStruct`s, which hold no values, gives the types of `init` of arrays."""
    params = case.params(FLOAT32)
    transformation = case.build(optwrap, optax.adam(1e-3))
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    assert_same_types(transformation.init(shapes), transformation.init(params))


@by_name(ONE_EACH)
def test_jit_equals_eager(case: Case) -> None:
    """The same values without jit."""
    batches = [gradients(FLOAT32, step) for step in range(2)]
    params = case.params(FLOAT32)
    transformation = case.build(optwrap)
    state = transformation.init(params)
    for grads, expected in zip(batches, run(case, optwrap, FLOAT32, batches)[1:], strict=True):
        params, state, updates = stepper(transformation)(grads, state, params)
        assert_close((params, state, updates), tuple(expected))


@by_name(EVERY_SINGLE + EVERY_PAIR)
def test_one_trace_serves_every_step(case: Case) -> None:
    """The state after a step, taken or skipped, has the same types as before it."""
    run(case, optwrap, FLOAT32, [gradients(FLOAT32, step) for step in range(4)])
    init, step = compiled(case, optwrap)
    params = case.params(FLOAT32)
    before = traces(step)
    after = step(gradients(FLOAT32, 0), init(params), params)
    step(jax.tree.map(lambda leaf: leaf * np.float32(np.nan), gradients(FLOAT32, 1)), after.state, after.params)
    assert traces(step) == before


@by_name(EVERY_SINGLE + EVERY_PAIR)
def test_the_inner_transformation_is_traced_once(case: Case) -> None:
    """At any depth of nesting."""
    traced = 0

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        nonlocal traced
        traced += 1
        return momentum.update(updates, state, params)

    momentum = optax.sgd(0.1, momentum=0.9)
    transformation = case.build(optwrap, optax.GradientTransformation(momentum.init, update))
    params = case.params(FLOAT32)
    jax.eval_shape(transformation.update, FLOAT32, jax.eval_shape(transformation.init, params), params)
    assert traced == 1


@by_name(ONE_EACH)
def test_works_as_the_carry_of_a_scan(case: Case) -> None:
    """Steps in a `lax.scan` equal steps one after the other."""
    batches = [gradients(FLOAT32, step) for step in range(STEPS)]
    init, _ = compiled(case, optwrap)
    params = case.params(FLOAT32)
    step = stepper(case.build(optwrap))

    @jax.jit
    def scanned(params: Any, state: Any, batches: Any) -> Any:
        return jax.lax.scan(lambda carry, grads: (step(grads, carry[1], carry[0])[:2], None), (params, state), batches)

    (params, state), _ = scanned(params, init(params), jax.tree.map(lambda *leaves: np.stack(leaves), *batches))
    expected = run(case, optwrap, FLOAT32, batches)[-1]
    assert_close((params, state), (expected.params, expected.state))


@by_name(ONE_EACH)
def test_works_under_vmap(case: Case) -> None:
    """Two trainings in one vmap, one of them with NaN, are the two trainings."""
    fine = [gradients(FLOAT32, step) for step in range(4)]
    bad = [gradients(FLOAT32, 10 + step) for step in range(4)]
    bad[2]["layer"]["w"][1, 1] = np.nan
    init, _ = compiled(case, optwrap)
    params = case.params(FLOAT32)
    start = (params, init(params))
    params, state = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), start)
    step = jax.jit(jax.vmap(stepper(case.build(optwrap))))
    for both in zip(fine, bad, strict=True):
        params, state, _ = step(jax.tree.map(lambda *leaves: np.stack(leaves), *both), state, params)
    for i, batches in enumerate((fine, bad)):
        expected = run(case, optwrap, FLOAT32, batches)[-1]
        assert_close(jax.tree.map(lambda leaf, i=i: leaf[i], (params, state)), (expected.params, expected.state))


@by_name(EVERY_SINGLE + EVERY_PAIR)
def test_strict_dtype_promotion(case: Case, strict_dtypes: None) -> None:
    """No step widens a dtype silently."""
    del strict_dtypes
    transformation, params = case.build(optwrap), case.params(FLOAT32)
    state = jax.eval_shape(transformation.init, params)
    _, after = jax.eval_shape(transformation.update, FLOAT32, state, params)
    assert [leaf.dtype for leaf in jax.tree.leaves(after)] == [leaf.dtype for leaf in jax.tree.leaves(state)]


@by_name([case for case in EVERY_SINGLE if case.name != "flatten"])  # optax.flatten raises
def test_map_params_maps_what_has_the_parameters_shape(case: Case) -> None:
    """`optax.tree.map_params` finds the same copies of the parameters in the state as in optax's."""
    params = case.params(FLOAT32)

    def marked(library: Any) -> Any:
        transformation = case.build(library)
        state = jax.eval_shape(transformation.init, params)
        return optax.tree.map_params(transformation, lambda _: "param", state, transform_non_params=lambda _: "other")

    assert as_optax_has_it(marked(optwrap)) == marked(optax)


@by_name(EVERY_SINGLE)
def test_composes_in_chain_with_extra_args(case: Case) -> None:
    """Inside `optax.chain`, with an inner transformation that needs an extra arg."""
    seen = []

    def update(updates: Any, state: Any, params: Any = None, *, loss: Any, **extra: Any) -> Any:
        del params, extra
        seen.append(loss)
        return updates, state

    inner = optax.GradientTransformationExtraArgs(optax.identity().init, update)
    # After lookahead nothing may change the updates, so it is last.
    transformation = optax.chain(optax.clip(1.0), case.build(optwrap, inner))
    params = case.params(FLOAT32)
    state = jax.eval_shape(transformation.init, params)
    after = jax.eval_shape(
        lambda state, loss: transformation.update(FLOAT32, state, params, loss=loss, unknown=1), state, jnp.float32(0)
    )
    assert_same_types(after[1], state)
    assert len(seen) == 1


@by_name([case for case in ONE_EACH if not case.pairs])
def test_composes_in_multi_transform(case: Case) -> None:
    """As one of the transformations of `optax.partition`, it updates its own parameters as optax's does."""
    labels = {"layer": "wrapped", "b": "plain"}
    results = []
    for library in (optwrap, optax):
        transformation = optax.partition({"wrapped": case.build(library), "plain": optax.sgd(0.5)}, labels)
        state = transformation.init(FLOAT32)
        step = jax.jit(stepper(transformation))
        params = FLOAT32
        for i in range(4):
            params, state, _ = step(gradients(FLOAT32, i), state, params)
        results.append((params, as_optax_has_it(state)))
    assert_same(*results)


def test_a_state_of_either_library_continues_under_the_other() -> None:
    """A training goes from optax's wrappers to ours and back."""
    case = Case("apply_if_finite-multi_steps", next(c.wraps for c in PAIRS if c.name == "apply_if_finite-multi_steps"))
    batches = [gradients(FLOAT32, step) for step in range(6)]
    expected = run(case, optax, FLOAT32, batches, "as users")[-1]
    params, state = FLOAT32, compiled(case, optax, "as users")[0](FLOAT32)
    for i, grads in enumerate(batches):
        params, state, _ = compiled(case, (optax, optwrap)[i % 2], "as users")[1](grads, state, params)
    assert_same((params, state), (expected.params, expected.state))


@pytest.mark.parametrize(
    "make",
    [
        lambda library, inner, limit: library.apply_if_finite(inner, limit),
        lambda library, inner, limit: library.MultiSteps(inner, lambda _: limit).gradient_transformation(),
    ],
    ids=["apply_if_finite", "multi_steps"],
)
def test_works_under_inject_hyperparams(make: Any) -> None:
    """Limits may be traced, and so may what the inner transformation closes over."""
    results = []
    for library in (optwrap, optax):

        def factory(learning_rate: Any, limit: Any, library: Any = library) -> Any:
            return make(library, optax.sgd(learning_rate), limit)

        injected = optax.inject_hyperparams(factory, static_args="library")
        transformation = injected(learning_rate=optax.linear_schedule(0.1, 0.2, 5), limit=2)
        state = transformation.init(FLOAT32)
        step = jax.jit(stepper(transformation))
        params = FLOAT32
        for i in range(5):
            params, state, _ = step(gradients(FLOAT32, i), state, params)
        results.append((params, state))
    assert_same(*results)
