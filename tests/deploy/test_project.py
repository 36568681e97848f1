"""The files that hosting services and tools read: valid by their schemas, and about this project as it is."""

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import optwrap
from tests.deploy.places import ROOT, load

GITHUB = ROOT / ".github"
SCHEMAS = {
    GITHUB / "workflows" / "ci.yml": "github-workflows",
    GITHUB / "workflows" / "release.yml": "github-workflows",
    GITHUB / "ISSUE_TEMPLATE" / "bug.yml": "github-issue-forms",
    GITHUB / "ISSUE_TEMPLATE" / "feature.yml": "github-issue-forms",
    GITHUB / "ISSUE_TEMPLATE" / "config.yml": "github-issue-config",
    ROOT / "CITATION.cff": "citation-file-format",
}
JOBS: dict[str, Any] = load(GITHUB / "workflows" / "ci.yml")["jobs"]
JOB: dict[str, Any] = JOBS["run"]
HOOKS: list[dict[str, Any]] = load(ROOT / ".pre-commit-config.yaml")["repos"][0]["hooks"]


def test_every_file_of_these_kinds_has_a_schema_here() -> None:
    found = {path for path in GITHUB.rglob("*") if path.is_file()} | {ROOT / "CITATION.cff"}
    assert found == set(SCHEMAS)


@pytest.mark.parametrize("path", SCHEMAS, ids=lambda path: path.name)
def test_a_file_is_valid_by_its_schema(path: Path) -> None:
    program = str(Path(sys.executable).with_name("check-jsonschema"))
    command = [program, "--builtin-schema", f"vendor.{SCHEMAS[path]}", "--default-filetype", "yaml", str(path)]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def test_ci_runs_on_every_python_that_the_packages_declare() -> None:
    for project in (ROOT, ROOT / "service"):
        classifiers = tomllib.loads((project / "pyproject.toml").read_text())["project"]["classifiers"]
        declared = [c.rpartition(" ")[2] for c in classifiers if c.startswith("Programming Language :: Python :: 3.")]
        assert JOB["strategy"]["matrix"]["python"] == declared


def test_ci_runs_what_decides_whether_a_change_lands() -> None:
    assert [step["run"] for step in JOB["steps"] if "run" in step] == [".ci/run"]
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


def test_ci_runs_the_oldest_jax_that_is_declared_on_the_pythons_that_have_a_newer_one() -> None:
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (oldest,) = (found.removeprefix("jax>=") for found in dependencies if found.startswith("jax"))
    pinned = (ROOT / "constraints.txt").read_text()
    assert f'jax=={oldest} ; python_version < "3.12"' in pinned
    job = JOBS["oldest"]
    assert job["strategy"]["matrix"]["python"] == [
        python for python in JOB["strategy"]["matrix"]["python"] if python != "3.11"
    ]
    assert job["steps"][-1]["run"].startswith(f"make test JAX={oldest} ")


def test_a_release_runs_the_same_and_uploads_what_make_dist_built() -> None:
    """Only the job that publishes may ask for an identity, and nothing has a token of an index."""
    jobs: dict[str, Any] = load(GITHUB / "workflows" / "release.yml")["jobs"]
    commands = [step["run"] for step in jobs["build"]["steps"] if "run" in step]
    assert commands[1:] == [".ci/run", "make dist sbom"]
    assert [name for name, job in jobs.items() if "id-token" in job.get("permissions", {})] == ["publish"]
    assert "secrets." not in (GITHUB / "workflows" / "release.yml").read_text()
    targets = (ROOT / "Makefile").read_text()
    assert all(f"\n{target}: " in targets for target in commands[-1].split()[1:])


def test_the_licence_is_named_alike_everywhere() -> None:
    assert (ROOT / "LICENSE").read_text().split()[:4] == ["Apache", "License", "Version", "2.0,"]
    assert load(ROOT / "CITATION.cff")["license"] == "Apache-2.0"


def test_pre_commit_calls_programs_that_set_up_installed() -> None:
    """And fetches none: every hook is a local one."""
    assert [repository["repo"] for repository in load(ROOT / ".pre-commit-config.yaml")["repos"]] == ["local"]
    assert {hook["language"] for hook in HOOKS} == {"system"}
    targets = (ROOT / "Makefile").read_text()
    for hook in HOOKS:
        entry: list[str] = hook["entry"].split()
        program = entry[0]
        if program == "make":
            assert f"\n{entry[1]}:" in targets
        else:
            assert Path(sys.executable).with_name(Path(program).name).exists(), program


def test_the_changelog_begins_with_the_version_of_the_library() -> None:
    headings = [line for line in (ROOT / "CHANGELOG.md").read_text().splitlines() if line.startswith("## ")]
    assert headings[0].split()[1] == optwrap.__version__


def test_a_new_build_keeps_the_bill_of_materials_and_the_wheels_for_an_image(tmp_path: Path) -> None:
    """`make offline` and then `make sbom`, or the other way round: both build the wheels first."""
    made = tmp_path / "dist"
    for kept in ("optwrap-exporter.cdx.json", "offline/h11-1-py3-none-any.whl"):
        (made / kept).parent.mkdir(parents=True, exist_ok=True)
        (made / kept).touch()
    for old in ("optwrap-0.0.1-py3-none-any.whl", "optwrap-0.0.1.tar.gz"):
        (made / old).touch()
    planned = subprocess.run(["make", "--dry-run", "dist"], cwd=ROOT, capture_output=True, text=True, check=True)
    removals = [line for line in planned.stdout.splitlines() if line.startswith("rm ")]
    # twine takes nothing but wheels and sdists.
    (check,) = (line for line in planned.stdout.splitlines() if "twine check" in line)
    assert check.split()[-2:] == ["dist/*.whl", "dist/*.tar.gz"]
    for removal in removals:
        subprocess.run(["sh", "-c", removal], cwd=tmp_path, check=True)
    assert {path.name for path in made.rglob("*") if path.is_file()} == {
        "optwrap-exporter.cdx.json",
        "h11-1-py3-none-any.whl",
    }
