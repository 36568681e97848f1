"""How XLA compiles in the tests: quickly, and as users have it where last bits or long computations are the subject.

Compiling was most of the processor time of the library's tests. With the options below it takes a sixth of it; the
programs mean the same, and only their rounding may differ. They run slower: where a test computes much, the options of
users are quicker in all. `--thorough` compiles everything as users have it.
"""

import importlib.metadata
import os
import sys
from pathlib import Path

HAS_EMITTERS_FLAG = importlib.metadata.version("jaxlib").startswith("0.10.")
"""Whether XLA still has another way to emit fusions. It ends a process that has a flag it does not know."""

FUSION_EMITTERS: dict[str, str | bool | int] = {"xla_cpu_use_fusion_emitters": True} if HAS_EMITTERS_FLAG else {}
"""Compiler options for XLA's default way to emit fusions."""

QUICK = (
    "--xla_backend_optimization_level=0",
    *(("--xla_cpu_use_fusion_emitters=false",) if HAS_EMITTERS_FLAG else ()),
    "--xla_cpu_parallel_codegen_split_count=1",
)
"""For the environment variable XLA_FLAGS."""

AS_USERS: dict[str, str | bool | int] = {
    "xla_backend_optimization_level": "3",
    "xla_cpu_parallel_codegen_split_count": 32,
    **FUSION_EMITTERS,
}
"""Compiler options for `jax.jit`: XLA's own defaults for the options above."""


def compile_quickly() -> None:
    """Let this process and its children compile quickly. It has to be called before JAX starts its backend."""
    flags = os.environ.get("XLA_FLAGS", "").split()
    os.environ["XLA_FLAGS"] = " ".join([*QUICK, *(flag for flag in flags if flag not in QUICK)])


MOST_MAPS = 30_000
"""Memory maps of this process before it drops its compiled programs."""


def drop_programs() -> None:
    """Drop all that JAX has compiled in this process, if it has many memory maps.

    A program that XLA:CPU compiled holds some 14 of them. Linux allows a process 65,530; beyond that, compiling ends
    with a segmentation fault.
    """
    maps = Path("/proc/self/maps")
    if "jax" in sys.modules and maps.exists() and maps.read_bytes().count(b"\n") > MOST_MAPS:
        sys.modules["jax"].clear_caches()
