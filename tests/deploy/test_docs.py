"""The commands, files and links in docs/guides/operating.md, deploy/README.md and the runbooks are valid."""

import grp
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Final

import click
import pytest
import yaml
from optwrap_exporter.cli.main import main

from tests.deploy.places import ALERTS, DEPLOY, OPTIONAL, ROOT, load

OPERATING: Final = ROOT / "docs" / "guides" / "operating.md"
TEXTS: Final = [OPERATING, OPERATING.with_name("kubernetes.md"), DEPLOY / "README.md", DEPLOY / "runbooks.md"]


def blocks(path: Path, language: str) -> list[str]:
    """The fenced code blocks of one language."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", path.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", text, flags=re.MULTILINE) for indent, text in found]


YAML: Final = {next(iter(yaml.safe_load(text))): text for text in blocks(OPERATING, "yaml")}
COMMANDS: Final = [
    line for text in blocks(OPERATING, "console") for line in text.replace("\\\n", "").splitlines() if line.strip()
]


def test_operating_guide_has_these_snippets() -> None:
    assert set(YAML) == {"services", "receivers", "scrape_configs"}


def test_operating_guide_lists_all_alerts() -> None:
    listed = re.findall(r"^\| (Optwrap\w+) \| (\w+) \| ([\w ]+) \|", OPERATING.read_text("utf-8"), re.MULTILINE)
    assert listed == [
        (alert["alert"], alert["labels"]["severity"], alert["for"].replace("0s", "at once"))
        for alert in ALERTS + OPTIONAL
    ]


@pytest.mark.programs("promtool")
def test_prometheus_accepts_the_scrape_configuration(tmp_path: Path) -> None:
    file = tmp_path / "prometheus.yml"
    file.write_text(YAML["scrape_configs"])
    checked = subprocess.run(["promtool", "check", "config", file], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    assert yaml.safe_load(YAML["scrape_configs"])["scrape_configs"][0]["job_name"] == "optwrap"


@pytest.mark.programs("amtool")
def test_alertmanager_accepts_the_receivers(tmp_path: Path) -> None:
    configuration = load(DEPLOY / "alertmanager" / "alertmanager.yml")
    receivers = yaml.safe_load(YAML["receivers"])
    assert [r["name"] for r in configuration["receivers"]] == [r["name"] for r in receivers["receivers"]]
    file = tmp_path / "alertmanager.yml"
    file.write_text(yaml.safe_dump(configuration | receivers))
    checked = subprocess.run(["amtool", "check-config", file], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_own_trainer_is_configured_like_the_demo() -> None:
    (trainer,) = yaml.safe_load(YAML["services"])["services"].values()
    demo = load(DEPLOY / "compose.yaml")["services"]["trainer"]
    assert trainer["volumes"] == demo["volumes"]
    assert trainer["depends_on"] == demo["depends_on"]
    assert trainer["environment"]["OPTWRAP_ENDPOINT"] in demo["command"]


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith("optwrap-exporter")])
def test_exporter_accepts_the_options(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grp, "getgrnam", lambda _: grp.getgrgid(os.getgid()))
    token = tmp_path / "token"
    token.write_text("0123456789abcdef\n")
    words = [str(token) if word == "/etc/optwrap/token" else word for word in shlex.split(command)]
    context = main.make_context("optwrap-exporter", words[1:], resilient_parsing=False)
    assert isinstance(context, click.Context)


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith("docker compose")])
def test_compose_commands_name_existing_services(command: str) -> None:
    words = shlex.split(command)
    assert (ROOT / words[words.index("--file") + 1]).exists()
    services = set(load(DEPLOY / "compose.yaml")["services"])
    rest = [word for word in words[words.index("--file") + 3 :] if not word.startswith("-") and word not in {"HUP"}]
    assert not rest or rest[0] in services


def test_sed_command_changes_all_links_of_alerts() -> None:
    """No link has its old address after the command."""
    (command,) = [shlex.split(text) for text in blocks(OPERATING, "console") if text.startswith("sed ")]
    rules = (DEPLOY / "prometheus" / "rules" / "alerts.yml").read_text("utf-8")
    changed = subprocess.run(["sed", command[2]], input=rules, capture_output=True, text=True, check=True).stdout
    annotations = [rule["annotations"] for group in yaml.safe_load(changed)["groups"] for rule in group["rules"]]
    assert annotations
    assert all(each["runbook_url"].startswith("https://wiki.example.com/optwrap#") for each in annotations)
    assert all(each["dashboard_url"].startswith("https://grafana.example.com/d/") for each in annotations)


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_links_and_named_files_exist(path: Path) -> None:
    text = path.read_text("utf-8")
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text)]
    assert [link for link in links if link and not (path.parent / link).exists()] == []
    assert [name for name in re.findall(r"`(deploy/[\w./-]+)`", text) if not (ROOT / name).exists()] == []


def test_readme_names_every_file_of_the_folder() -> None:
    rows = re.findall(r"^\| `([^`]+)` \|", (DEPLOY / "README.md").read_text("utf-8"), re.MULTILINE)
    assert [row for row in rows if not (list(DEPLOY.glob(row)) if "*" in row else (DEPLOY / row).exists())] == []
    named = {row.split("/")[0] for row in rows}
    hidden = {"__init__.py", "__pycache__", "README.md", "runbooks.py"}
    assert {entry.name for entry in DEPLOY.iterdir()} - hidden <= named
