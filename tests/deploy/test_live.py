"""Dashboards, rules and runbooks with a real Prometheus that scrapes a real exporter."""

import dataclasses
import statistics
import subprocess
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import jax
import jax.numpy as jnp
import optax
import pytest
from prometheus_client.parser import text_string_to_metric_families

import optwrap
from deploy.grafana.queries import CODE
from tests.conftest import RunningExporter
from tests.deploy import prometheus as prometheus_module
from tests.deploy.lint import LOADED, label_values, panels, variables
from tests.deploy.places import ALERTS, RECORDED
from tests.deploy.prometheus import RATE_INTERVAL, Prometheus
from tests.deploy.promql import SERIES
from tests.exporter.running import Job

# One group, because each worker of a parallel run would start its own Prometheus.
pytestmark = [pytest.mark.programs("prometheus", "promtool"), pytest.mark.xdist_group("live")]

RUN = "lm-7b:live.test_1"
PANELS: dict[str, dict[str, dict[str, Any]]] = {
    uid: {panel["title"]: panel for panel in panels(dashboard)} for uid, dashboard in LOADED.items()
}
TARGETS = [
    pytest.param(target, id=f"{uid}-{title}-{target['refId']}")
    for uid, titled in PANELS.items()
    for title, panel in titled.items()
    for target in panel["targets"]
]
ANNOTATIONS = [
    pytest.param(annotation, id=f"{uid}-{annotation['name']}")
    for uid, dashboard in LOADED.items()
    for annotation in dashboard["annotations"]["list"]
]
VARIABLES = [
    pytest.param(variable, id=f"{uid}-{variable['name']}")
    for uid, dashboard in LOADED.items()
    for variable in variables(dashboard, "query")
]
REPLICA = {"replica": 5, "process": 1, "device": "gpu:5", "count": 1, "of": 8}
EVERY_K = 4
SKIPPED = 6
"""Skipped steps of the fifteen in each round."""
ROUNDS = 12
"""Reports of each process while it trains."""


@dataclasses.dataclass
class Live:
    """The running programs, and the jobs that reported."""

    exporter: RunningExporter
    prometheus: Prometheus
    jobs: list[Job]
    started: float
    trained: float
    """When the last report was scraped."""
    ended: float

    def substituted(self, expr: str) -> str:
        """A dashboard's expression as Grafana sends it, for a time range of an hour."""
        expr = expr.replace("$__rate_interval", RATE_INTERVAL).replace("$__range", "3600s").replace("$run", RUN)
        expr = expr.replace("$instance", urlsplit(self.exporter.url).netloc)
        expr = expr.replace("$cluster", ".*").replace("$namespace", ".*")
        assert "$" not in expr
        return expr

    def result(self, title: str, place: int = 0, of: str = "run") -> list[tuple[dict[str, str], float]]:
        """The present result of a panel's query; `of` is the dashboard's uid after "optwrap-"."""
        return self.prometheus.instant(self.substituted(PANELS[f"optwrap-{of}"][title]["targets"][place]["expr"]))

    def number(self, title: str, place: int = 0, of: str = "run") -> float:
        """The same, if the result is one number."""
        ((_, value),) = self.result(title, place, of)
        return value


def train(job: Job) -> None:
    """Take fifteen steps with every outcome; two parameters have non-finite gradients."""
    for place, outcome in enumerate(
        ["accumulated", "accumulated", "skipped_large", "accumulated", "applied", "skipped_other"] * 2
    ):
        job.gauges["mini_step"] = place % EVERY_K
        job.step(outcome, norm=9.0 if outcome == "skipped_large" else 0.5 + place / 8)
    job.step("skipped_not_finite", "NaN", replica=REPLICA, decoder__w=3)
    job.step("skipped_not_finite", "Infinity", decoder__w=1, embed__table=2)
    job.step("accepted_not_finite", "NaN", decoder__w=7)
    job.gauges |= {"mini_step": 3, "every_k": EVERY_K, "gradient_norm_limit": 8.0}
    job.gauges |= {"guard_not_finite_count": 2, "guard_not_finite_limit": 5, "steps_since_sync": 1, "sync_period": 6}
    job.gauges |= {"guard_rebases": job.gauges.get("guard_rebases", 0) + 1, "update_norm": 0.25}
    job.gauges |= {"guard_would_skip_steps": job.gauges.get("guard_would_skip_steps", 0) + 2}
    job.columns["scalars"] = {"loss": [1.5] * len(job.columns["step"])}  # type: ignore[assignment]
    job.dropped = {"steps": job.dropped["steps"] + 2, "bad_steps": job.dropped["bad_steps"] + 1}


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Two processes of a run that report the same global counts, scraped by Prometheus."""
    exporter = RunningExporter(tmp_path_factory.mktemp("exporter") / "data", "--scope", "job")
    try:
        with (
            prometheus_module.running(tmp_path_factory.mktemp("prometheus"), [exporter.url]) as prometheus,
            httpx.Client(base_url=exporter.url, trust_env=False, timeout=30) as client,
        ):

            def send(job: Job, state: str = "running") -> None:
                answer = client.post("/v1/reports", json=job.report(state))
                assert answer.status_code == 200, answer.text

            jobs = [Job(RUN, process, f"e{process}", clock=time.time, process_count=2) for process in range(2)]
            started = time.time()
            for job in jobs:
                send(job, "starting")
            # increase() needs a first scrape while all counters are zero.
            prometheus.wait_until(f'count(optwrap_steps_total{{run="{RUN}"}}) == 2')
            for _ in range(ROUNDS):
                for job in jobs:
                    train(job)
                    send(job)
                assert client.post("/v1/reports", json={"run": RUN}).status_code == 422
                time.sleep(prometheus_module.SCRAPE_INTERVAL)
            prometheus.wait_until(f'min(optwrap_steps_total{{run="{RUN}"}}) == {jobs[0].totals["steps"]}')
            trained = time.time()
            prometheus.wait_until('ALERTS{alertname="OptwrapClientDrops", alertstate="firing"}')
            yield Live(exporter, prometheus, jobs, started, trained, time.time())
    finally:
        exporter.stop()


@pytest.mark.parametrize("target", TARGETS)
def test_panel_query_returns_data(live: Live, target: dict[str, Any]) -> None:
    expr = live.substituted(target["expr"])
    if target["instant"]:
        assert live.prometheus.instant(expr, live.trained)
    else:
        series = live.prometheus.range(expr, live.started, live.ended)
        assert series
        # A rate must not be zero all the time.
        if "rate(" in target["expr"]:
            assert any(value > 0 for _, values in series for value in values)


@pytest.mark.parametrize("annotation", ANNOTATIONS)
def test_annotations_mark_streaks_and_restarts(live: Live, annotation: dict[str, Any]) -> None:
    """The job started, and had a streak in every round."""
    series = live.prometheus.range(live.substituted(annotation["expr"]), live.started, live.ended)
    assert [labels for labels, _ in series] == [{"run": RUN}]


@pytest.mark.parametrize("variable", VARIABLES)
def test_variable_lists_runs_and_exporters(live: Live, variable: dict[str, Any]) -> None:
    """Runs as the exporter lists them, and exporters as Prometheus scrapes them."""
    selector, label = label_values(variable["query"])
    selector = live.substituted(selector)
    if label in {"cluster", "namespace"}:
        listed = []  # this Prometheus adds neither, and "All" selects series without them
    elif label == "run":
        listed = [run["run"] for run in httpx.get(f"{live.exporter.url}/v1/runs", trust_env=False).json()["items"]]
    else:
        listed = [urlsplit(live.exporter.url).netloc]
    assert live.prometheus.get(f"label/{label}/values", **{"match[]": selector}) == sorted(listed)


def test_numbers_equal_the_reported_totals(live: Live) -> None:
    """Steps that two processes report count once."""
    totals = live.jobs[0].totals
    outcomes = totals["outcomes"]
    assert live.number("Steps") == totals["steps"] == ROUNDS * 15
    assert live.number("Gradient steps") == totals["gradient_steps"] == ROUNDS * 3
    assert live.number("Applied although non-finite") == outcomes["accepted_not_finite"] == ROUNDS
    assert {labels["reason"]: value for labels, value in live.result("Skipped steps")} == {
        reason: outcomes[f"skipped_{reason}"] for reason in ("not_finite", "large", "other")
    }
    assert live.number("Steps in the optimizer's state") == totals["steps"]


def test_table_lists_the_non_finite_parameters(live: Live) -> None:
    """The increase in the time range includes the first value of a series, which increase() would not count."""
    in_range, since_the_start = (
        {labels["parameter"]: value for labels, value in live.result("Non-finite parameters", place)}
        for place in (0, 1)
    )
    assert since_the_start == live.jobs[0].totals["parameters"] == {"decoder/w": 3 * ROUNDS, "embed/table": ROUNDS}
    assert in_range == since_the_start


def test_table_lists_the_non_finite_replica(live: Live) -> None:
    named = {"replica": "5", "replica_process": "1", "device": "gpu:5"}
    assert live.result("Non-finite replicas") == [(named, ROUNDS)]


def test_gauges_equal_the_last_report(live: Live) -> None:
    gauges = live.jobs[0].gauges
    assert [live.number("Non-finite streak and limit", place) for place in range(4)] == [
        gauges["not_finite_streak"],
        gauges["not_finite_streak_peak"],
        gauges["guard_not_finite_count"],
        gauges["guard_not_finite_limit"],
    ]
    assert [live.number("Accumulation window", place) for place in range(2)] == [gauges["mini_step"], EVERY_K]
    assert [live.number("Lookahead", place) for place in range(2)] == [1, 6]
    # The last step's norm is NaN; the last finite norm is that of the twelfth step.
    assert [live.number("Gradient norm and limit", place) for place in range(2)] == [0.5 + 11 / 8, 8.0]


def test_health_equals_that_of_the_exporter(live: Live) -> None:
    """A run that applied non-finite values has the health gave_up for five minutes."""
    mapping = PANELS["optwrap-run"]["Health now"]["fieldConfig"]["defaults"]["mappings"][0]["options"]
    health = httpx.get(f"{live.exporter.url}/v1/runs/{RUN}", trust_env=False).json()["health"]
    assert health == "gave_up"
    assert mapping[str(int(live.number("Health now")))]["text"].replace(" ", "_") == health
    processes = {labels["process"]: mapping[str(int(value))]["text"] for labels, value in live.result("Processes")}
    assert processes == {"0": "gave up", "1": "gave up"}


def test_table_of_runs_equals_the_reported_totals(live: Live) -> None:
    """The run has one row, and its two processes count once."""
    totals = live.jobs[0].totals
    shown = httpx.get(f"{live.exporter.url}/v1/runs/{RUN}", trust_env=False).json()
    columns = PANELS["optwrap-runs"]["All runs"]["transformations"][-1]["options"]["renameByName"]
    row = {
        columns[f"Value #{target['refId']}"]: live.number("All runs", place, of="runs")
        for place, target in enumerate(PANELS["optwrap-runs"]["All runs"]["targets"])
        # These depend on the time of the query.
        if columns[f"Value #{target['refId']}"] not in {"Steps/s", "Skipped", "Since last report", "Time lost"}
    }
    assert row == {
        "Health": CODE["gave_up"],
        "Steps": totals["steps"],
        "Gradient steps": totals["gradient_steps"],
        "Applied non-finite": totals["outcomes"]["accepted_not_finite"],
        "Processes": len(live.jobs),
        "Attempts": 1,
        "Open incidents": sum(shown["incidents_open"].values()),
    }
    assert live.number("Runs", of="runs") == 1
    assert live.number("Runs with problems", of="runs") == 1
    assert live.number("Processes", of="runs") == len(live.jobs)
    assert live.result("Processes by health", of="runs") == [({"health": "gave_up"}, len(live.jobs))]
    assert live.number("Longest non-finite streak", of="runs") == live.jobs[0].gauges["not_finite_streak_peak"]
    assert live.number("Gradient norm by run", of="runs") == 0.5 + 11 / 8


def test_skipped_share_and_alerts_are_those_of_the_job(live: Live) -> None:
    """Six of fifteen steps are skipped in each round: two large, two for other reasons, two non-finite."""
    panel = PANELS["optwrap-runs"]["Share of steps skipped"]
    ((_, shares),) = live.prometheus.range(live.substituted(panel["targets"][0]["expr"]), live.started, live.ended)
    assert statistics.median(shares) == pytest.approx(SKIPPED / 15)
    firing = {labels["alertname"]: labels["severity"] for labels, _ in live.result("Firing alerts", of="runs")}
    assert firing["OptwrapGaveUp"] == "critical"
    assert firing["OptwrapClientDrops"] == "warning"


def test_dashboard_of_exporters_equals_their_metrics(live: Live) -> None:
    """Reports by outcome, the store, runs and processes, compared with a scrape by the test."""
    scraped = {
        (sample.name, sample.labels.get("outcome", "")): sample.value
        for family in text_string_to_metric_families(httpx.get(f"{live.exporter.url}/metrics", trust_env=False).text)
        for sample in family.samples
    }
    reports = {labels["outcome"]: value for labels, value in live.result("Reports so far", of="exporters")}
    assert reports == {
        outcome: value
        for (name, outcome), value in scraped.items()
        if name == "optwrap_exporter_reports_total" and value
    }
    assert reports["invalid"] == ROUNDS
    assert reports["accepted"] >= 2 * (ROUNDS + 1)
    assert live.number("Exporters up", of="exporters") == 1
    assert live.number("Exporters down", of="exporters") == 0
    size, limit = scraped["optwrap_exporter_store_bytes", ""], scraped["optwrap_exporter_store_limit_bytes", ""]
    assert live.number("Size of the store", of="exporters") == size
    assert live.number("Fullest store", of="exporters") == size / limit
    assert live.number("Runs and processes", 0, of="exporters") == scraped["optwrap_exporter_runs", ""]
    assert live.number("Runs and processes", 1, of="exporters") == len(live.jobs)


def test_table_of_processes_has_their_hosts(live: Live) -> None:
    assert {(labels["process"], labels["host"]) for labels, _ in live.result("Processes", 1)} == {
        ("0", "node-0"),
        ("1", "node-1"),
    }


@pytest.mark.parametrize("job", [0, 1], ids=["process 0", "process 1"])
def test_counters_equal_the_reported_totals(live: Live, job: int) -> None:
    totals, dropped = live.jobs[job].totals, live.jobs[job].dropped
    expected: dict[tuple[str, str], float] = {
        ("optwrap_steps_total", ""): totals["steps"],
        ("optwrap_gradient_steps_total", ""): totals["gradient_steps"],
        ("optwrap_not_finite_steps_total", ""): totals["not_finite_steps"],
        ("optwrap_accepted_not_finite_steps_total", ""): totals["outcomes"]["accepted_not_finite"],
        **{
            ("optwrap_skipped_steps_total", r): totals["outcomes"][f"skipped_{r}"]
            for r in ("not_finite", "large", "other")
        },
        **{("optwrap_parameter_not_finite_steps_total", p): n for p, n in totals["parameters"].items()},
        ("optwrap_parameter_not_finite_steps_total", "other"): 0,
        ("optwrap_replica_not_finite_steps_total", "5/1/gpu:5"): ROUNDS,
        ("optwrap_replica_not_finite_steps_total", "other/other/other"): 0,
        ("optwrap_lost_steps_total", "skipped"): SKIPPED * ROUNDS,
        ("optwrap_lost_steps_total", "redone"): 0,
        ("optwrap_lost_steps_total", "starved"): 0,
        ("optwrap_guard_rebases_total", ""): ROUNDS,
        ("optwrap_guard_would_skip_steps_total", ""): 2 * ROUNDS,
        **{("optwrap_client_dropped_total", kind): n for kind, n in dropped.items()},
    }
    counters = {name for name, metric in SERIES.items() if metric.type == "counter" and "process" in metric.labels}
    counters.remove("optwrap_lost_seconds_total")  # it depends on how fast this machine is
    found = {}
    for name in counters:
        for labels, value in live.prometheus.instant(f'{name}{{run="{RUN}", process="{job}"}}'):
            further = "/".join(labels[label] for label in SERIES[name].labels if label not in {"run", "process"})
            found[name, further] = value
    assert found == expected


def test_every_rule_is_evaluated_without_an_error(live: Live) -> None:
    rules = [rule for group in live.prometheus.get("rules")["groups"] for rule in group["rules"]]
    assert len(rules) == len(ALERTS) + len(RECORDED)
    assert [(rule["name"], rule.get("lastError")) for rule in rules if rule["health"] != "ok"] == []


def test_recorded_rates_count_the_processes_once(live: Live) -> None:
    """The recorded increase is that of one process, however many report."""
    for name, label in (("run:optwrap_skipped_steps:increase10m", "increase"), ("run:optwrap_steps:rate5m", "rate")):
        ((_, recorded),) = live.prometheus.instant(f'{name}{{run="{RUN}"}}')
        metric, window = ("skipped_steps", "10m") if label == "increase" else ("steps", "5m")
        each = live.prometheus.instant(
            f'sum without (reason) ({label}(optwrap_{metric}_total{{run="{RUN}"}}[{window}]))'
        )
        assert len(each) == 2
        assert recorded == pytest.approx(max(value for _, value in each), rel=0.2)


def test_a_run_that_gave_up_pages_with_its_name_and_number_and_the_link_leads_to_the_runbook(live: Live) -> None:
    """Prometheus itself serves the page that the alert points to, with the heading's anchor in it."""
    alerts = live.prometheus.get("alerts")["alerts"]
    (alert,) = [alert for alert in alerts if alert["labels"]["alertname"] == "OptwrapGaveUp"]
    assert alert["state"] == "firing"
    assert alert["labels"] == {"alertname": "OptwrapGaveUp", "run": RUN, "severity": "critical"}
    assert alert["annotations"]["summary"].startswith(f"{RUN}: ")
    assert alert["annotations"]["summary"].endswith(": restore a checkpoint of step 11 or before"), (
        "before the first round's"
    )
    url, _, anchor = alert["annotations"]["runbook_url"].partition("#")
    served = httpx.get(url, trust_env=False)
    assert served.status_code == 200
    assert f'<h2 id="{anchor}">OptwrapGaveUp</h2>' in served.text


def test_promtool_has_no_complaint_about_the_metrics(live: Live) -> None:
    scraped = httpx.get(f"{live.exporter.url}/metrics", trust_env=False)
    checked = subprocess.run(["promtool", "check", "metrics"], input=scraped.content, capture_output=True, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


def test_prometheus_counts_a_real_job(live: Live) -> None:
    """Sixty steps of a jitted optimizer, three of them with a NaN in one parameter, give these counts."""
    run, steps, bad = "real", 60, {10, 30, 31}
    with optwrap.Monitor(run=run, endpoint=live.exporter.url, interval=0.2) as monitor:
        inner = optwrap.MultiSteps(optax.sgd(1e-3), EVERY_K, should_skip_update_fn=optwrap.skip_not_finite)
        tx = optwrap.instrument(optwrap.apply_if_finite(inner, max_consecutive_errors=5), monitor)
        params = {"decoder": {"w": jnp.ones(3)}, "embed": jnp.ones(2)}
        state = tx.init(params)

        @jax.jit
        def step(params: Any, state: Any, gradients: Any) -> tuple[Any, Any, jax.Array]:
            updates, state = tx.update(gradients, state, params)
            return optax.apply_updates(params, updates), state, optwrap.reading(state)

        for number in range(steps):
            w = jnp.full(3, jnp.nan if number in bad else 1.0)
            params, state, reading = step(params, state, {"decoder": {"w": w}, "embed": jnp.ones(2)})
            monitor.observe(reading)
        assert monitor.flush(30)
        live.prometheus.wait_until(f'optwrap_steps_total{{run="{run}"}} == {steps}')

        def value(metric: str, **labels: str) -> float:
            matchers = ",".join(f'{name}="{text}"' for name, text in {"run": run, **labels}.items())
            ((_, found),) = live.prometheus.instant(f"{metric}{{{matchers}}}")
            return found

        assert value("optwrap_gradient_steps_total") == (steps - len(bad)) // EVERY_K
        assert value("optwrap_not_finite_steps_total") == len(bad)
        assert value("optwrap_skipped_steps_total", reason="not_finite") == len(bad)
        assert value("optwrap_skipped_steps_total", reason="large") == 0
        assert value("optwrap_accepted_not_finite_steps_total") == 0
        assert value("optwrap_parameter_not_finite_steps_total", parameter="decoder/w") == len(bad)
        assert value("optwrap_not_finite_streak_peak") == 2
        assert value("optwrap_accumulation_mini_step") == (steps - len(bad)) % EVERY_K
        assert value("optwrap_accumulation_every_k") == EVERY_K
        assert value("optwrap_guard_not_finite_limit") == 5
    live.prometheus.wait_until(f'optwrap_process_health{{run="{run}", health="finished"}} == 1')
