"""The rules of Grafana's dashboard-linter, with its names. `.lint` beside the dashboards has the exclusions.

The linter is a Go program without a package for Python or Debian, so its documented rules are implemented here.
"""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, Final

import promql_parser
import yaml

from tests.deploy.places import DASHBOARDS, DEPLOY
from tests.deploy.promql import nodes, selectors, substituted

Dashboard = dict[str, Any]
Panel = dict[str, Any]

LINT_FILE: Final = DEPLOY / "grafana" / "dashboards" / ".lint"
LOADED: Final[dict[str, Dashboard]] = {path.stem: json.loads(path.read_text("utf-8")) for path in DASHBOARDS}

_UNITS: Final = {"none", "short", "locale", "s", "bytes", "percentunit"}
"""The units of Grafana that the dashboards use, without custom suffixes."""
_RATES: Final = {"rate", "irate", "increase"}
_WITH_UNITS: Final = {"stat", "singlestat", "graph", "table", "timeseries", "gauge"}


def panels(dashboard: Dashboard) -> list[Panel]:
    """The dashboard's panels, without the headings of rows."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def variables(dashboard: Dashboard, kind: str) -> list[dict[str, Any]]:
    """The dashboard's variables of one type."""
    return [variable for variable in dashboard["templating"]["list"] if variable["type"] == kind]


def label_values(query: str) -> tuple[str, str]:
    """The selector and the label in the query of a variable."""
    asked = re.fullmatch(r"label_values\((.+), (\w+)\)", query)
    assert asked is not None, query
    return asked[1], asked[2]


def _template_datasource(dashboard: Dashboard) -> bool:
    found = [(v["name"], v["label"].lower(), v["query"]) for v in variables(dashboard, "datasource")]
    return found == [("datasource", "data source", "prometheus")]


def _template(name: str) -> Callable[[Dashboard], bool]:
    def has(dashboard: Dashboard) -> bool:
        return any(
            (variable["name"], variable["label"].lower(), variable["multi"], variable.get("allValue"))
            == (name, name, True, ".*")
            for variable in variables(dashboard, "query")
        )

    return has


def _template_promql(dashboard: Dashboard) -> bool:
    return all(promql_parser.parse(label_values(v["query"])[0]) for v in variables(dashboard, "query"))


def _template_reload(dashboard: Dashboard) -> bool:
    return all(variable["refresh"] == 2 for variable in variables(dashboard, "query"))


def _units(panel: Panel) -> bool:
    defaults = panel["fieldConfig"]["defaults"]
    return panel["type"] not in _WITH_UNITS or bool(defaults.get("mappings")) or defaults.get("unit") in _UNITS


def _rate_interval(expr: str) -> bool:
    return all(interval == "$__rate_interval" for interval in re.findall(r"\[([^\]]+)\]", expr))


def _matches(label: str) -> Callable[[str], bool]:
    def does(expr: str) -> bool:
        return all(
            any(m.name == label and m.value in {f"${label}", f"(${label})"} for m in selector.matchers.matchers)
            for selector in selectors(expr)
        )

    return does


def _counters_rated(expr: str) -> bool:
    return all(
        any(
            isinstance(outer, promql_parser.Call) and outer.func.name in {"rate", "irate", "increase"}
            for outer in above
        )
        for node, above, _ in nodes(expr)
        if isinstance(node, promql_parser.VectorSelector) and (node.name or "").endswith("_total")
    )


def _parses(expr: str) -> bool:
    return bool(promql_parser.parse(substituted(expr)))


OF_A_DASHBOARD: Final[dict[str, Callable[[Dashboard], bool]]] = {
    "template-datasource-rule": _template_datasource,
    "template-job-rule": _template("job"),
    "template-instance-rule": _template("instance"),
    "template-label-promql-rule": _template_promql,
    "template-on-time-change-reload-rule": _template_reload,
    "uneditable-dashboard": lambda dashboard: dashboard["editable"] is False,
}
OF_A_PANEL: Final[dict[str, Callable[[Panel], bool]]] = {
    "panel-datasource-rule": lambda panel: panel["datasource"]["uid"] in {"$datasource", "${datasource}"},
    "panel-title-description-rule": lambda panel: bool(panel["title"] and panel["description"]),
    "panel-units-rule": _units,
    "panel-no-targets-rule": lambda panel: bool(panel["targets"]),
}
OF_A_TARGET: Final[dict[str, Callable[[str], bool]]] = {
    "target-promql-rule": _parses,
    "target-rate-interval-rule": _rate_interval,
    "target-job-rule": _matches("job"),
    "target-instance-rule": _matches("instance"),
    "target-counter-agg-rule": _counters_rated,
}
RULES: Final = sorted({*OF_A_DASHBOARD, *OF_A_PANEL, *OF_A_TARGET})


def broken(rule: str) -> Iterator[tuple[str, str]]:
    """Where a rule is broken: the titles of the dashboard and the panel (or "")."""
    for dashboard in LOADED.values():
        title = dashboard["title"]
        if rule in OF_A_DASHBOARD:
            if not OF_A_DASHBOARD[rule](dashboard):
                yield title, ""
            continue
        for panel in panels(dashboard):
            if rule in OF_A_PANEL:
                kept = OF_A_PANEL[rule](panel)
            else:
                kept = all(OF_A_TARGET[rule](target["expr"]) for target in panel["targets"])
            if not kept:
                yield title, panel["title"]


def exclusions() -> dict[str, dict[str, Any]]:
    """The exclusions in `.lint`: for each rule the reason, and the entries unless the whole rule is excluded."""
    found: dict[str, dict[str, Any]] = yaml.safe_load(LINT_FILE.read_text("utf-8"))["exclusions"]
    return found
