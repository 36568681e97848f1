"""The library's structure: who imports whom, what is public, and which private names of JAX are in use."""

import re

import optwrap
from tests.structure import forbidden, out_of_order, root_of

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
    "replay": ("_monitor.settings", "_wrappers.spike_rule"),
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
    ("_monitor/source.py", "jax._src.xla_bridge"),
    # jax.distributed has no public way to share a small value between processes.
    ("_monitor/source.py", "jax._src.distributed"),
}
"""Every private module of JAX that the library uses, and why. Each use works without it, too."""


def test_sub_packages_import_only_those_below_them() -> None:
    assert forbidden("optwrap", ALLOWED) == []


def test_modules_import_in_the_order_that_their_package_states() -> None:
    """This rules out import cycles."""
    assert out_of_order("optwrap") == []


def test_the_public_names_are_exactly_these() -> None:
    assert optwrap.__all__ == PUBLIC
    assert all(hasattr(optwrap, name) for name in PUBLIC)


def test_private_names_of_jax_are_exactly_these() -> None:
    root = root_of("optwrap")
    private = re.compile(r"\bjax\.(?:_src[.\w]*|interpreters[.\w]*|lib[.\w]*)")
    used = {
        (path.relative_to(root).as_posix(), name)
        for path in root.rglob("*.py")
        for name in private.findall(path.read_text("utf-8"))
    }
    assert used == PRIVATE_JAX
