"""The wrappers with their conditions, and without: both branches computed, and one selected."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final
from unittest import mock

import jax
import jax.numpy as jnp
from jax import lax
from rich.table import Table

from benchmarks import bench_wrappers
from benchmarks.timing import ratio, take_turns

FORMS: Final = ("bare", "optax", "update", "apply_gradients")
STEP: Final = ("optwrap._core.cond", "optwrap._wrappers.lookahead")
"""Modules whose condition is whether the wrapped optimizer's step, or a synchronisation, is taken."""
EVERYTHING: Final = ("optwrap.",)
"""And those that count only where something is not finite."""
SELECTS: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "update, step selected": ("update", STEP),
    "apply_gradients, step selected": ("apply_gradients", STEP),
    "apply_gradients, all selected": ("apply_gradients", EVERYTHING),
}
"""Forms without some conditions: the form that has them, and the modules in which they are replaced."""


@contextlib.contextmanager
def selecting(modules: tuple[str, ...]) -> Iterator[list[str]]:
    """Where a module's name begins with one of `modules`, its steps traced in the block compute both branches.

    A loop that runs at most once runs always: the body of optwrap's selects by itself.

    Yields:
      The modules whose conditions were replaced.
    """
    replaced: list[str] = []
    usual_cond, usual_while = lax.cond, lax.while_loop

    def here(function: Callable[..., Any]) -> bool:
        module = getattr(function, "__module__", None) or ""
        if module.startswith(modules):
            replaced.append(module)
            return True
        return False

    def cond(predicate: Any, true_fun: Any, false_fun: Any, *operands: Any, **options: Any) -> Any:
        if not here(true_fun):
            return usual_cond(predicate, true_fun, false_fun, *operands, **options)
        both = true_fun(*operands), false_fun(*operands)
        return jax.tree.map(functools.partial(jnp.where, predicate), *both)

    def while_loop(cond_fun: Any, body_fun: Any, init_val: Any) -> Any:
        return body_fun(init_val) if here(body_fun) else usual_while(cond_fun, body_fun, init_val)

    with mock.patch.object(lax, "cond", cond), mock.patch.object(lax, "while_loop", while_loop):
        yield replaced


def conditions(case: bench_wrappers.Case, form: str, modules: tuple[str, ...]) -> set[str]:
    """Those of `modules` with a condition in one form of a case."""
    tiny = dataclasses.replace(case, leaves=4, values=32)
    tx = bench_wrappers.optimizer(tiny, form)
    params = bench_wrappers.parameters(tiny, form)
    with selecting(modules) as replaced:
        step = bench_wrappers.step_of(form, tx)
        jax.eval_shape(step, params, tx.init(params), bench_wrappers.gradients_of(tiny, form))
    return set(replaced)


def measured(case: bench_wrappers.Case, rounds: int) -> dict[str, bench_wrappers.Trainer]:
    """Every form of a case, after its rounds; forms without a condition only if there is one."""
    bare, others = (bench_wrappers.gradients_of(case, form) for form in ("bare", "optax"))
    trainers = {form: bench_wrappers.Trainer(case, form, bare if form == "bare" else others) for form in FORMS}
    known: dict[str, set[str]] = {}
    for title, (form, modules) in SELECTS.items():
        found = conditions(case, form, modules)
        if found and found != known.get(form):
            known[form] = found
            with selecting(modules):
                trainers[title] = bench_wrappers.Trainer(case, form, others)
    take_turns({form: trainer.window for form, trainer in trainers.items()}, lambda done: done >= rounds)
    return trainers


def table(title: str, trainers: Mapping[str, bench_wrappers.Trainer]) -> Table:
    """The table of one wrapper."""
    rows = Table(title=title, title_justify="left")
    rows.add_column("form", min_width=max(map(len, SELECTS)))
    for heading in ("ms", "of optax", "of bare", "of the same with conditions", "CPU ms", "temporary MiB"):
        rows.add_column(heading, justify="right")
    for form, trainer in trainers.items():

        def of(baseline: str, ours: list[float] = trainer.times.seconds) -> str:
            return ratio(ours, trainers[baseline].times.seconds)

        rows.add_row(
            form,
            f"{trainer.times.ms:.3f}",
            "" if form in ("bare", "optax") else of("optax"),
            "" if form == "bare" else of("bare"),
            of(SELECTS[form][0]) if form in SELECTS else "",
            f"{trainer.times.cpu_ms:.3f}",
            f"{trainer.temporary:.1f}",
        )
    return rows
