"""The committed dashboards equal the generated ones, and follow the rules for dashboards."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from optwrap_exporter.wire.vocabulary import HEALTHS

from deploy import build
from deploy.build import generate
from deploy.grafana import board
from deploy.grafana.queries import HEALTH, gained
from tests.deploy import lint
from tests.deploy.lint import LOADED
from tests.deploy.places import ALERTS, DASHBOARDS, PROMETHEUS, RECORDED, load
from tests.deploy.promql import SERIES, merged_runs, selectors, substituted, unknown, words, wrong_over_processes

PANELS = [
    pytest.param(panel, id=f"{uid}-{panel['title']}")
    for uid, dashboard in LOADED.items()
    for panel in lint.panels(dashboard)
]
ANNOTATIONS = [
    pytest.param(annotation, id=f"{uid}-{annotation['name']}")
    for uid, dashboard in LOADED.items()
    for annotation in dashboard["annotations"]["list"]
]
WIDTH = 24


def targets(panel: dict[str, Any]) -> list[str]:
    return [target["expr"] for target in panel["targets"]]


def test_committed_files_are_up_to_date() -> None:
    made = generate()
    assert {path: path.read_text("utf-8") for path in made} == dict(made)
    assert {path for path in made if path.suffix == ".json"} == set(DASHBOARDS)


def test_check_names_outdated_files_and_writes_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With another address of the page, the committed dashboards are outdated."""
    before = {path: path.read_bytes() for path in generate()}
    monkeypatch.setattr(board, "PAGE_URL", "https://")
    monkeypatch.setattr(sys, "argv", ["deploy.build", "--check"])
    assert build.main() == 1
    assert capsys.readouterr().err.splitlines() == [
        f"deploy/grafana/dashboards/optwrap-{name}.json is not up to date: run `python -m deploy.build`"
        for name in ("runs", "run", "exporters")
    ]
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_dashboard_can_be_provisioned_anywhere(path: Path) -> None:
    """It is classic JSON with a uid, a variable data source, and a shared crosshair."""
    dashboard = LOADED[path.stem]
    assert dashboard["schemaVersion"] == 41
    assert dashboard["uid"] == path.stem
    assert "id" not in dashboard
    assert dashboard["graphTooltip"] == 1
    assert dashboard["tags"] == ["optwrap"]
    assert dashboard["description"]
    found = lint.variables(dashboard, "query")
    own = {"optwrap-exporters": ["instance"], "optwrap-run": ["run", "exporter"]}.get(path.stem, ["run"])
    assert [variable["name"] for variable in found] == ["cluster", "namespace", *own]
    for variable in found:
        # "All" is ".*", which also selects series without the label.
        several = variable["name"] not in own or path.stem != "optwrap-run"
        assert variable["datasource"]["uid"] == "${datasource}"
        assert variable["multi"] == variable["includeAll"] == several
        assert variable.get("allValue") == (".*" if several else None)
    assert set(re.findall(r'"uid": "([^"]*)"', path.read_text("utf-8"))) == {dashboard["uid"], "${datasource}"}


@pytest.mark.parametrize("uid", LOADED)
def test_dashboard_can_be_edited_and_asks_not_more_often_than_prometheus_scrapes(uid: str) -> None:
    dashboard = LOADED[uid]
    assert dashboard["editable"]
    seconds = {"s": 1, "m": 60, "h": 3600}
    offered = dashboard["timepicker"]["refresh_intervals"]
    assert dashboard["refresh"] in offered
    scraped = load(PROMETHEUS / "prometheus.yml")["global"]["scrape_interval"]
    least, *asked = (int(text[:-1]) * seconds[text[-1]] for text in (scraped, *offered))
    assert min(asked) >= least


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_panels_have_unique_ids_and_do_not_overlap(path: Path) -> None:
    panels = LOADED[path.stem]["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        assert "panels" not in panel or panel["panels"] == [], "the panels of an open row must follow it"
        at = panel["gridPos"]
        cells = {(at["x"] + dx, at["y"] + dy) for dx in range(at["w"]) for dy in range(at["h"])}
        assert not cells & taken, f"{panel['title']} lies on another panel"
        assert at["x"] + at["w"] <= WIDTH
        taken |= cells


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_titles_are_unique(path: Path) -> None:
    titles = [panel["title"] for panel in LOADED[path.stem]["panels"]]
    assert len(set(titles)) == len(titles)


@pytest.mark.parametrize("panel", PANELS)
def test_panel_has_a_description_and_a_unit(panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert len(panel["description"]) > 20
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert all(target["datasource"] == panel["datasource"] for target in panel["targets"])
    if panel["type"] == "table":
        columns = {
            override["matcher"]["options"]: override["properties"] for override in panel["fieldConfig"]["overrides"]
        }
        renamed = panel["transformations"][-1]["options"]["renameByName"]
        configured = {
            heading for heading, properties in columns.items() if {p["id"] for p in properties} & {"unit", "mappings"}
        }
        assert {heading for name, heading in renamed.items() if name.startswith("Value")} <= configured
    else:
        assert panel["fieldConfig"]["defaults"]["unit"]
    if panel["type"] != "table" and len(panel["targets"]) > 1:
        assert all(target["legendFormat"] != "__auto" for target in panel["targets"]), "two series need names"


@pytest.mark.parametrize("panel", PANELS)
def test_panel_uses_only_known_metrics(panel: dict[str, Any]) -> None:
    assert [wrong for expr in targets(panel) for wrong in unknown(expr, set(RECORDED))] == []
    assert words(panel["description"]) - set(SERIES) == set()


@pytest.mark.parametrize("panel", PANELS)
def test_panel_needs_no_recording_rule(panel: dict[str, Any]) -> None:
    """The dashboards also work in a Prometheus without the rules."""
    assert not [name for name in RECORDED for expr in targets(panel) if name in expr]


@pytest.mark.parametrize("panel", PANELS)
def test_panel_selects_cluster_and_namespace(panel: dict[str, Any]) -> None:
    """Runs of one name in two namespaces are two runs. The ranks of healths are the same everywhere."""
    for expr in targets(panel):
        chosen = [
            {"cluster", "namespace"} <= {matcher.name for matcher in selector.matchers.matchers}
            for selector in selectors(expr)
            if selector.name != "optwrap_exporter_health_rank"
        ]
        assert all(chosen) or (any(chosen) and "on (cluster, namespace, job, instance)" in expr), expr


@pytest.mark.parametrize("panel", PANELS)
def test_panel_aggregates_over_processes_correctly(panel: dict[str, Any]) -> None:
    assert [wrong for expr in targets(panel) for wrong in wrong_over_processes(expr, shown=True)] == []


@pytest.mark.parametrize("panel", PANELS + ANNOTATIONS)
def test_runs_of_one_name_and_exporters_of_one_address_in_two_places_stay_two(panel: dict[str, Any]) -> None:
    """The first aggregation over the series of a run keeps its cluster and namespace, as the rules do.

    Where a panel of one run has a legend, it names both. So does a table, and that has no other key.
    """
    for expr in targets(panel) if "targets" in panel else [panel["expr"]]:
        assert merged_runs(expr) == []
        for by in re.findall(r"\b(?:by|on) \(([^)]*)\)", expr):
            if {"run", "instance"} & set(by.split(", ")):
                assert {"cluster", "namespace"} <= set(by.split(", ")), expr
    for target in panel.get("targets", []):
        by = re.search(r"\bby \(([^)]*)\)", target["expr"])
        kept = by is not None and "cluster" in by[1]
        if kept and panel["type"] == "table":
            assert panel["transformations"][0]["id"] == "merge"
            shown = panel["transformations"][-1]["options"]["indexByName"]
            assert {"cluster", "namespace"} <= set(shown)
        elif kept and target["legendFormat"] != "__auto":
            assert {"{{cluster}}", "{{namespace}}"} <= set(re.findall(r"{{\w+}}", target["legendFormat"]))


@pytest.mark.parametrize("panel", PANELS)
def test_rates_use_grafanas_rate_interval(panel: dict[str, Any]) -> None:
    """A fixed range fails with a long scrape interval, and misses changes with a long query step."""
    for expr in targets(panel):
        assert re.findall(r"\[([^\]]*)\]", expr) == ["$__rate_interval"] * expr.count("[")


def test_healths_have_the_exporters_names_and_order() -> None:
    """Worst last. "finished" comes first, because a run is finished only if all its processes are."""
    worst_last = [health for health in reversed(HEALTHS) if health != "finished"]
    assert [name for name, _ in HEALTH] == ["finished", *worst_last]


@pytest.mark.parametrize("annotation", ANNOTATIONS)
def test_annotation_follows_the_rules_of_panels(annotation: dict[str, Any]) -> None:
    expr = annotation["expr"]
    assert unknown(expr, set()) == []
    assert wrong_over_processes(expr, shown=True) == []
    assert re.findall(r"\[([^\]]*)\]", expr) == ["$__rate_interval"] * expr.count("[")
    assert annotation["datasource"]["uid"] == "${datasource}"
    assert annotation["textFormat"]


def test_dashboards_of_runs_mark_streaks_and_restarts() -> None:
    for uid in ("optwrap-runs", "optwrap-run"):
        assert [annotation["name"] for annotation in LOADED[uid]["annotations"]["list"]] == ["Streaks", "Restarts"]


@pytest.mark.parametrize("rule", lint.RULES)
def test_linter_rule_is_followed_or_excluded_with_a_reason(rule: str) -> None:
    """The exclusions in `.lint` are exactly the broken rules."""
    left_out = lint.exclusions().get(rule)
    broken = list(lint.broken(rule))
    if left_out is None:
        assert broken == []
        return
    assert len(left_out["reason"]) > 20
    if "entries" in left_out:
        assert {(entry["dashboard"], entry["panel"]) for entry in left_out["entries"]} == set(broken)
    else:
        assert broken


def test_excluded_rules_exist() -> None:
    assert set(lint.exclusions()) <= set(lint.RULES)


@pytest.mark.parametrize("uid", LOADED)
def test_dashboard_links_the_others_the_page_and_the_runbooks(uid: str) -> None:
    dashboard = LOADED[uid]
    others, *pages, runbooks = dashboard["links"]
    assert (others["type"], others["tags"], others["keepTime"]) == ("dashboards", dashboard["tags"], True)
    top = ["${page_url}${exporter}/?run=${run}"] if uid == "optwrap-run" else []
    assert [page["url"] for page in pages] == top
    assert runbooks["url"] == "${runbooks}"
    values = {variable["name"]: variable["query"] for variable in lint.variables(dashboard, "textbox")}
    assert values["page_url"] == "http://"
    served = (
        ALERTS[0]["annotations"]["runbook_url"].split("#")[0].replace("{{ $externalURL }}", "http://localhost:9090")
    )
    assert values["runbooks"] == served


def links_of(uid: str, title: str) -> dict[str, list[str]]:
    """The links of a table's columns, by heading."""
    (table,) = [panel for panel in lint.panels(LOADED[uid]) if panel["title"] == title]
    return {
        column["matcher"]["options"]: [link["url"] for link in found["value"]]
        for column in table["fieldConfig"]["overrides"]
        for found in column["properties"]
        if found["id"] == "links"
    }


def test_rows_link_the_page_of_the_exporter_that_they_are_of() -> None:
    """By the instance label, and where the row is of a run, that run in its cluster and namespace."""
    page = "${page_url}${__data.fields.instance}/"
    runs = links_of("optwrap-runs", "All runs")
    assert runs["Run"][0].startswith(
        "/d/optwrap-run?var-run=${__data.fields.run}&var-cluster=${__data.fields.cluster}"
        "&var-namespace=${__data.fields.namespace}&"
    )
    assert links_of("optwrap-runs", "Firing alerts") == {"Run": runs["Run"]}
    assert runs["Exporter"] == [page + "?run=${__data.fields.run}"]
    assert links_of("optwrap-run", "Processes") == {"Exporter": [page + "?run=${run}"]}
    assert links_of("optwrap-run", "Incidents that are open") == {"Exporter": [page + "?run=${run}"]}
    assert links_of("optwrap-exporters", "All exporters") == {"Exporter": [page]}
    for uid, dashboard in LOADED.items():
        for panel in lint.panels(dashboard):
            if "Exporter" in links_of(uid, panel["title"]):
                assert {"instance", "pod", "node"} <= set(panel["transformations"][-1]["options"]["indexByName"])


@pytest.mark.programs("promtool")
def test_steps_in_the_time_range_are_right_whether_a_new_pod_found_the_old_store_or_not(tmp_path: Path) -> None:
    """Half an hour ago the counters were at 100. What has counted nothing is left out."""
    expr = substituted(gained("optwrap_run_parameter_not_finite_steps_total", "parameter"))
    series = {
        'parameter="kept", instance="old"': "100x40 stale",
        'parameter="kept", instance="new"': "_x50 100x5 103x20",
        'parameter="lost", instance="old"': "100x40 stale",
        'parameter="lost", instance="new"': "_x50 0x5 3x20",
        'parameter="began", instance="new"': "_x50 7x25",
        'parameter="other", instance="new"': "_x50 0x25",
        'parameter="began", instance="new", namespace="b"': "_x50 9x25",
    }
    case = {
        "interval": "1m",
        "input_series": [
            {"series": f'optwrap_run_parameter_not_finite_steps_total{{run="lm", {labels}}}', "values": values}
            for labels, values in series.items()
        ],
        "promql_expr_test": [
            {
                "expr": expr,
                "eval_time": "60m",
                "exp_samples": [
                    {"labels": labels, "value": value}
                    for labels, value in (
                        ('{parameter="kept"}', 3),
                        ('{parameter="lost"}', 3),
                        ('{parameter="began"}', 7),
                        ('{parameter="began", namespace="b"}', 9),
                    )
                ],
            }
        ],
    }
    (tmp_path / "case.yml").write_text(yaml.safe_dump({"tests": [case]}), "utf-8")
    tested = subprocess.run(
        ["promtool", "test", "rules", tmp_path / "case.yml"], capture_output=True, text=True, check=False
    )
    assert tested.returncode == 0, tested.stdout + tested.stderr


@pytest.mark.parametrize(
    ("uid", "title"),
    [
        ("optwrap-runs", "Steps lost by reason"),
        ("optwrap-run", "Steps lost by reason"),
        ("optwrap-run", "Time lost"),
    ],
)
def test_reasons_that_lost_nothing_are_left_out(uid: str, title: str) -> None:
    """The steps of a starved run may all be lost as skipped: "starved 0" would deny its health."""
    (panel,) = [panel for panel in lint.panels(LOADED[uid]) if panel["title"] == title]
    assert all(expr.endswith(" > 0") for expr in targets(panel))


def test_dashboards_show_every_metric() -> None:
    """Each metric is in some panel, except these four, and the counters of processes: panels show those of the run."""
    asked = {
        name
        for dashboard in LOADED.values()
        for panel in lint.panels(dashboard)
        for expr in targets(panel)
        for name in SERIES
        if name in substituted(expr)
    }
    left_out = {"optwrap_exporter_scrape_duration_seconds_sum", "optwrap_exporter_scrape_duration_seconds_count"}
    left_out |= {name for name in SERIES if name.replace("optwrap_", "optwrap_run_", 1) in SERIES}
    left_out -= {"optwrap_process_health", "optwrap_replica_not_finite_steps_total"}
    assert set(SERIES) - asked == left_out | {"optwrap_last_step_timestamp_seconds", "optwrap_process_count"}
