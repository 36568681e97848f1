"""The paths of the deployment's files, and their contents for tests."""

from pathlib import Path
from typing import Any, Final

import yaml

ROOT: Final = Path(__file__).parent.parent.parent
DEPLOY: Final = ROOT / "deploy"
PROMETHEUS: Final = DEPLOY / "prometheus"
RUNBOOKS: Final = DEPLOY / "runbooks.md"
DASHBOARDS: Final = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))


def load(path: Path) -> Any:
    """The single document of a YAML file."""
    return yaml.safe_load(path.read_text("utf-8"))


def _rules(folder: str) -> list[dict[str, Any]]:
    paths = sorted((PROMETHEUS / folder).glob("*.yml"))
    return [rule for path in paths for group in load(path)["groups"] for rule in group["rules"]]


RULES: Final = _rules("rules")
ALERTS: Final = [rule for rule in RULES if "alert" in rule]
RECORDED: Final = {rule["record"]: rule["expr"] for rule in RULES if "record" in rule}
OPTIONAL: Final = [rule for rule in _rules("optional") if "alert" in rule]
"""Alerts that are not loaded by default."""
TOTALS: Final = {rule["record"]: rule["expr"] for rule in _rules("optional") if "record" in rule}
"""Recorded totals that are not loaded by default."""
