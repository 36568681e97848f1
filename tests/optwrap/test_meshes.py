"""Sharded arrays under plain jit: the compiled program has no unnecessary collectives."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optwrap
from tests.optwrap.compilations import compilations
from tests.optwrap.hlo import collectives
from tests.optwrap.transformations import PAIRS, SINGLES, WRAPPERS, Case, assert_close, stepper

SHAPES = {"matrix": (16, 4), "columns": (2, 8), "vector": (8,), "whole": (3,), "scalar": ()}
MESHES = {
    f"{''.join(names)} {kind.name}": (shape, names, kind)
    for shape, names in (((8,), ("x",)), ((4, 2), ("x", "y")))
    for kind in (AxisType.Auto, AxisType.Explicit)
}
STAYING = [case for case in SINGLES if case.name in WRAPPERS and case.name != "flatten"]
NESTED = [
    case
    for case in PAIRS
    if case.wraps[0] in (WRAPPERS["apply_if_finite"], WRAPPERS["multi_steps_skip_not_finite"])
    and case.wraps[1] is not WRAPPERS["flatten"]
]
FLATTEN = next(case for case in SINGLES if case.name == "flatten")
FLATTEN_INSTRUMENTED = optwrap.instrument(FLATTEN.build(optwrap))
FORMS = {
    # Whether by apply_gradients, whether instrumented, mesh. A mesh in a row has fewer ways of lying.
    "update, x Auto": (False, False, "x Auto"),
    "update, xy Explicit": (False, False, "xy Explicit"),
    "update, instrumented, xy Auto": (False, True, "xy Auto"),
    "update, instrumented, xy Explicit": (False, True, "xy Explicit"),
    "apply, xy Explicit": (True, False, "xy Explicit"),
    "apply, instrumented, xy Auto": (True, True, "xy Auto"),
    "apply, instrumented, xy Explicit": (True, True, "xy Explicit"),
}
PROGRAMS = [(case, form) for case in STAYING for form in FORMS] + [
    (case, list(FORMS)[3 + 3 * (number % 2)]) for number, case in enumerate(NESTED)
]
"""Without flatten: that gathers, and says so."""


@contextlib.contextmanager
def on(name: str) -> Iterator[jax.sharding.Mesh]:
    """Eight devices, in a row or in a rectangle, with and without shardings in types."""
    shape, names, kind = MESHES[name]
    mesh = jax.make_mesh(shape, names, axis_types=(kind,) * len(names))
    with jax.set_mesh(mesh):
        yield mesh


def on_the_mesh(mesh: jax.sharding.Mesh, value: float = 1.0) -> Any:
    """Parameters sharded over every axis, over one axis, and replicated."""
    first, last = mesh.axis_names[0], mesh.axis_names[-1]
    specs = {
        "matrix": P(first, last if last != first else None),
        "columns": P(None, last),
        "vector": P(last),
        "whole": P(None),
        "scalar": P(),
    }
    return {
        name: jax.device_put(np.full(shape, value, np.float32), NamedSharding(mesh, specs[name]))
        for name, shape in SHAPES.items()
    }


def built(case: Case, instrumented: bool, applied: bool = False) -> tuple[Any, Any]:
    """The transformation, and one step of it, in two calls or one, that gives (parameters, state, reading)."""
    transformation = case.build(optwrap)
    if instrumented:
        transformation = optwrap.instrument(transformation)

    def step(grads: Any, state: Any, params: Any) -> Any:
        if applied:
            params, state = optwrap.apply_gradients(transformation, grads, state, params)
        else:
            params, state, _ = stepper(transformation)(grads, state, params)
        return params, state, optwrap.reading(state) if instrumented else None

    return transformation, step


@pytest.mark.thin(3)
@pytest.mark.parametrize(
    ("case", "form"), PROGRAMS, ids=[f"{case.name}-{form.replace(', ', '-')}" for case, form in PROGRAMS]
)
def test_a_step_sends_only_scalars_between_devices(case: Case, form: str) -> None:
    """No gradient, parameter or moment leaves its device: in most steps one round of a norm per leaf is all that does.

    Counts of each parameter's bad values are in branches: outside of them there are the norms and nothing else.
    """
    applied, instrumented, where = FORMS[form]
    transformation, step = built(case, instrumented, applied)
    with on(where) as mesh:
        tree = on_the_mesh(mesh)
        params = case.params(tree)
        state = transformation.init(params)
        program = jax.jit(step).lower(tree, state, params).compile()
        new_params, new_state, words = program(tree, state, params)

    found = collectives(program)
    assert {collective.kind for collective in found} <= {"all-reduce"}
    assert all(collective.values <= len(tree) for collective in found)
    # One for each set of axes that a leaf may lie along, whoever asks, and however many.
    assert sum(not collective.in_branch for collective in found) <= len(mesh.axis_names)
    if not instrumented and not any(name in case.name for name in ("apply_if_finite", "skip")):
        assert not found

    for after, before in zip(jax.tree.leaves((new_params, new_state)), jax.tree.leaves((params, state)), strict=True):
        if isinstance(before.sharding, NamedSharding):
            assert after.sharding.is_equivalent_to(before.sharding, after.ndim)
        else:  # made by init, on one device
            assert after.sharding.is_fully_replicated
    assert words is None or words.sharding.is_fully_replicated


@pytest.mark.parametrize("where", MESHES)
def test_flatten_keeps_shardings(where: str) -> None:
    """`flatten` gathers, as documented; the values equal those on one device."""
    _, step = built(FLATTEN, True)
    with on(where) as mesh:
        params = on_the_mesh(mesh)
        state = FLATTEN_INSTRUMENTED.init(params)
        grads = on_the_mesh(mesh, 0.5)
        new_params, _, _ = jax.jit(step)(grads, state, params)
    if "Explicit" in where:
        for name, leaf in new_params.items():
            assert leaf.sharding.is_equivalent_to(params[name].sharding, leaf.ndim)
    alone, _ = stepper(FLATTEN.build(optwrap))(
        *(jax.tree.map(np.asarray, tree) for tree in (grads, jax.tree.map(np.asarray, state.inner_state), params))
    )[:2]
    assert_close(jax.tree.map(np.asarray, new_params), jax.tree.map(np.asarray, alone))


@pytest.mark.parametrize(
    ("where", "how"),
    [
        *((where, how) for where in ("x Explicit", "xy Explicit") for how in ("eager", "jit", "placed")),
        ("xy Auto", "eager"),  # what a jitted init makes lies there as the compiler likes, with bare optax too
    ],
)
def test_an_instrumented_step_is_compiled_once(where: str, how: str) -> None:
    """However the state was made, on Auto and Explicit meshes: a step's state has the types of `init`."""
    case = next(case for case in PAIRS if case.name == "multi_steps_skip_not_finite-apply_if_finite")
    transformation, step = built(case, True)
    traces = 0

    def traced(*args: Any) -> Any:
        nonlocal traces
        traces += 1
        return step(*args)

    with on(where) as mesh:
        grads = params = on_the_mesh(mesh)
        state = (jax.jit(transformation.init) if how == "jit" else transformation.init)(params)
        if how == "placed":  # as what restores a checkpoint may do
            everywhere = NamedSharding(mesh, P())
            state = jax.tree.map(lambda leaf: leaf if leaf.ndim > 1 else jax.device_put(leaf, everywhere), state)
            params = grads = jax.tree.map(
                lambda leaf: leaf if leaf.ndim > 1 else jax.device_put(leaf, everywhere), params
            )
        jax.block_until_ready(state)
        jitted = jax.jit(traced)
        with compilations() as compiled:
            for _ in range(4):
                params, state, words = jitted(grads, state, params)
            jax.block_until_ready(words)
    assert (traces, len(compiled)) == (1, 1)


@pytest.mark.parametrize("asked", [0, 1, 3])
def test_collectives_finds_those_of_a_program(asked: int) -> None:
    """None, a sum, and a sum and a gather in a branch."""
    with on("x Auto") as mesh:
        array = jax.device_put(np.ones((16, 4), np.float32), NamedSharding(mesh, P("x")))

        def of(x: Any) -> Any:
            y = x * 2
            total = x.sum(0) if asked else 0
            if asked == 3:
                y = jax.lax.cond(x.max() > 3, lambda x: jax.lax.sort(x, dimension=0), lambda x: x, y)
            return y, total

        found = collectives(jax.jit(of, out_shardings=None).lower(array).compile())
    always = [collective for collective in found if not collective.in_branch]
    inside = {collective.kind for collective in found if collective.in_branch}
    assert sum(collective.values for collective in always) == [0, 4, 0, 5][asked]
    assert {collective.kind for collective in always} <= {"all-reduce"}
    assert bool(inside & {"all-gather", "all-to-all", "collective-permute"}) is (asked == 3)
