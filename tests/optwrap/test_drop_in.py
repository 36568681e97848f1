"""The public names as a drop-in: optax's parameters, transformations that take extra args, whole docstrings."""

import dataclasses
import doctest
import functools
import inspect
from typing import Any

import jax.numpy as jnp
import optax
import pytest

import optwrap
from tests.optwrap.transformations import momentum

FUNCTIONS = (
    *("apply_if_finite", "flatten", "lookahead", "masked"),
    *("MultiSteps", "skip_not_finite", "skip_large_updates", "ShouldSkipUpdateFunction.__call__"),
    *("MultiSteps.init", "MultiSteps.update", "MultiSteps.gradient_transformation"),
)
SGD = momentum()
MADE = {
    "apply_if_finite": lambda library: library.apply_if_finite(SGD, 1),
    "flatten": lambda library: library.flatten(SGD),
    "lookahead": lambda library: library.lookahead(SGD, 2, 0.5),
    "masked": lambda library: library.masked(SGD, True),
    "MultiSteps": lambda library: library.MultiSteps(SGD, 2).gradient_transformation(),
    "MultiSteps.inner_opt": lambda library: library.MultiSteps(SGD, 2).inner_opt,
}


def named(library: Any, name: str) -> Any:
    found = library
    for part in name.split("."):
        found = getattr(found, part)
    return found


def parameters(function: Any) -> list[inspect.Parameter]:
    return list(inspect.signature(function).parameters.values())


@pytest.mark.parametrize("name", FUNCTIONS)
def test_signatures_are_those_of_optax(name: str) -> None:
    """Names, order, kinds and defaults; added parameters are keyword-only with a default."""
    theirs, ours = parameters(named(optax, name)), parameters(named(optwrap, name))
    assert [(p.name, p.kind, p.default) for p in ours if p.kind is not p.KEYWORD_ONLY] == [
        (p.name, p.kind, p.default) for p in theirs if p.kind is not p.KEYWORD_ONLY
    ]
    keywords = {p.name: p.default for p in ours if p.kind is p.KEYWORD_ONLY}
    assert keywords.items() >= {p.name: p.default for p in theirs if p.kind is p.KEYWORD_ONLY}.items()
    assert inspect.Parameter.empty not in keywords.values()


def test_has_updated_takes_the_state_alone() -> None:
    """As with optax; what it takes beside it may be left out."""
    (_, theirs), (_, ours, *more) = (parameters(library.MultiSteps.has_updated) for library in (optax, optwrap))
    assert (ours.name, ours.kind, ours.default) == (theirs.name, theirs.kind, theirs.default)
    assert all(p.default is not p.empty for p in more)


@pytest.mark.parametrize("name", MADE)
def test_transformations_take_extra_args(name: str) -> None:
    """Also where optax's do not; their types are optax's."""
    ours, theirs = (MADE[name](library) for library in (optwrap, optax))
    assert isinstance(ours, optax.GradientTransformationExtraArgs)
    assert isinstance(ours, type(theirs))
    for around in (optwrap.instrument(ours), optwrap.instrument(theirs)):
        assert isinstance(around, optax.GradientTransformationExtraArgs)


def test_multi_steps_is_an_instance_of_optax_but_calls_none_of_its_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    """`isinstance` is true, but no method of optax's class is called."""
    theirs = {name: value for name, value in vars(optax.MultiSteps).items() if inspect.isfunction(value)}
    theirs["inner_opt"] = optax.MultiSteps.inner_opt

    def not_ours(*_: Any, **__: Any) -> None:
        raise AssertionError("of optax")

    for name in theirs:
        monkeypatch.setattr(optax.MultiSteps, name, property(not_ours) if name == "inner_opt" else not_ours)
    assert set(theirs) >= {"__init__", "init", "update", "has_updated", "gradient_transformation"}
    with pytest.raises(AssertionError, match="of optax"):
        optax.MultiSteps(SGD, 2)

    steps = optwrap.MultiSteps(SGD, 2, should_skip_update_fn=optwrap.skip_not_finite)
    assert isinstance(steps, optax.MultiSteps)
    assert steps.inner_opt is not None
    params = jnp.ones(3)
    state = steps.init(params)
    for _ in range(3):
        _, state = steps.update(params, state, params)
        steps.has_updated(state)
    steps.flush(state, params)
    for around in (optwrap.instrument(steps), optax.chain(steps.gradient_transformation()), steps):
        optwrap.apply_gradients(around, params, around.init(params), params)
    assert optwrap.apply_gradients(steps, params, state, params)[1].gradient_step == 2


OWN = {
    **{name: getattr(optwrap, name) for name in optwrap.__all__ if name != "trackers"},
    **{f"trackers.{name}": value for name, value in vars(optwrap.trackers).items() if inspect.isfunction(value)},
}
OWN = {name: found for name, found in OWN.items() if not found.__module__.startswith("optax") and "._" not in name}


@pytest.mark.parametrize("name", OWN)
def test_docstrings_name_every_parameter(name: str) -> None:
    """Each public function and class, and each public method of a class."""
    found = OWN[name]
    assert inspect.getdoc(found)
    for function in documented(found):
        # What a constructor takes may be told by the class.
        doc = f"{inspect.getdoc(function)} {inspect.getdoc(found)}"
        for parameter in parameters(function):
            if parameter.name != "self" and not parameter.name.startswith("_"):
                assert parameter.name in doc, (function.__qualname__, parameter.name)


@pytest.mark.parametrize("name", ["MultiSteps", "apply_if_finite", "skip_if"])
def test_examples_in_docstrings_are_right(name: str) -> None:
    names = {"optax": optax, "optwrap": optwrap, "jnp": jnp, "functools": functools, name: getattr(optwrap, name)}
    (example,) = doctest.DocTestFinder(recurse=False).find(getattr(optwrap, name), name, globs=names)
    assert example.examples
    printed: list[str] = []
    assert doctest.DocTestRunner().run(example, out=printed.append).failed == 0, "".join(printed)


def documented(found: Any) -> list[Any]:
    """The function itself, or a class's constructor and public methods.

    A tuple of fields and a dataclass have a docstring at each field instead.
    """
    if inspect.isfunction(found):
        return [found]
    if issubclass(found, tuple) or dataclasses.is_dataclass(found):
        return []
    methods = [value for value in vars(found).values() if inspect.isfunction(value)]
    return [method for method in methods if not method.__name__.startswith("_") or method.__name__ == "__init__"]
