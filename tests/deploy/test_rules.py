"""Recording rules and alerts, with their promtool tests."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.lint import LOADED, variables
from tests.deploy.places import ALERTS, OPTIONAL, PROMETHEUS, RECORDED, RULES, TOTALS, load
from tests.deploy.promql import unknown, wrong_over_processes

TESTS = sorted((PROMETHEUS / "tests").glob("*.yml"))


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, check=False)


def name(rule: dict[str, Any]) -> str:
    return f"{rule.get('alert') or rule['record']}-{rule.get('labels', {}).get('severity', '')}".rstrip("-")


@pytest.mark.programs("promtool")
def test_prometheus_accepts_the_configuration_and_every_rule_file() -> None:
    """The check follows rule_files, and its linter finds nothing."""
    checked = promtool("check", "config", "--lint-fatal", PROMETHEUS / "prometheus.yml")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{len(ALERTS)} rules found" in checked.stdout
    assert f"{len(RECORDED)} rules found" in checked.stdout
    for name, rules in (("expected", OPTIONAL), ("totals", TOTALS)):
        optional = promtool("check", "rules", "--lint-fatal", PROMETHEUS / "optional" / f"{name}.yml")
        assert optional.returncode == 0, optional.stdout + optional.stderr
        assert f"{len(rules)} rules found" in optional.stdout


@pytest.mark.programs("promtool")
def test_rules_pass_their_promtool_tests() -> None:
    tested = promtool("test", "rules", *TESTS)
    assert tested.returncode == 0, tested.stdout + tested.stderr


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.name)
def test_promtool_evaluates_groups_in_a_fixed_order(path: Path) -> None:
    """In a random order, an alert on a recorded series would sometimes fire one evaluation later."""
    groups = [group["name"] for file in load(path)["rule_files"] for group in load(path.parent / file)["groups"]]
    assert len(groups) == 1 or load(path)["group_eval_order"] == groups


MUTATIONS = {
    "OptwrapProcessStale waits for a resume": (
        "alerts.yml",
        r'(kind="stale"\}\) > 0\n +)for: 5m',
        r"\1for: 1m",
        "a kill and a resume from a checkpoint two minutes later",
    ),
    "an incident that was acknowledged is over": (
        "recording.yml",
        r"max by \(cluster, namespace, run, kind\) \(optwrap_incidents_open\)",
        "max by (cluster, namespace, run, kind) (max_over_time(optwrap_incidents_open[1h]))",
        "a non-finite step that was applied alerts until its incident is closed, and names step, parameter, checkpoint "
        "and page",
    ),
    "what was open stays open while the exporter is down": (
        "recording.yml",
        r"or\n +run_kind:optwrap_incidents_open:max\n.*\n",
        "\n",
        "what was open when the only exporter went down stays open until an exporter says otherwise",
    ),
    "runs of two namespaces are two runs": (
        "alerts.yml",
        r"by \(cluster, namespace, run\) \(run_kind",
        "by (run) (run_kind",
        "runs of the same name in two namespaces have alerts, texts and pages of their own",
    ),
    "a failed run may start again": (
        "alerts.yml",
        r'(kind="failed"\}\) > 0\n +)for: 5m',
        r"\1for: 1m",
        "a failed run alerts after five minutes without a new attempt, and until then a scheduler may start it again",
    ),
    "an old attempt may end late": (
        "alerts.yml",
        r'(kind="conflict"\}\) > 0\n +)for: 2m',
        r"\1for: 0s",
        "two jobs of one name warn after two minutes; an old attempt that ends late does not",
    ),
    "a crash loop makes no progress": (
        "alerts.yml",
        r"unless\n +max_over_time\(run:optwrap_state_steps:max\[15m\]\) >.*\n",
        "\n",
        "a job that starts again and again at the same step is a crash loop; one that gets further each time is not",
    ),
    "one start again is no crash loop": (
        "alerts.yml",
        r"> 2\.5",
        "> 0.5",
        "a job that fails from its first start on is a crash loop within minutes",
    ),
    "what was open stays open when the exporter leaves with its job": (
        "recording.yml",
        r"and on \(cluster, namespace, run\) run_instance_health:.*\n",
        "and on (cluster, namespace, run) run:optwrap_exporters_down:count\n",
        "what was open when the exporter left with its job stays open for an hour, or until another exporter shows the "
        "run",
    ),
    "a run that vanished waits for a scheduler": (
        "alerts.yml",
        r"(live:timestamp - 120\n +)for: 5m",
        r"\1for: 1m",
        "a run that comes back in another pod within five minutes raises no alert, and later the alert ends with its "
        "return",
    ),
    "a run that vanished is remembered for an hour": (
        "recording.yml",
        r"time\(\) - 3600",
        "time() - 1800",
        "a run whose exporters leave while it trains alerts after five minutes, for an hour after it was last seen",
    ),
    "a run that vanished in one cluster is not the one of another": (
        "alerts.yml",
        r"unless on \(cluster, namespace, run\) optwrap_processes_reporting",
        "unless on (run) optwrap_processes_reporting",
        "a run whose exporters leave while it trains alerts after five minutes, for an hour after it was last seen",
    ),
    "an exporter that is up remembers by itself": (
        "recording.yml",
        r"\n +unless on \(cluster, namespace, pod, instance\) up.*",
        "",
        "runs that were finished or forgotten when their exporters left raise no alert",
    ),
    "a run that one host saw finish has not vanished": (
        "alerts.yml",
        r"live:timestamp - 120",
        "live:timestamp",
        "runs that were finished or forgotten when their exporters left raise no alert",
    ),
    "the end of an attempt is not the end of the next": (
        "alerts.yml",
        r"run:optwrap_run_over:timestamp > .*",
        "run:optwrap_run_over:timestamp",
        "an attempt that vanishes alerts, although an earlier one failed in another pod",
    ),
    "an exporter that is down has one alert": (
        "alerts.yml",
        r" +unless on \(cluster, namespace, run\) run:optwrap_exporters_down:count\n",
        "",
        "an exporter that is down has one alert, and if its target goes, the run has vanished",
    ),
    "an exporter that others replace is no reason to wake somebody": (
        "recording.yml",
        r"run:optwrap_exporters_down:count unless on .*",
        "run:optwrap_exporters_down:count",
        "a rack of exporters that goes down warns once for their run, because others still see it",
    ),
    "the alert on a lost exporter outlasts the series": (
        "recording.yml",
        r" +or\n +run_instance_health:optwrap_run_health:timestamp\n +and on .*\n",
        "",
        "a run that trains and whose only exporter is down for two minutes raises a critical alert, for as long as it "
        "is down",
    ),
    "a run that has ended needs no exporter": (
        "recording.yml",
        r'health!~"finished\|(failed\|stopped\|stale"\}\n +and)',
        r'health!~"\1',
        "an exporter without a run that trains warns when it is down, and one that was taken out of the targets does "
        "not",
    ),
    "a pod that starts is refused for a moment": (
        "alerts.yml",
        r"(> 2\n +)for: 10m",
        r"\1for: 1m",
        "reports that are refused for ten minutes warn, by reason and over all exporters",
    ),
    "OptwrapProcessMissing waits for slow hosts of one exporter": (
        "alerts.yml",
        r"(optwrap_processes_missing\) > 0\n +)for: 10m",
        r"\1for: 5m",
        "missing processes alert after ten minutes, where one exporter knows the job",
    ),
    "OptwrapExporterDown waits for a restart": (
        "alerts.yml",
        r'(health!~"finished\|failed\|stopped\|stale"\}\n +\)\n +)for: 2m',
        r"\1for: 0s",
        "an exporter of two processes that restarts on its host",
    ),
    "a streak has at least two calls": (
        "alerts.yml",
        "_count >= 2",
        "_count >= 1",
        "one NaN in a slow job with a low limit",
    ),
    "a high skip ratio needs several skipped steps": (
        "alerts.yml",
        "increase10m >= 5",
        "increase10m >= 0",
        "one NaN in a slow job with a low limit",
    ),
    "a finished run has no streak": (
        "alerts.yml",
        r"finished\|failed\|stopped\|stale",
        "failed",
        "a run that finished during a streak, and then leaves the exporter",
    ),
    "the streak warns at half its limit": (
        "alerts.yml",
        r"0\.5 \*",
        "1.0 *",
        "a streak warns at half its limit and turns critical at the limit",
    ),
    "OptwrapClientDrops uses the increase of the counter": (
        "recording.yml",
        r"increase\((optwrap_run_client_dropped_total)\[15m\]\)",
        r"\1",
        "a kill and a resume from a checkpoint two minutes later",
    ),
    "OptwrapStalled waits for a compilation": (
        "alerts.yml",
        r'(health="stalled"\} == 1\n +\)\n +)for: 10m',
        r"\1for: 1m",
        "a resume that loads and compiles for twelve minutes",
    ),
    "OptwrapStalled needs a first step": (
        "alerts.yml",
        r"time\(\) - optwrap_last_step_timestamp_seconds\n +and ignoring \(health\)\n",
        "\n",
        "a compilation of twenty minutes at the start",
    ),
    "OptwrapProcessMissing waits for slow hosts": (
        "expected.yml",
        r"(timestamp_seconds\)\n +\)\n +> 0\n +)for: 10m",
        r"\1for: 1m",
        "hosts that start within eight minutes",
    ),
    "OptwrapProcessMissing ignores processes that ended": (
        "expected.yml",
        r"optwrap_process_count\n +unless ignoring \(health\)\n.*\n",
        "optwrap_process_count\n",
        "a finished run whose processes leave the exporter one after the other",
    ),
    "OptwrapNormClimbing needs several steps": (
        "alerts.yml",
        "increase10m >= 10",
        "increase10m >= 0",
        "a spike that is the last norm of a slow job for ten minutes",
    ),
    "OptwrapNormClimbing ignores finished runs": (
        "alerts.yml",
        r"and\n +run:optwrap_gradient_norm:max\n",
        "\n",
        "a run that finishes with a high norm",
    ),
    "the ratio of norms needs half an hour": (
        "recording.yml",
        "offset 30m",
        "offset 11m",
        "a norm that rises in the first minutes of training",
    ),
    "the ratio of norms follows a process to another host": (
        "recording.yml",
        r"(optwrap_gradient_norm:max\n +expr: \|\n +max by) \(cluster, namespace, run\)",
        r"\1 (cluster, namespace, run, instance)",
        "the ratio of norms follows a process to another exporter, and needs half an hour",
    ),
    "the norm ignores stale processes": (
        "recording.yml",
        r"(optwrap_gradient_norm)\n +unless ignoring \(health\)\n.*\n",
        r"\1\n",
        "the last norm of a stale process does not count",
    ),
    "steps of several processes count once": (
        "recording.yml",
        r"max by \(cluster, namespace, run\) \(rate\(optwrap_run_steps_total",
        "sum by (cluster, namespace, run) (rate(optwrap_run_steps_total",
        "processes that report the same global counts are not summed",
    ),
    "the rate is taken before the aggregation": (
        "recording.yml",
        r"max by \(cluster, namespace, run\) \(rate\(optwrap_run_steps_total\[5m\]\)\)",
        "rate(max by (run) (optwrap_run_steps_total)[5m:])",
        "a rate does not change when the process with the largest counter goes",
    ),
    "the skip ratio needs a step": (
        "recording.yml",
        r"\[10m\]\) > 0",
        "[10m]) >= 0",
        "a run without steps has no skip ratio",
    ),
}


@pytest.mark.programs("promtool")
@pytest.mark.thin(3)
@pytest.mark.parametrize(("file", "pattern", "replacement", "case"), MUTATIONS.values(), ids=MUTATIONS.keys())
def test_promtool_tests_detect_a_wrong_rule(
    file: str, pattern: str, replacement: str, case: str, tmp_path: Path
) -> None:
    """A rule with a deliberate mistake fails the promtool test that covers it."""
    for folder in ("rules", "optional"):
        shutil.copytree(PROMETHEUS / folder, tmp_path / folder)
    (changed,) = tmp_path.glob(f"*/{file}")
    text, times = re.subn(pattern, replacement, changed.read_text("utf-8"))
    assert times, "the rule has changed: update this pattern"
    changed.write_text(text, "utf-8")
    assert promtool("check", "rules", changed).returncode == 0, "the changed rule must be valid"
    (alone,) = [
        document | {"tests": [found]}
        for document in map(load, TESTS)
        for found in document["tests"]
        if found["name"] == case
    ]
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "case.yml").write_text(yaml.safe_dump(alone), "utf-8")
    tested = promtool("test", "rules", tmp_path / "tests" / "case.yml")
    assert tested.returncode == 1, tested.stdout


@pytest.mark.parametrize("rule", RULES + OPTIONAL, ids=name)
def test_rule_uses_only_known_metrics(rule: dict[str, Any]) -> None:
    assert unknown(rule["expr"], set(RECORDED)) == []


@pytest.mark.parametrize("rule", RULES + OPTIONAL, ids=name)
def test_rule_takes_the_rate_of_each_process_before_it_aggregates(rule: dict[str, Any]) -> None:
    assert wrong_over_processes(rule["expr"]) == []


@pytest.mark.parametrize("expr", TOTALS.values(), ids=TOTALS.keys())
def test_totals_use_only_known_metrics_and_count_no_step_twice(expr: str) -> None:
    """A total is the largest raw counter, or that of process 0, summed up over its places."""
    assert unknown(expr, set(TOTALS)) == []
    assert wrong_over_processes(expr, shown=True) == []


@pytest.mark.parametrize("expr", [rule["expr"] for rule in RULES + OPTIONAL] + list(TOTALS.values()))
def test_rule_keeps_runs_of_two_clusters_or_namespaces_apart(expr: str) -> None:
    """Every aggregation and every join over other labels keeps both labels, and those of an exporter also its pod.

    An address of the inside of a cluster may be given again soon, and another cluster may have it, too.
    """
    for by in re.findall(r"\b(?:by|on) \(([^)]*)\)", expr):
        labels = set(by.split(", "))
        assert {"cluster", "namespace"} <= labels, expr
        assert "instance" not in labels or "pod" in labels, expr


@pytest.mark.parametrize("alert", ALERTS + OPTIONAL, ids=name)
def test_alert_has_subject_value_severity_and_links(alert: dict[str, Any]) -> None:
    """The summary names the run, or the instance of an exporter, and has a value."""
    assert alert["labels"]["severity"] in {"warning", "critical"}
    assert {"for", "keep_firing_for"} <= set(alert)
    summary = alert["annotations"]["summary"]
    assert "$labels." in summary or alert["alert"] == "OptwrapAbsent"
    assert "$value" in summary or "| query }}" in summary
    assert alert["annotations"]["description"]
    assert alert["annotations"]["runbook_url"] == f"{{{{ $externalURL }}}}/consoles/runbooks.html#{alert['alert']}"
    link = re.fullmatch(r"http://localhost:3000/d/([\w-]+)(\?.*)?", alert["annotations"]["dashboard_url"])
    assert link is not None
    chosen = {variable["name"] for variable in variables(LOADED[link[1]], "query")}
    assert set(re.findall(r"var-(\w+)=\{\{ \$labels\.\1 \}\}", link[2] or "")) <= chosen
    assert (link[2] or "").count("var-") == len(re.findall(r"var-(\w+)=\{\{ \$labels\.\1 \}\}", link[2] or ""))


@pytest.mark.parametrize("alert", ALERTS, ids=name)
def test_alert_links_the_page_of_an_exporter(alert: dict[str, Any]) -> None:
    """Its run on the page of an exporter that knows it, or the exporter's page."""
    page = alert["annotations"]["page_url"]
    assert "http://{{" in page
    if alert["annotations"]["summary"].startswith("{{ $labels.run }}: "):
        assert "/?run={{ $labels.run }}" in page


@pytest.mark.parametrize("alert", ALERTS + OPTIONAL, ids=name)
def test_annotations_ask_for_known_metrics_of_this_run_alone(alert: dict[str, Any]) -> None:
    """Every query in a template selects by the alert's own labels, so that another run's value is never shown."""
    for text in alert["annotations"].values():
        asked = re.findall(r'printf "([^"]*)" ([^|}]*)\| query', text)
        assert text.count("| query") == len(asked), text
        for expr, arguments in asked:
            given = re.findall(r"\$labels\.(\w+)", arguments)
            assert expr.count("%s") == len(given)
            assert re.findall(r"(\w+)='%s'", expr) == given
            assert {"cluster", "namespace"} <= set(given)
            assert unknown(expr.replace("outcome='%s'", "outcome='busy'"), set(RECORDED)) == []


@pytest.mark.parametrize("alert", sorted({alert["alert"] for alert in ALERTS + OPTIONAL}))
def test_promtool_tests_cover_firing_and_not_firing(alert: str) -> None:
    expected = [
        bool(case["exp_alerts"])
        for path in TESTS
        for group in load(path)["tests"]
        for case in group.get("alert_rule_test", [])
        if case["alertname"] == alert
    ]
    assert set(expected) == {True, False}


@pytest.mark.programs("amtool")
def test_alertmanager_routes_only_critical_alerts_to_wake() -> None:
    file = PROMETHEUS.parent / "alertmanager" / "alertmanager.yml"
    checked = subprocess.run(["amtool", "check-config", file], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    for severity, receiver in (("critical", "wake"), ("warning", "read")):
        routed = subprocess.run(
            ["amtool", "config", "routes", "test", f"--config.file={file}", f"severity={severity}", "run=lm"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert routed.stdout.split() == [receiver]
