"""One table of what the library offers, and of the trees it must work on; the laws in the tests run over both.

A transformation is built from a library: `build(optwrap)` and `build(optax)` are the same one twice.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optwrap
from tests.compiling import AS_USERS, FUSION_EMITTERS

Tree = Any
Library = Any
Build = Callable[[Library], optax.GradientTransformationExtraArgs]
Wrap = Callable[[Library, Any], optax.GradientTransformationExtraArgs]


def not_vectors(tree: Tree) -> Tree:
    """A mask: vectors are left out, as biases often are."""
    return jax.tree.map(lambda leaf: jnp.ndim(leaf) != 1, tree)


def skip_function(library: Library, skip: str, max_squared_norm: float = 15.0) -> Any:
    """The skip function of a library, by its name. Some norms of `gradients` exceed the limit, none exceeds 1e6."""
    if skip == "large":
        return functools.partial(library.skip_large_updates, max_squared_norm=max_squared_norm)
    return library.skip_not_finite


def multi_steps(library: Library, inner: Any, *args: Any, skip: str | None = None, **kwargs: Any) -> Any:
    """MultiSteps of a library, with the skip function of that library."""
    if skip is not None:
        kwargs["should_skip_update_fn"] = skip_function(library, skip)
    return library.MultiSteps(inner, *args, **kwargs).gradient_transformation()


UNOPTIMIZED: dict[str, str | bool | int] = {
    "xla_backend_optimization_level": "0",
    "xla_llvm_disable_expensive_passes": True,
    **FUSION_EMITTERS,
}
"""Compiler options for programs without the contractions that differ from program to program; but for those of
float16, which LLVM still contracts."""

COMPILING: dict[str, Any] = {"quickly": None, "as users": AS_USERS, "unoptimized": UNOPTIMIZED}
"""Compiler options by how a program is compiled; None leaves them to the process, see `tests.compiling`."""


WRAPPERS: dict[str, Wrap] = {
    "apply_if_finite": lambda library, inner: library.apply_if_finite(inner, 1000),
    "multi_steps": lambda library, inner: multi_steps(library, inner, 2),
    "multi_steps_skip_not_finite": lambda library, inner: multi_steps(library, inner, 2, skip="not_finite"),
    "masked": lambda library, inner: library.masked(inner, not_vectors),
    "flatten": lambda library, inner: library.flatten(inner),
    "lookahead": lambda library, inner: library.lookahead(inner, 3, 0.5),
}
"""What is nested in pairs."""

MORE: dict[str, Wrap] = {
    "multi_steps_skip_large": lambda library, inner: multi_steps(library, inner, 2, skip="large"),
    "apply_if_finite_none": lambda library, inner: library.apply_if_finite(inner, 0),
    "multi_steps_of_one": lambda library, inner: multi_steps(library, inner, 1),
    "multi_steps_sum": lambda library, inner: multi_steps(library, inner, 3, use_grad_mean=False),
    "multi_steps_schedule": lambda library, inner: multi_steps(library, inner, lambda step: jnp.minimum(step + 1, 3)),
    "multi_steps_bfloat16": lambda library, inner: multi_steps(library, inner, 3, accumulator_dtype=jnp.bfloat16),
    "masked_out": lambda library, inner: library.masked(inner, False),
    "lookahead_reset": lambda library, inner: library.lookahead(inner, 2, 0.25, reset_state=True),
}
"""Further ways of using each."""


GUARDS = (
    "apply_if_finite",
    "multi_steps_skip_not_finite",
    "multi_steps_skip_large",
    "skip_if",
    "skip_if_large",
    "skip_spikes",
)
"""What leaves out gradients that are not finite."""

OURS: dict[str, Wrap] = {
    "skip_if": lambda library, inner: skip_if(library, inner, "not_finite"),
    "skip_if_large": lambda library, inner: skip_if(library, inner, "large"),
    "skip_spikes": lambda library, inner: inner if library is optax else library.skip_spikes(inner, min_ratio=1e6),
}
"""What optax has no counterpart of."""


def skip_if(library: Library, inner: Any, skip: str) -> Any:
    """skip_if of optwrap; for optax the inner transformation alone, which it is like where nothing is skipped."""
    return inner if library is optax else library.skip_if(inner, skip_function(library, skip, 1e6))


def as_optax_has_it(tree: Tree) -> Tree:
    """The tree with each state of skip_if and skip_spikes replaced by its inner state."""

    def is_ours(node: Any) -> bool:
        return isinstance(node, optwrap.SkipIfState | optwrap.SkipSpikesState)

    def inner(node: Any) -> Any:
        return as_optax_has_it(node.inner_state) if is_ours(node) else node

    return jax.tree.map(inner, tree, is_leaf=is_ours)


def momentum() -> optax.GradientTransformationExtraArgs:
    """A small optimizer with a state, whose dtypes follow the parameters', strict promotion included."""
    return optax.sgd(0.125, momentum=0.75)


@dataclasses.dataclass(frozen=True)
class Case:
    """A wrapper, or two, around an optimizer."""

    name: str
    wraps: tuple[Wrap, ...]

    def build(self, library: Library, inner: Any = None) -> optax.GradientTransformationExtraArgs:
        """The transformation, made with that library's wrappers."""
        transformation = momentum() if inner is None else inner
        for wrap in reversed(self.wraps):
            transformation = wrap(library, transformation)
        return transformation

    @property
    def pairs(self) -> bool:
        """Whether the parameters are a pair, fast and slow."""
        return "lookahead" in self.name

    @property
    def guarded(self) -> bool:
        """Whether there is a guard in the nest."""
        return any(guard in self.name.split("-") for guard in GUARDS)

    @property
    def rejects_outermost(self) -> bool:
        """Whether the guard sees every call, so that a rejected call changes nothing at all."""
        return self.name.removeprefix("flatten-").partition("-")[0] in GUARDS

    def params(self, tree: Tree) -> Tree:
        """The parameters this transformation is given."""
        return optax.LookaheadParams.init_synced(tree) if self.pairs else tree


SINGLES = [Case(name, (wrap,)) for name, wrap in (WRAPPERS | MORE).items()]
PAIRS = [
    Case(f"{outer}-{inner}", (WRAPPERS[outer], WRAPPERS[inner]))
    for outer in WRAPPERS
    for inner in WRAPPERS
    # masks choose among gradients' leaves, and a pair of parameters has other leaves: put masked inside
    if (outer, inner) not in {("masked", "lookahead"), ("lookahead", "lookahead")}
]
OURS_SINGLES = [Case(name, (wrap,)) for name, wrap in OURS.items()]
OURS_PAIRS = [
    Case(f"{outer}-{inner}", tuple((WRAPPERS | OURS)[name] for name in (outer, inner)))
    for outer, inner in [
        *(("skip_if", name) for name in [*WRAPPERS, "skip_if_large"]),
        *((name, "skip_if") for name in WRAPPERS),
        *(("skip_spikes", name) for name in ("multi_steps", "lookahead")),
        *((name, "skip_spikes") for name in ("apply_if_finite", "multi_steps")),
    ]
]


def by_name(cases: list[Case]) -> Any:
    """Runs a test for each of these cases."""
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


OPTAX_RAISES = {"apply_if_finite-lookahead", "flatten-lookahead"} | {
    f"{name}-lookahead" for name in WRAPPERS if name.startswith("multi_steps")
}
"""Nestings that optax cannot do even with finite gradients."""


def tree_of(dtype: Any) -> Tree:
    """A nested tree with a matrix and a vector."""
    values = np.linspace(-1.0, 1.0, 9)
    if np.issubdtype(dtype, np.complexfloating):
        values = values + 0.5j * values[::-1]
    return {"layer": {"w": jnp.asarray(values[:6].reshape(2, 3), dtype)}, "b": jnp.asarray(values[6:], dtype)}


FLOAT32 = tree_of(jnp.float32)
TREES: dict[str, Tree] = {
    "float32": FLOAT32,
    "complex64": tree_of(jnp.complex64),
    "mixed": {
        "float32": FLOAT32["b"],
        "bfloat16": tree_of(jnp.bfloat16),
        "float16": (tree_of(jnp.float16)["b"], None),
        "no_values": jnp.zeros((0, 3), jnp.float32),
        "none": None,
    },
    "scalar": jnp.float32(0.5),
    "empty": {},
}


def gradients(tree: Tree, step: int) -> Tree:
    """Finite gradients for a step; different ones for each, and exact neither in binary nor under a mean."""
    rng = np.random.default_rng(step)

    def draw(leaf: jax.Array) -> np.ndarray[Any, Any]:
        values = rng.normal(size=leaf.shape)
        if np.issubdtype(leaf.dtype, np.complexfloating):
            values = values + 1j * rng.normal(size=leaf.shape)
        return np.asarray(values).astype(leaf.dtype)

    return jax.tree.map(draw, tree)


class After(NamedTuple):
    """Parameters, state and updates after a step."""

    params: Tree
    state: Tree
    updates: Tree


def stepper(transformation: Any) -> Callable[[Tree, Tree, Tree], After]:
    """One step of training: update and apply."""

    def step(grads: Tree, state: Tree, params: Tree) -> After:
        updates, state = transformation.update(grads, state, params)
        return After(optax.apply_updates(params, updates), state, updates)

    return step


Compiled = tuple[Callable[[Tree], Tree], Callable[[Tree, Tree, Tree], After]]


def compiled(case: Case, library: Library, how: str = "quickly") -> Compiled:
    """The jitted init and step of a case, which jit compiles once per types of the tree; `how` is of `COMPILING`."""
    return _compiled(case, library, how)


@functools.cache  # which tells an argument that is left out from one that has its default
def _compiled(case: Case, library: Library, how: str) -> Compiled:
    transformation = case.build(library)
    return jax.jit(transformation.init), jax.jit(stepper(transformation), compiler_options=COMPILING[how])


def run(case: Case, library: Library, tree: Tree, batches: list[Tree], how: str = "quickly") -> list[After]:
    """The initial parameters and state, and those after every batch."""
    init, step = compiled(case, library, how)
    params = case.params(tree)
    trail = [After(params, init(params), None)]
    for grads in batches:
        trail.append(step(grads, trail[-1].state, trail[-1].params))
    return trail


def structure(tree: Tree) -> Any:
    """The tree without its leaves. JAX's own function has no type that can be compared."""
    return jax.tree.structure(tree)


def assert_same(actual: Tree, expected: Tree) -> None:
    """Same structure, dtypes, shapes and values, bit for bit but for the sign of zeros."""
    assert structure(actual) == structure(expected)
    for (path, a), e in zip(jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        where = jax.tree_util.keystr(path)
        assert a.dtype == e.dtype, where
        np.testing.assert_array_equal(_readable(a), _readable(e), err_msg=where)


def _readable(leaf: Any) -> np.ndarray[Any, Any]:
    """A leaf as numpy takes it; of a PRNG key its words."""
    return np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)


def assert_same_types(actual: Tree, expected: Tree) -> None:
    """Same structure, dtypes and shapes."""
    assert structure(actual) == structure(expected)
    for (path, a), e in zip(jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        assert (a.dtype, a.shape) == (e.dtype, e.shape), jax.tree_util.keystr(path)


def assert_close(actual: Tree, expected: Tree) -> None:
    """The same but for float32 rounding: XLA contracts multiplications and additions as each program allows."""
    assert_same_types(actual, expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-6)
