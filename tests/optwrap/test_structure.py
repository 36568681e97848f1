"""The library's structure: who imports whom, what is public, and which private names of JAX are in use."""

import ast
import graphlib
import importlib
import inspect
import re
from collections.abc import Iterator

import pytest

import optwrap
from optwrap._core.errors import OptwrapError
from tests.structure import forbidden, imports, out_of_order, root_of, sources

ALLOWED = {
    "_version": (),
    "_core": (),
    "_wrappers": ("_core",),
    "_reading": (),
    "_step": ("_core", "_wrappers", "_reading"),
    "_stop": ("_reading",),
    "_autopsy": ("_core.checks", "_reading"),
    "trackers": ("_reading", "_monitor"),
    "keras": ("_core.apply_gradients",),
    "_monitor": ("_version", "_reading", "_stop", "_core.checks", "_core.errors"),
    "replay": ("_core.errors", "_monitor.settings", "_wrappers.spike_rule"),
}
"""What each sub-package may import. What runs in the step and what runs on the host share the reading alone."""

PUBLIC = [
    "ApplyIfFiniteState",
    "BadStep",
    "Fault",
    "FaultStep",
    "Findings",
    "HeldStep",
    "InstrumentState",
    "LargestValue",
    "Layout",
    "LookaheadParams",
    "LookaheadState",
    "LoopIteration",
    "MaskedNode",
    "MaskedState",
    "Monitor",
    "MultiSteps",
    "MultiStepsState",
    "Observer",
    "Operand",
    "Reading",
    "Recorder",
    "Replica",
    "ReplicaFlags",
    "ShouldSkipUpdateFunction",
    "SkipIfState",
    "SkipSpikesState",
    "StepRecord",
    "Stop",
    "StopPolicy",
    "Totals",
    "adopt",
    "apply_gradients",
    "apply_if_finite",
    "autopsy",
    "flatten",
    "instrument",
    "lookahead",
    "masked",
    "reading",
    "replica_flags",
    "settle",
    "skip_if",
    "skip_large_updates",
    "skip_not_finite",
    "skip_spikes",
    "trackers",
    "unpack",
]

PRIVATE_JAX = {
    # JAX has no public way to ask whether its devices are initialised without initialising them.
    ("_monitor.source", "jax._src.xla_bridge.backends_are_initialized"),
    # jax.distributed has no public way to share a small value between processes.
    ("_monitor.source", "jax._src.distributed.global_state"),
}
"""Every private name of JAX that the library uses, and why. Each use works without it, too."""


def test_sub_packages_import_only_those_below_them() -> None:
    assert forbidden("optwrap", ALLOWED) == []


def test_modules_import_in_the_order_that_their_package_states() -> None:
    assert out_of_order("optwrap") == []


def test_no_modules_import_each_other_in_a_cycle() -> None:
    graph: dict[str, set[str]] = {}
    for importer, imported in imports("optwrap"):
        graph.setdefault(importer, set()).add(imported)
    graphlib.TopologicalSorter(graph).prepare()  # CycleError names the modules of a cycle


def test_no_module_is_too_long() -> None:
    """A module of more than 350 lines has more than one idea."""
    root = root_of("optwrap")
    lengths = {path.relative_to(root): path.read_text("utf-8").count("\n") for path in root.rglob("*.py")}
    assert {path: length for path, length in lengths.items() if length > 350} == {}


def test_the_public_names_are_exactly_these() -> None:
    assert optwrap.__all__ == PUBLIC
    assert all(hasattr(optwrap, name) for name in PUBLIC)


def test_every_exception_class_has_the_one_base(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    modules = [importlib.import_module(f"optwrap.{name}".rstrip(".")) for name in sources("optwrap")]
    found = {
        defined
        for module in modules
        for defined in vars(module).values()
        if inspect.isclass(defined) and issubclass(defined, BaseException) and defined.__module__.startswith("optwrap")
    }
    assert {one.__name__ for one in found} == {"OptwrapError", "ReplayError", "TransportError"}
    assert all(issubclass(one, OptwrapError) for one in found)


def names_of(tree: ast.Module) -> Iterator[str]:
    """The dotted names in a module: in imports, in expressions, and in strings such as `import_module` takes."""
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                yield from (alias.name for alias in node.names)
            case ast.ImportFrom():
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            case ast.Attribute():
                yield ast.unparse(node)
            case ast.Constant(value=str()):
                yield str(node.value)


def private_in(tree: ast.Module) -> set[str]:
    """The private names of JAX in a module."""
    private = re.compile(r"jax\.(?:\w+\.)*(?:_(?!_)\w+|interpreters|lib)\b.*|jaxlib\b.*")
    return {name for name in names_of(tree) if private.fullmatch(name)}


def test_private_names_of_jax_are_exactly_these() -> None:
    assert {(module, name) for module, tree in sources("optwrap").items() for name in private_in(tree)} == PRIVATE_JAX


@pytest.mark.parametrize(
    "line",
    [
        "import jax._src.core",
        "from jax._src import core",
        "from jax import _src",
        "from jax import lib as somewhere",
        "from jax.interpreters import mlir",
        "jax._src.core.new_base_main()",
        "jax.numpy._array.thing",
        "importlib.import_module('jax._src.core')",
        "from jaxlib import xla_client",
    ],
)
def test_a_private_name_of_jax_is_seen_however_it_is_written(line: str) -> None:
    assert private_in(ast.parse(line))
