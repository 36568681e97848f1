"""Environments that hold one of our wheels and what it declares to need, and nothing else.

Made from the distributions already installed here, by their own records, so that no registry is asked: what is missing
there is missing because nothing declared it.
"""

import dataclasses
import os
import subprocess
import sys
import venv
import zipfile
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class Environment:
    """A virtual environment without pip."""

    root: Path

    @property
    def python(self) -> Path:
        return self.root / "bin" / "python"

    def run(self, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """`python ARGUMENTS` there, away from this checkout, with none of this process's import paths."""
        return subprocess.run(
            [str(self.python), "-I", *arguments],
            cwd=self.root,
            env={"PATH": "/usr/bin:/bin", "JAX_PLATFORMS": "cpu", "HOME": str(self.root)},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def can_import(self, module: str) -> bool:
        return self.run("-c", f"import {module}").returncode == 0


def build(target: str, project: Path, into: Path, path: str = os.environ["PATH"]) -> Path:
    """The archive of the project in that folder: "wheel" or "sdist", built by the project's backend."""
    built = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(into)],
        cwd=project,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    (archive,) = into.glob({"wheel": "*.whl", "sdist": "*.tar.gz"}[target])
    return archive


def needs(requirements: list[str]) -> set[str]:
    """Names of the distributions, installed here, that those requirements need, and what these need in turn."""
    found: set[str] = set()
    waiting = [Requirement(r) for r in requirements]
    while waiting:
        requirement = waiting.pop()
        extras = requirement.extras or {""}
        if requirement.marker and not any(requirement.marker.evaluate({"extra": e}) for e in extras):
            continue
        name = canonicalize_name(requirement.name)
        if name in found and not requirement.extras:
            continue
        found.add(name)
        for line in metadata.requires(name) or []:
            inner = Requirement(line)
            if inner.marker is None or any(inner.marker.evaluate({"extra": e}) for e in extras):
                inner.marker = None
                waiting.append(inner)
    return found


def make(root: Path, wheel: Path) -> Environment:
    """An environment with that wheel and what it needs."""
    venv.create(root, with_pip=False, symlinks=True)
    (site,) = (root / "lib").glob("python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
        (record,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        requires = metadata.Distribution.at(site / record.split("/")[0]).requires or []
    plain = [r for r in requires if "extra ==" not in r]
    for name in needs(plain):
        distribution = metadata.distribution(name)
        for path in distribution.files or []:
            source = Path(str(distribution.locate_file(path)))
            if ".." in path.parts or "__pycache__" in path.parts or not source.exists():
                continue
            target = site / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(source)
    return Environment(root)
