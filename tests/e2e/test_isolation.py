"""Library and exporter run without each other's dependencies, and each wheel contains what it needs."""

import json
import socket
import subprocess
import tomllib
import urllib.request
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.e2e.environments import REPOSITORY, Environment, build, make, needs
from tests.polling import wait_until


@pytest.fixture(scope="module")
def exporter_only(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    directory = tmp_path_factory.mktemp("exporter-only")
    return make(directory / "venv", build("wheel", REPOSITORY / "service", directory))


@pytest.fixture(scope="module")
def library_only(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    directory = tmp_path_factory.mktemp("library-only")
    return make(directory / "venv", build("wheel", REPOSITORY, directory))


def test_exporter_environment_really_lacks_jax_and_optwrap(exporter_only: Environment) -> None:
    assert exporter_only.can_import("fastapi")
    for module in ("jax", "jaxlib", "numpy", "optax", "optwrap"):
        assert not exporter_only.can_import(module), module


def test_exporter_runs_and_serves_page_and_charts_without_jax(exporter_only: Environment, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [
            *(str(exporter_only.python), "-I", "-m", "optwrap_exporter"),
            *("--listen", f"127.0.0.1:{port}", "--data-dir", str(tmp_path / "data")),
        ],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
    )

    def ready() -> bool:
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        try:
            with urllib.request.urlopen(f"{url}/-/ready", timeout=2):
                return True
        except OSError:
            return False

    try:
        wait_until(ready)
        assert json.load(urllib.request.urlopen(f"{url}/v1/runs", timeout=5))["items"] == []
        assert b"optwrap_exporter_build_info" in urllib.request.urlopen(f"{url}/metrics", timeout=5).read()
        assert b"<html" in urllib.request.urlopen(f"{url}/", timeout=5).read().lower()
        assert b"uPlot" in urllib.request.urlopen(f"{url}/page/vendor/uPlot.esm.js", timeout=5).read()
    finally:
        process.terminate()
        process.communicate(timeout=20)
    assert process.returncode == 0, "SIGTERM ends it cleanly"


def test_library_environment_really_lacks_the_exporter_and_any_web_framework(library_only: Environment) -> None:
    assert library_only.can_import("jax")
    modules = ("optwrap_exporter", "fastapi", "starlette", "uvicorn", "pydantic", "prometheus_client", "httpx", "click")
    for module in modules:
        assert not library_only.can_import(module), module


def test_library_trains_and_counts_without_any_web_framework(library_only: Environment, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        """
import jax, jax.numpy as jnp, numpy as np, optax, optwrap
monitor = optwrap.Monitor(run="alone", endpoint="http://127.0.0.1:9")
tx = optwrap.instrument(optwrap.apply_if_finite(optax.adam(0.1), 3), monitor)
params = {"w": jnp.ones(4)}
state = tx.init(params)

@jax.jit
def step(params, state, grads):
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state, optwrap.reading(state)

for i in range(6):
    grads = {"w": jnp.full(4, jnp.nan if i == 2 else 1.0)}
    params, state, reading = step(params, state, grads)
    monitor.observe(reading)
monitor.close()
assert np.isfinite(params["w"]).all()
print("trained")
"""
    )
    ran = library_only.run(str(script))
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "trained"


def test_every_declared_need_is_pinned_at_the_version_installed() -> None:
    """constraints.txt names all that set-up installs, so that nothing comes at a version nobody chose."""
    lines = [Requirement(line) for line in (REPOSITORY / "constraints.txt").read_text().splitlines() if line[:1] != "#"]
    here = [line for line in lines if line.marker is None or line.marker.evaluate()]
    pinned: dict[str, str] = {canonicalize_name(line.name): str(line.specifier) for line in here}
    groups = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["dependency-groups"]
    declared = needs(["optwrap[exporter]", "pip", *groups["dev"], *groups["docs"]]) - {"optwrap", "optwrap-exporter"}
    assert {name: f"=={metadata.version(name)}" for name in declared} == {name: pinned.get(name) for name in declared}
