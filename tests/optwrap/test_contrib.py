"""Every optimizer of `optax.contrib`, and those that take extra args, inside every wrapper: as optax, instrumented."""

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

import optwrap
from tests.optwrap.transformations import FLOAT32, UNOPTIMIZED, WRAPPERS, Case, assert_same

Tree = Any

STEPS = 5
SGD = optax.sgd(0.1, momentum=0.5)


def dpsgd() -> Any:
    """With the argument that optax calls deprecated, and for which it offers no other."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return contrib.dpsgd(0.1, 1.0, 0.1, seed=0)


OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "acprop": lambda: contrib.acprop(0.01),
    "ademamix": lambda: contrib.ademamix(0.01),
    "adopt": lambda: contrib.adopt(0.01),
    "cocob": contrib.cocob,
    "dadapt_adamw": contrib.dadapt_adamw,
    "differentially_private_aggregate": lambda: optax.chain(
        contrib.differentially_private_aggregate(1.0, 0.1, key=0), SGD
    ),
    "dog": contrib.dog,
    "dowg": contrib.dowg,
    "dpsgd": dpsgd,
    "galore": lambda: contrib.galore(0.01, rank=1),
    "madgrad": lambda: contrib.madgrad(0.01),
    "mechanize": lambda: contrib.mechanize(SGD),
    "momo": lambda: contrib.momo(0.1),
    "momo_adam": lambda: contrib.momo_adam(0.1),
    "muon": lambda: contrib.muon(0.01),
    "normalize": lambda: optax.chain(contrib.normalize(), SGD),
    "prodigy": contrib.prodigy,
    "reduce_on_plateau": lambda: optax.chain(SGD, contrib.reduce_on_plateau(patience=1)),
    "sam": lambda: contrib.sam(SGD, optax.sgd(0.05)),
    "sam_opaque": lambda: contrib.sam(SGD, optax.sgd(0.05), opaque_mode=True),
    "schedule_free": lambda: contrib.schedule_free(SGD, 0.1),
    "schedule_free_adamw": contrib.schedule_free_adamw,
    "schedule_free_sgd": contrib.schedule_free_sgd,
    "simplified_ademamix": lambda: contrib.simplified_ademamix(0.01),
    "sophia": lambda: contrib.sophia(0.01),
    "split_real_and_imaginary": lambda: contrib.split_real_and_imaginary(SGD),
    "lbfgs": optax.lbfgs,
    "lbfgs_without_search": lambda: optax.lbfgs(0.1, linesearch=None),
    "polyak_sgd": optax.polyak_sgd,
}
NO_OPTIMIZERS = {"hutchinson_estimator_diag_hessian", "schedule_free_eval_params"}
"""Functions of `optax.contrib` that serve others of the table."""

CASES = [Case(name, (WRAPPERS[name],)) for name in ("apply_if_finite", "multi_steps", "flatten", "lookahead")] + [
    Case("masked", (lambda library, inner: library.masked(inner, {"layer": True, "b": False}),))
]

PER_SAMPLE = ("differentially_private_aggregate", "dpsgd")
"""Their gradients are those of each sample of a batch."""
NEITHER = {(name, wrapper) for name in PER_SAMPLE for wrapper in ("multi_steps", "masked", "flatten")} | {
    ("lbfgs", "masked"),
    ("lbfgs", "flatten"),
}
"""What cannot be wrapped, in either library. A line search evaluates a function of all parameters in their own tree. Of
gradients per sample neither a window's mean, nor one vector, nor what a mask hands on has the parameters' shapes."""
OPTAX_RAISES = {(name, "apply_if_finite") for name in PER_SAMPLE}
"""Where optax's wrapper cannot be traced, and ours can: updates with other shapes than gradients."""


def objective(params: Tree, *_: Any) -> Any:
    """A scalar with its minimum near 0.3 in every value; further arguments are those of a sample."""
    return sum(jnp.sum(jnp.square(leaf - 0.3) + 0.1 * leaf**4) for leaf in jax.tree.leaves(params))


def trained(name: str, case: Case, library: Any) -> tuple[Tree, Tree]:
    """Parameters and state after a few steps; ours under apply_if_finite instrumented."""
    optimizer = OPTIMIZERS[name]()
    params = case.params(FLOAT32)

    def transformation(extra: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The wrapper, and the extra args it is given: optax's lookahead takes none, its optimizer has them bound."""
        inner = optax.with_extra_args_support(optimizer)
        if library is optwrap:
            ours = case.build(optwrap, inner)
            return (optwrap.instrument(ours) if case.name == "apply_if_finite" else ours), extra
        if not case.pairs:
            return case.build(optax, inner), extra
        bound = optax.GradientTransformation(inner.init, lambda u, s, p=None: inner.update(u, s, p, **extra))
        return case.build(optax, bound), {}

    @jax.jit
    def start(params: Tree) -> Tree:
        return transformation({})[0].init(params)

    def step(params: Tree, state: Tree) -> tuple[Tree, Tree]:
        value, grads = jax.value_and_grad(objective)(params.fast if case.pairs else params)
        extra = {} if name == "sam" else {"value": value}
        if name == "lbfgs":
            extra |= {"grad": grads, "value_fn": objective}
        elif name == "sophia":
            extra |= {"obj_fn": objective}
        elif name == "sam_opaque":
            extra = {"grad_fn": jax.grad(objective)}
        if name in PER_SAMPLE:
            grads = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), grads)  # of each sample of a batch
        tx, extra = transformation(extra)
        updates, state = tx.update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state

    step = jax.jit(step, compiler_options=UNOPTIMIZED)
    state = start(params)
    for _ in range(STEPS):
        params, state = step(params, state)
    return params, state


COMBINATIONS = [(name, case) for name in OPTIMIZERS for case in CASES]


def where(combinations: set[tuple[str, str]], *, besides: bool = False) -> Any:
    """The tests of some combinations, or of all but those."""
    chosen = [(name, case) for name, case in COMBINATIONS if ((name, case.name) in combinations) is not besides]
    return pytest.mark.parametrize(("name", "case"), chosen, ids=[f"{name}-{case.name}" for name, case in chosen])


@pytest.mark.thin(9)
@where(NEITHER | OPTAX_RAISES, besides=True)
def test_every_contributed_optimizer_trains_in_every_wrapper(name: str, case: Case) -> None:
    """The same bits as in optax's wrapper; under apply_if_finite with an instrumentation, which counts every step."""
    params, state = trained(name, case, optwrap)
    expected_params, expected_state = trained(name, case, optax)
    if isinstance(state, optwrap.InstrumentState):
        totals = optwrap.unpack(np.asarray(optwrap.reading(state))).totals
        assert (totals.steps, totals.outcomes["applied"]) == (STEPS, STEPS)
        state = state.inner_state
    assert_same((params, state), (expected_params, expected_state))


@where(OPTAX_RAISES)
def test_some_contributed_optimizers_train_in_optwrap_only(name: str, case: Case) -> None:
    """Optax cannot trace these; ours gives the same bits as the optimizer alone."""
    with pytest.raises(TypeError):
        trained(name, case, optax)
    params, state = trained(name, case, optwrap)
    expected_params, expected_state = trained(name, Case("alone", ()), optax)
    assert_same((params, state.inner_state.inner_state), (expected_params, expected_state))


@where(NEITHER)
def test_some_contributed_optimizers_train_in_neither_library(name: str, case: Case) -> None:
    """Both raise when the step is traced."""
    for library in (optax, optwrap):
        with pytest.raises((TypeError, ValueError, IndexError)):
            trained(name, case, library)


def test_the_table_has_every_contributed_optimizer() -> None:
    """Each function of `optax.contrib` that returns an optimizer."""
    functions = {name for name, value in vars(contrib).items() if inspect.isfunction(value)}
    whole = {name for name in functions if not name.startswith("scale_by_")} - NO_OPTIMIZERS
    assert whole <= set(OPTIMIZERS)
