"""A rejected gradient changes nothing: searched over nestings, positions and values, including overflow.

Two forms. What stood in it does not matter: with other values in its place everything is the same, bit for bit. And it
might as well never have come: parameters and inner state are those of the training without it.
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import optwrap
from optwrap._core.declarations import walk
from tests.optwrap.faults import LARGEST, STEPS, VALUES_NOT_FINITE, batches_with, faults_of, is_finite
from tests.optwrap.transformations import (
    FLOAT32,
    GUARDS,
    OURS,
    WRAPPERS,
    After,
    Case,
    Wrap,
    assert_same,
    multi_steps,
    run,
    tree_of,
)

pytestmark = pytest.mark.thin(5)

Tree = Any

WRAPS: dict[str, Wrap] = {
    **WRAPPERS,
    **OURS,
    "multi_steps_skip_large": lambda library, inner: multi_steps(library, inner, 2, skip="large"),
    "multi_steps_sum": lambda library, inner: multi_steps(library, inner, 2, use_grad_mean=False),
    "multi_steps_float16": lambda library, inner: multi_steps(
        library, inner, 2, use_grad_mean=False, accumulator_dtype=jnp.float16
    ),
}
WINDOWS = ("multi_steps", "multi_steps_sum", "multi_steps_float16")
"""Windows without a skip function: what is not finite goes into the mean or sum, and a guard inside rejects the window.
Finite gradients may overflow there, too: in the sum, or in the mean's difference."""
STATES = (optwrap.ApplyIfFiniteState, optwrap.SkipIfState, optwrap.SkipSpikesState, optwrap.MultiStepsState)
LIMITS = {"multi_steps_skip_large": 15.0, "skip_if_large": 1e6, "skip_spikes": np.inf}
"""Of the guards that look at the squared norm."""
TREES = {"float32": (FLOAT32, LARGEST[np.float32]), "float16": (tree_of(jnp.float16), LARGEST[np.float16])}


def nest(*names: str) -> Case:
    return Case("-".join(names), tuple(WRAPS[name] for name in names))


PAIRS = [
    nest(outer, inner)
    for outer, inner in itertools.product((*WINDOWS, *GUARDS, "lookahead"), (*WINDOWS, *GUARDS, "lookahead"))
    if {outer, inner} & {*GUARDS} and (outer, inner) != ("lookahead", "lookahead")
]
"""Every nesting of two with a guard in it, but for those of masked and flatten."""
TRIPLES = [
    nest(*names)
    for pair in (case.name.split("-") for case in PAIRS)
    for names in ((around, *pair) for around in ("masked", "flatten"))
    # a mask chooses among gradients' leaves, and a pair of parameters has others
    if not ("masked" in names and "lookahead" in names)
] + [nest(*case.name.split("-"), inside) for case in PAIRS for inside in ("masked", "flatten")]
"""And with masked or flatten around and inside each."""
NESTS = [nest(guard) for guard in GUARDS] + PAIRS + TRIPLES

KEPT = 1
"""Of the leaves, the matrix: `not_vectors` masks the other out."""


def wrappers_of(case: Case) -> list[str]:
    """The wrappers' names, outermost first, without those that change nothing for a guard."""
    return [name for name in case.name.split("-") if name not in ("masked", "flatten")]


def rejected(case: Case, batches: list[Tree], tree: Tree) -> set[int]:
    """The steps whose gradients are rejected: by the guard that sees every call, or with their window."""
    outer, *inside = wrappers_of(case)
    if outer in WINDOWS:
        windows = {step // 2 for step in range(STEPS) if not is_finite(seen(case, batches[step]))}
        observed = windows_rejected(case, batches, tree)
        assert windows <= observed, "a window with a bad gradient was taken"
        return {2 * window + i for window in observed for i in (0, 1)}
    guard = inside[0] if outer == "lookahead" else outer
    return {step for step, grads in enumerate(batches) if rejects(guard, seen(case, grads))}


def seen(case: Case, grads: Tree) -> Tree:
    """The gradients that reach the guard: under a mask, only the leaf that is kept."""
    return jax.tree.leaves(grads)[KEPT] if case.name.startswith("masked") else grads


def rejects(guard: str, grads: Tree) -> bool:
    """Whether a guard rejects these gradients."""
    if guard in LIMITS:
        with np.errstate(over="ignore"):
            norm = sum(
                float(np.square(leaf.astype(np.float32)).sum(dtype=np.float32)) for leaf in jax.tree.leaves(grads)
            )
        return not norm < LIMITS[guard]
    return not is_finite(grads)


def windows_rejected(case: Case, batches: list[Tree], tree: Tree) -> set[int]:
    """The windows of two mini-steps that the guard inside rejected, as its own figures have it."""
    trail = [figures(after.state)[-1] for after in trained(case, tree, batches)]
    counting = not wrappers_of(case)[-1].startswith("multi_steps")
    return {w for w in range(STEPS // 2) if trail[2 * w + 2] > (trail[2 * w] if counting else 0)}


def figures(state: Tree) -> list[int]:
    """Of each guard in the state, outermost first: how many calls it rejected, or whether it left out the last one."""
    counts = []
    for node in walk(state, STATES):
        match node:
            case optwrap.ApplyIfFiniteState():
                counts.append(int(node.total_notfinite))
            case optwrap.SkipIfState():
                counts.append(int(node.total_skipped))
            case optwrap.SkipSpikesState():
                counts.append(int(node.total_large) + int(node.total_notfinite))
            case optwrap.MultiStepsState() if node.skip_state:
                counts.append(int(node.skip_state["should_skip"]))
    return counts


def trained(case: Case, tree: Tree, batches: list[Tree]) -> list[After]:
    return run(case, optwrap, tree, batches, "unoptimized")


def substance(state: Tree, *, of_window: bool) -> Tree:
    """The state without the guards' own figures.

    Of windows that take in what is rejected with them, also without how many there were, and what they hold while open.
    """

    def is_wrapper(node: Any) -> bool:
        return isinstance(node, STATES)

    def bare(node: Any) -> Any:
        if not is_wrapper(node):
            return node
        if not isinstance(node, optwrap.MultiStepsState):
            return substance(node.inner_state, of_window=of_window)
        acc_grads = None if of_window and node.mini_step != 0 else node.acc_grads
        inner = substance(node.inner_opt_state, of_window=of_window)
        return (node.mini_step, None if of_window else node.gradient_step, acc_grads, inner)

    return jax.tree.map(bare, state, is_leaf=is_wrapper)


def kept(case: Case, params: Tree) -> Tree:
    """The parameters that the guard protects: a mask passes the other gradients around it."""
    return jax.tree.leaves(params)[KEPT] if case.name.startswith("masked") else params


@st.composite
def trainings(draw: st.DrawFn, nests: list[Case]) -> tuple[Case, Tree, list[Tree]]:
    """A nesting, parameters, and their gradients with faults: not finite, or the dtype's largest, of either sign."""
    case = draw(st.sampled_from(nests))
    tree, largest = TREES[draw(st.sampled_from(list(TREES)))]
    values = VALUES_NOT_FINITE | st.sampled_from([largest, -largest])
    return case, tree, batches_with(draw(faults_of(values)), tree)


search = settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
HEADS = {head: [case for case in NESTS if wrappers_of(case)[0] == head] for head in (*WINDOWS, *GUARDS, "lookahead")}
by_outermost = pytest.mark.parametrize("head", HEADS)


@by_outermost
@search
@given(data=st.data())
def test_the_values_of_a_rejected_gradient_do_not_matter(head: str, data: st.DataObject) -> None:
    """With NaN everywhere instead, parameters and inner state of every later step have the same bits."""
    case, tree, batches = data.draw(trainings(HEADS[head]))
    gone = rejected(case, batches, tree)
    others = [spoilt(case, grads) if step in gone else grads for step, grads in enumerate(batches)]
    of_window = head in WINDOWS
    for mine, other in zip(trained(case, tree, batches), trained(case, tree, others), strict=True):
        assert_same(kept(case, mine.params), kept(case, other.params))
        assert_same(substance(mine.state, of_window=of_window), substance(other.state, of_window=of_window))


def spoilt(case: Case, grads: Tree) -> Tree:
    """The gradients with NaN in every value that reaches the guard."""
    leaves, structure = jax.tree.flatten(grads)
    for i, leaf in enumerate(leaves):
        if i == KEPT or not case.name.startswith("masked"):
            leaves[i] = np.full_like(leaf, np.nan)
    return jax.tree.unflatten(structure, leaves)


@pytest.mark.parametrize("head", [head for head in HEADS if head != "lookahead"])  # which counts every call
@search
@given(data=st.data())
def test_a_rejected_gradient_equals_no_gradient(head: str, data: st.DataObject) -> None:
    """Parameters and inner state end bit for bit as without it, or without its window."""
    case, tree, batches = data.draw(trainings(HEADS[head]))
    gone = rejected(case, batches, tree)
    without = [grads for step, grads in enumerate(batches) if step not in gone]
    mine, other = trained(case, tree, batches)[-1], trained(case, tree, without)[-1]
    assert_same(kept(case, mine.params), kept(case, other.params))
    of_window = head in WINDOWS
    assert_same(substance(mine.state, of_window=of_window), substance(other.state, of_window=of_window))


@pytest.mark.parametrize("head", GUARDS)
@search
@given(data=st.data())
def test_exactly_the_non_finite_gradients_are_rejected(head: str, data: st.DataObject) -> None:
    """Finite gradients whose squares or sums overflow are taken; the guard's counts equal numpy's."""
    case, tree, batches = data.draw(trainings(HEADS[head]))
    gone = rejected(case, batches, tree)
    counts = [figures(after.state)[0] for after in trained(case, tree, batches)]
    if not head.startswith("multi_steps"):
        counts = [0, *(after - before for before, after in itertools.pairwise(counts))]
    assert {step for step, left_out in enumerate(counts[1:]) if left_out} == gone


def test_the_search_covers_every_nesting() -> None:
    """Pairs of wrappers with a guard, and masked and flatten around and inside each."""
    names = {case.name for case in NESTS}
    for name in ("multi_steps-apply_if_finite", "apply_if_finite-multi_steps", "lookahead-multi_steps_skip_large"):
        assert {name, f"masked-{name}", f"flatten-{name}", f"{name}-masked", f"{name}-flatten"} - names <= {
            f"masked-{name}" if "lookahead" in name else ""
        }
    assert sum(map(len, HEADS.values())) == len(NESTS) == len(names)
