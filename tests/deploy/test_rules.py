"""Recording rules, alerts, their own tests, and their runbooks belong together."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.runbooks import page, slug
from tests.deploy.lint import LOADED, variables
from tests.deploy.places import ALERTS, PROMETHEUS, RECORDED, RULES, RUNBOOKS, load
from tests.deploy.promql import SERIES, unknown, words, wrong_over_processes

TESTS = sorted((PROMETHEUS / "tests").glob("*.yml"))
HEADINGS = re.findall(r"^## (.+)$", RUNBOOKS.read_text("utf-8"), re.MULTILINE)


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, check=False)


def name(rule: dict[str, Any]) -> str:
    return f"{rule.get('alert') or rule['record']}-{rule.get('labels', {}).get('severity', '')}".rstrip("-")


@pytest.mark.programs("promtool")
def test_prometheus_takes_the_configuration_and_every_rule_file() -> None:
    """It follows rule_files from the configuration, and its linter has nothing to say."""
    checked = promtool("check", "config", "--lint-fatal", PROMETHEUS / "prometheus.yml")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{len(ALERTS)} rules found" in checked.stdout
    assert f"{len(RECORDED)} rules found" in checked.stdout


@pytest.mark.programs("promtool")
def test_the_rules_pass_their_own_tests() -> None:
    tested = promtool("test", "rules", *TESTS)
    assert tested.returncode == 0, tested.stdout + tested.stderr


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.name)
def test_promtool_is_told_in_which_order_to_evaluate(path: Path) -> None:
    """Otherwise it draws one, and an alert on a recorded series comes an evaluation later in some runs."""
    groups = [group["name"] for file in load(path)["rule_files"] for group in load(path.parent / file)["groups"]]
    assert len(groups) == 1 or load(path)["group_eval_order"] == groups


MUTATIONS = {
    "a resume pages when a lost process is not waited for": (
        "alerts.yml",
        r'(health="stale"\}\) > 0\)\n +)for: 5m',
        r"\1for: 1m",
        "a kill and a resume from a checkpoint two minutes later",
    ),
    "a restart pages when a lost exporter is not waited for": (
        "alerts.yml",
        r'(up\{job="optwrap"\} == 0\n +)for: 2m',
        r"\1for: 0s",
        "an exporter that restarts where it is, at two of a job's processes",
    ),
    "one NaN warns when one call is a streak": (
        "alerts.yml",
        "_count >= 2",
        "_count >= 1",
        "one isolated NaN, even in a slow job with a low limit",
    ),
    "one NaN in a slow job warns when no number is asked for": (
        "alerts.yml",
        "increase10m >= 5",
        "increase10m >= 0",
        "one isolated NaN, even in a slow job with a low limit",
    ),
    "a finished run warns when its last word is taken for the present": (
        "alerts.yml",
        r"finished\|failed\|stale",
        "failed",
        "a run that finished, with a streak as its last word, and then goes from the exporter",
    ),
    "a resume pages when what a run once let through counts": (
        "alerts.yml",
        r"increase\((optwrap_accepted_not_finite_steps_total)\[5m\]\)",
        r"\1",
        "a kill and a resume from a checkpoint two minutes later",
    ),
    "a run that gave up early goes unseen without the exporter's verdict": (
        "alerts.yml",
        r'health="gave_up"',
        r'health="ok"',
        "a run that gave up before the first scrape pages all the same",
    ),
    "half the limit is not enough when the whole is asked for": (
        "alerts.yml",
        r"0\.5 \*",
        "1.0 *",
        "a streak warns at half its limit and turns critical at the limit",
    ),
    "drops of long ago warn when the counter itself is asked": (
        "recording.yml",
        r"increase\((optwrap_client_dropped_total)\[15m\]\)",
        r"\1",
        "a kill and a resume from a checkpoint two minutes later",
    ),
    "a resume that compiles pages when a stall is not waited for": (
        "alerts.yml",
        r'(health="stalled"\} == 1\n +\)\n +)for: 10m',
        r"\1for: 1m",
        "a resume that loads and compiles for twelve minutes",
    ),
    "a first compilation pages when a stall needs no step before it": (
        "alerts.yml",
        r"time\(\) - optwrap_last_step_timestamp_seconds\n +and ignoring \(health\)\n",
        "\n",
        "a compilation of twenty minutes at the start",
    ),
    "hosts that come up late page when they are not waited for": (
        "alerts.yml",
        r"(timestamp_seconds\)\)\n +> 0\n +)for: 10m",
        r"\1for: 1m",
        "hosts that come up over eight minutes",
    ),
    "a finished run pages when its processes go, and those that ended still say how many there were": (
        "alerts.yml",
        r"optwrap_process_count\n +unless ignoring \(health\)\n.*\n",
        "optwrap_process_count\n",
        "a finished run whose processes go from the exporter one after the other",
    ),
    "the norm of a slow job's one step is a level when no number of steps is asked for": (
        "alerts.yml",
        "increase10m >= 10",
        "increase10m >= 0",
        "a norm with one spike, in a job so slow that it is the last norm for ten minutes",
    ),
    "a finished run's last norm is a level when it is not asked whether it runs": (
        "alerts.yml",
        r"and\n +run:optwrap_gradient_norm:max\n",
        "\n",
        "a run that finishes with a norm above its level",
    ),
    "a training's first norms are a level when no half hour is asked for": (
        "recording.yml",
        "offset 30m",
        "offset 11m",
        "a norm that rises in the first minutes of a training",
    ),
    "the norm of a process that moved to another host has no level when it is not followed there": (
        "recording.yml",
        r"(optwrap_gradient_norm:max\n +expr: \|\n +max by) \(run\)",
        r"\1 (run, instance)",
        "the norm's level is that of the process, wherever its exporter runs; a run of less than half an hour has none",
    ),
    "a dead process's last norm stays the run's when it is not asked who lives": (
        "recording.yml",
        r"(optwrap_gradient_norm)\n +unless ignoring \(health\)\n.*\n",
        r"\1\n",
        "the last norm of a process that is lost is not the run's",
    ),
    "steps count once for each process when they are summed": (
        "recording.yml",
        r"max by \(run\) \(rate\(optwrap_steps_total",
        "sum by (run) (rate(optwrap_steps_total",
        "processes that report the same global counts are not added up",
    ),
    "a rate jumps when the raw counters are aggregated first": (
        "recording.yml",
        r"max by \(run\) \(rate\(optwrap_steps_total\[5m\]\)\)",
        "rate(max by (run) (optwrap_steps_total)[5m:])",
        "a rate stays what it is when the process that is ahead goes and another takes the lead",
    ),
    "a standing run has a NaN for a ratio when no step is asked for": (
        "recording.yml",
        r"\[10m\]\) > 0",
        "[10m]) >= 0",
        "a run that stands still has no skip ratio rather than a NaN",
    ),
}


@pytest.mark.programs("promtool")
@pytest.mark.parametrize(("file", "pattern", "replacement", "case"), MUTATIONS.values(), ids=MUTATIONS.keys())
def test_the_rules_tests_notice_when(file: str, pattern: str, replacement: str, case: str, tmp_path: Path) -> None:
    """Each rule that is made wrong on purpose fails the case of promtool's tests that is meant for it."""
    shutil.copytree(PROMETHEUS / "rules", tmp_path / "rules")
    changed = tmp_path / "rules" / file
    text, times = re.subn(pattern, replacement, changed.read_text("utf-8"))
    assert times, "the rule is no longer written so: write the change anew"
    changed.write_text(text, "utf-8")
    assert promtool("check", "rules", changed).returncode == 0, "the change must leave a valid rule"
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


@pytest.mark.parametrize("rule", RULES, ids=name)
def test_a_rule_names_only_what_the_metric_table_and_the_recording_rules_have(rule: dict[str, Any]) -> None:
    assert unknown(rule["expr"], set(RECORDED)) == []


@pytest.mark.parametrize("rule", RULES, ids=name)
def test_a_rule_takes_the_rate_of_each_process_before_it_aggregates(rule: dict[str, Any]) -> None:
    assert wrong_over_processes(rule["expr"]) == []


@pytest.mark.parametrize("alert", ALERTS, ids=name)
def test_an_alert_says_who_how_much_how_grave_and_where_to_read_on(alert: dict[str, Any]) -> None:
    """The same alert may come in two severities; one run has one alert, an exporter is told by its instance."""
    assert alert["labels"]["severity"] in {"warning", "critical"}
    assert {"for", "keep_firing_for"} <= set(alert)
    summary = alert["annotations"]["summary"]
    assert re.match(r"\{\{ \$labels\.run \}\}: |.*\{\{ \$labels\.instance \}\} ", summary)
    assert "$value" in summary or "| query }}" in summary
    assert alert["annotations"]["description"]
    assert alert["annotations"]["runbook_url"] == "{{ $externalURL }}/consoles/runbooks.html#" + slug(alert["alert"])
    link = re.fullmatch(
        r"http://localhost:3000/d/([\w-]+)\?var-(\w+)=\{\{ \$labels\.(\w+) \}\}", alert["annotations"]["dashboard_url"]
    )
    assert link is not None
    (variable,) = variables(LOADED[link[1]], "query")
    assert link[2] == link[3] == variable["name"] == ("run" if summary.startswith("{{ $labels.run }}") else "instance")


def test_every_alert_has_a_runbook_and_every_runbook_an_alert() -> None:
    assert list(dict.fromkeys(alert["alert"] for alert in ALERTS)) == HEADINGS


@pytest.mark.parametrize("heading", HEADINGS)
def test_a_runbook_says_what_it_means_how_to_see_why_and_what_to_do(heading: str) -> None:
    section = RUNBOOKS.read_text("utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    assert re.findall(r"^\*\*(.+?)\.\*\*", section, re.MULTILINE) == ["Meaning", "See why", "Do"]


def test_the_runbooks_name_only_metrics_of_the_table() -> None:
    assert words(RUNBOOKS.read_text("utf-8")) - set(SERIES) == set()


def test_links_within_the_runbooks_lead_to_a_heading() -> None:
    text = RUNBOOKS.read_text("utf-8")
    targets = set(re.findall(r"\]\(#([^)]+)\)", text))
    assert targets
    assert targets <= {slug(heading) for heading in HEADINGS}
    assert all(f'<h2 id="{slug(heading)}">' in page(text) for heading in HEADINGS)


def test_a_runbook_that_prometheus_would_take_for_a_template_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\{\{"):
        page("# Runbooks\n\n{{ $value }}\n")


@pytest.mark.parametrize("alert", sorted({alert["alert"] for alert in ALERTS}))
def test_promtool_sees_each_alert_fire_and_not_fire(alert: str) -> None:
    expected = [
        bool(case["exp_alerts"])
        for path in TESTS
        for group in load(path)["tests"]
        for case in group.get("alert_rule_test", [])
        if case["alertname"] == alert
    ]
    assert set(expected) == {True, False}


@pytest.mark.programs("amtool")
def test_alertmanager_takes_its_configuration_and_wakes_somebody_for_critical_alerts_only() -> None:
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
