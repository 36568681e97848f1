"""Both packages have one version, and every file that has to repeat it says the same."""

import re
from pathlib import Path
from typing import Final

import optwrap_exporter
import pytest

import optwrap
from tests.deploy.places import DEPLOY, ROOT, load

SEMANTIC: Final = re.compile(r"\d+\.\d+\.\d+((a|b|rc)\d+)?")
IMAGES: Final = {"optwrap-exporter", "optwrap-demo-trainer"}


def test_one_tag_releases_both_packages() -> None:
    assert SEMANTIC.fullmatch(optwrap.__version__)
    assert optwrap_exporter.__version__ == optwrap.__version__


@pytest.mark.parametrize("path", [ROOT / "Dockerfile", DEPLOY / "trainer.Dockerfile"], ids=lambda path: path.name)
def test_the_image_takes_the_wheel_of_this_version(path: Path) -> None:
    assert re.findall(r"^ARG VERSION=(\S+)$", path.read_text("utf-8"), re.MULTILINE) == [optwrap.__version__]


def test_the_citation_names_it() -> None:
    assert load(ROOT / "CITATION.cff")["version"] == optwrap.__version__


def test_manifests_and_documents_name_the_images_of_this_version() -> None:
    """As `name:tag` in compose and in commands, as `newTag` in kustomize, as `appVersion` in a chart."""
    files = [*DEPLOY.rglob("*.y*ml"), *DEPLOY.rglob("*Dockerfile"), ROOT / "Dockerfile", *(ROOT / "docs").rglob("*.md")]
    found = {
        (path.relative_to(ROOT), name, tag)
        for path in files
        for name, tag in re.findall(r"(?<!/)\b(optwrap-[a-z-]+):(\d[\w.]*\w)", path.read_text("utf-8"))
        if name in IMAGES
    }
    found |= {
        (path.relative_to(ROOT), image["name"], str(image["newTag"]))
        for path in DEPLOY.rglob("kustomization.yaml")
        for image in load(path).get("images", [])
    }
    assert {name for _, name, _ in found} >= IMAGES
    assert {tag for _, name, tag in found if name in IMAGES} == {optwrap.__version__}, sorted(map(str, found))
    charts = {load(path)["appVersion"] for path in DEPLOY.rglob("Chart.yaml")}
    assert charts <= {optwrap.__version__}
