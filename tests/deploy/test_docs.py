"""What docs/guides/operating.md and deploy/README.md tell an operator to write, to run and to look at is right."""

import re
import shlex
import subprocess
from pathlib import Path
from typing import Final

import click
import pytest
import yaml
from optwrap_exporter.cli import main

from tests.deploy.places import ALERTS, DEPLOY, ROOT, load

OPERATING: Final = ROOT / "docs" / "guides" / "operating.md"
TEXTS: Final = [OPERATING, DEPLOY / "README.md", DEPLOY / "runbooks.md"]


def blocks(path: Path, language: str) -> list[str]:
    """The fenced code blocks of one language."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", path.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", text, flags=re.MULTILINE) for indent, text in found]


YAML: Final = {next(iter(yaml.safe_load(text))): text for text in blocks(OPERATING, "yaml")}
COMMANDS: Final = [
    line for text in blocks(OPERATING, "console") for line in text.replace("\\\n", "").splitlines() if line.strip()
]


def test_there_is_a_snippet_for_each_file_that_an_operator_writes() -> None:
    assert set(YAML) == {"services", "receivers", "scrape_configs"}


def test_the_alerts_are_listed_with_their_severities_and_how_long_they_wait() -> None:
    listed = re.findall(r"^\| (Optwrap\w+) \| (\w+) \| ([\w ]+) \|", OPERATING.read_text("utf-8"), re.MULTILINE)
    assert listed == [
        (alert["alert"], alert["labels"]["severity"], alert["for"].replace("0s", "at once")) for alert in ALERTS
    ]


@pytest.mark.programs("promtool")
def test_prometheus_takes_the_scrape_configuration(tmp_path: Path) -> None:
    file = tmp_path / "prometheus.yml"
    file.write_text(YAML["scrape_configs"])
    checked = subprocess.run(["promtool", "check", "config", file], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    assert yaml.safe_load(YAML["scrape_configs"])["scrape_configs"][0]["job_name"] == "optwrap"


@pytest.mark.programs("amtool")
def test_alertmanager_takes_the_receivers_in_place_of_its_own(tmp_path: Path) -> None:
    configuration = load(DEPLOY / "alertmanager" / "alertmanager.yml")
    receivers = yaml.safe_load(YAML["receivers"])
    assert [r["name"] for r in configuration["receivers"]] == [r["name"] for r in receivers["receivers"]]
    file = tmp_path / "alertmanager.yml"
    file.write_text(yaml.safe_dump(configuration | receivers))
    checked = subprocess.run(["amtool", "check-config", file], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_ones_own_trainer_is_set_up_as_the_demos_is() -> None:
    (trainer,) = yaml.safe_load(YAML["services"])["services"].values()
    demo = load(DEPLOY / "compose.yaml")["services"]["trainer"]
    assert trainer["volumes"] == demo["volumes"]
    assert trainer["depends_on"] == demo["depends_on"]
    assert trainer["environment"]["OPTWRAP_ENDPOINT"] in demo["command"]


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith("optwrap-exporter")])
def test_the_exporter_has_the_options_that_are_given(command: str) -> None:
    context = main.make_context("optwrap-exporter", shlex.split(command)[1:], resilient_parsing=False)
    assert isinstance(context, click.Context)


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith("docker compose")])
def test_compose_is_asked_for_services_that_there_are(command: str) -> None:
    words = shlex.split(command)
    assert (ROOT / words[words.index("--file") + 1]).exists()
    services = set(load(DEPLOY / "compose.yaml")["services"])
    rest = [word for word in words[words.index("--file") + 3 :] if not word.startswith("-") and word not in {"HUP"}]
    assert not rest or rest[0] in services


def test_the_links_of_alerts_can_be_changed_as_told() -> None:
    """The sed command leaves no link of the old form behind."""
    (command,) = [shlex.split(text) for text in blocks(OPERATING, "console") if text.startswith("sed ")]
    rules = (DEPLOY / "prometheus" / "rules" / "alerts.yml").read_text("utf-8")
    changed = subprocess.run(["sed", command[2]], input=rules, capture_output=True, text=True, check=True).stdout
    annotations = [rule["annotations"] for group in yaml.safe_load(changed)["groups"] for rule in group["rules"]]
    assert annotations
    assert all(told["runbook_url"].startswith("https://wiki.example.com/optwrap#") for told in annotations)
    assert all(told["dashboard_url"].startswith("https://grafana.example.com/d/") for told in annotations)


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_what_is_linked_or_named_is_there(path: Path) -> None:
    text = path.read_text("utf-8")
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text)]
    assert [link for link in links if link and not (path.parent / link).exists()] == []
    assert [name for name in re.findall(r"`(deploy/[\w./-]+)`", text) if not (ROOT / name).exists()] == []


def test_the_overview_names_every_file_of_the_folder() -> None:
    rows = re.findall(r"^\| `([^`]+)` \|", (DEPLOY / "README.md").read_text("utf-8"), re.MULTILINE)
    assert [row for row in rows if not (list(DEPLOY.glob(row)) if "*" in row else (DEPLOY / row).exists())] == []
    told = {row.split("/")[0] for row in rows}
    hidden = {"__init__.py", "__pycache__", "README.md", "runbooks.py"}
    assert {entry.name for entry in DEPLOY.iterdir()} - hidden <= told
