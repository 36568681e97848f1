"""Long test runs stay below Linux's limit of memory maps."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from tests import compiling

MAPS = Path("/proc/self/maps")


@pytest.mark.skipif(not MAPS.exists(), reason="memory maps are counted on Linux only")
def test_compiled_programs_are_dropped_when_a_process_has_many_memory_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    def maps() -> int:
        return MAPS.read_bytes().count(b"\n")

    kept = [jax.jit(lambda x, i=i: jnp.sin(x) * i) for i in range(10)]
    jax.jit(jnp.sin)(jnp.ones(3)).block_until_ready()  # the backend's own maps are there
    before = maps()
    for i, program in enumerate(kept):
        program(jnp.ones(i + 100))
    compiled = maps()
    assert compiled > before + len(kept)

    compiling.drop_programs()
    assert maps() > before + len(kept), "below the limit they stay"

    monkeypatch.setattr(compiling, "MOST_MAPS", 0)
    compiling.drop_programs()
    assert maps() < before + len(kept)
    assert float(kept[3](jnp.ones(103))[0]) == pytest.approx(3 * 0.8414710)
