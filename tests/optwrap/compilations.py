"""How many programs JAX traces and compiles."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax


@contextlib.contextmanager
def compilations() -> Iterator[list[str]]:
    """A list with an entry for each program that is compiled within the block."""
    compiled: list[str] = []

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        del duration_secs
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def traces(jitted: Any) -> int:
    """How many traces a jitted function has cached: one for each set of argument types."""
    return int(jitted._cache_size())
