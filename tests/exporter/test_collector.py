"""/metrics: a real scrape against golden text, and which series exist when."""

import math
import shutil
import subprocess
from pathlib import Path

import pytest
from optwrap_exporter.metrics.samples import COUNTERS_GO_AFTER, GAUGES_GO_AFTER
from optwrap_exporter.metrics.table import BY_NAME, METRICS
from optwrap_exporter.wire.vocabulary import HEALTHS
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from tests.exporter.running import Job, Served

GOLDEN = Path(__file__).with_name("golden_metrics.txt")
OPENMETRICS = "application/openmetrics-text;version=1.0.0"


def samples(site: Served) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample of a scrape by name and labels."""
    found = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parse_text(site.scrape())
        for sample in family.samples
    }
    return found


def value(site: Served, name: str, run: str = "lm", process: str = "0", **labels: str) -> float | None:
    return samples(site).get((name, tuple(sorted({"run": run, "process": process, **labels}.items()))))


def story(site: Served) -> None:
    """Two processes of one run: a good step, two bad ones, a spike, a window under way; a run that only said hello."""
    for process in range(2):
        job = Job(process=process, process_count=2, clock=site.clock)
        job.gauges |= {"mini_step": 0, "every_k": 4, "guard_not_finite_count": 0, "guard_not_finite_limit": 3}
        job.gauges |= {
            "gradient_norm_limit": 10.0,
            "steps_since_sync": 1,
            "sync_period": 6,
            "guard_rebases": 1,
            "guard_would_skip_steps": 0,
        }
        site.send(job.report("starting"))
        job.step("applied", 0.5)
        at = {"replica": 5, "process": 1, "device": "gpu:5"}
        job.step("skipped_not_finite", "NaN", replica={**at, "count": 1, "of": 8}, decoder__w=3, decoder__b=1)
        job.step("skipped_not_finite", "Infinity", decoder__w=9)
        job.step("skipped_large", 12.5)
        job.step("accumulated", 0.25)
        job.gauges |= {"mini_step": 1, "guard_not_finite_count": 2, "update_norm": 0.05}
        job.columns["scalars"] = {"loss": [3.5, 3.25, "NaN", 3.0, "NaN"]}  # type: ignore[assignment]
        job.dropped = {"steps": 2, "bad_steps": 1}
        site.clock.advance(1)
        site.send(job.report())
    site.send(Job(run="new", clock=site.clock).report("starting"))


def test_a_scrape_after_fixed_reports_equals_the_golden_text(site: Served) -> None:
    """All text is compared but sizes, durations and versions."""
    story(site)
    varying = (
        "optwrap_exporter_store_bytes ",
        "optwrap_exporter_scrape_duration_seconds",
        "optwrap_exporter_build_info{",
    )
    kept = [line for line in site.scrape().splitlines() if not line.startswith(varying)]
    assert "\n".join(kept) + "\n" == GOLDEN.read_text()


def test_openmetrics_and_text_have_the_same_samples(site: Served) -> None:
    story(site)
    answer = site.client.get("/metrics", headers={"accept": OPENMETRICS})
    assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert answer.text.endswith("# EOF\n")
    opened = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parse_openmetrics(answer.text)
        for sample in family.samples
        if "scrape_duration" not in sample.name
    }
    text = {key: value for key, value in samples(site).items() if "scrape_duration" not in key[0]}
    assert opened == text


@pytest.mark.parametrize(
    "accept", ["", "*/*", "text/html", "application/openmetrics-text;version=x", "text/plain;version=1e", ";;;,,=", "é"]
)
def test_any_accept_header_gets_an_answer(site: Served, accept: str) -> None:
    answer = site.client.get("/metrics", headers={b"accept": accept.encode()})
    assert answer.status_code == 200
    assert b"optwrap_exporter_runs 0.0" in answer.content


def test_a_scrape_has_the_tables_families_and_labels_and_no_other(site: Served) -> None:
    story(site)
    for family in parse_openmetrics(site.scrape(OPENMETRICS)):
        names = {metric.name for metric in METRICS if metric.family().name == family.name}
        (name,) = names
        metric = BY_NAME[name]
        assert family.type == metric.type
        assert family.documentation == metric.help
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(metric.labels), sample
            assert not sample.name.endswith("_created")
    shown = {family.name for family in parse_openmetrics(site.scrape(OPENMETRICS))}
    assert shown == {metric.family().name for metric in METRICS}


@pytest.mark.programs("promtool")
def test_promtool_accepts_the_scrape(site: Served) -> None:
    story(site)
    promtool = shutil.which("promtool")
    assert promtool is not None
    checked = subprocess.run(
        [promtool, "check", "metrics"], input=site.scrape(), capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_counters_of_every_reason_exist_at_zero_after_the_hello(site: Served) -> None:
    site.send(Job().report("starting"))
    for name in ("steps", "gradient_steps", "not_finite_steps", "accepted_not_finite_steps"):
        assert value(site, f"optwrap_{name}_total") == 0
    for reason in ("not_finite", "large", "other"):
        assert value(site, "optwrap_skipped_steps_total", reason=reason) == 0
    for kind in ("steps", "bad_steps"):
        assert value(site, "optwrap_client_dropped_total", kind=kind) == 0
    assert value(site, "optwrap_parameter_not_finite_steps_total", parameter="other") == 0
    assert value(site, "optwrap_last_step_timestamp_seconds") is None


def test_only_the_health_that_holds_has_a_series(site: Served) -> None:
    story(site)
    for run, process in (("lm", "0"), ("lm", "1"), ("new", "0")):
        values = [value(site, "optwrap_process_health", run, process, health=health) for health in HEALTHS]
        assert sorted(found for found in values if found is not None) == [1.0]


def test_a_run_has_a_series_for_every_health_and_one_of_them_is_one(site: Served) -> None:
    story(site)
    found = samples(site)
    for run, health in (("lm", "ok"), ("new", "starting")):
        expected = {name: float(name == health) for name in HEALTHS}
        assert {h: found["optwrap_run_health", (("health", h), ("run", run))] for h in HEALTHS} == expected
    assert found["optwrap_processes_expected", (("run", "lm"),)] == 2
    assert found["optwrap_processes_reporting", (("run", "lm"),)] == 2
    site.clock.advance(60)
    found = samples(site)
    assert found["optwrap_run_health", (("health", "stale"), ("run", "lm"))] == 1
    assert found["optwrap_processes_reporting", (("run", "lm"),)] == 0


def test_the_norm_gauge_is_the_last_finite_norm(site: Served) -> None:
    job = Job()
    site.send(job.report("starting"))
    assert value(site, "optwrap_gradient_norm") is None
    job.step("applied", 0.5)
    job.step("skipped_not_finite", "NaN", w=1)
    site.send(job.report())
    assert value(site, "optwrap_gradient_norm") == 0.5
    job.step("skipped_not_finite", "Infinity", w=1)
    site.send(job.report())
    assert value(site, "optwrap_gradient_norm") == 0.5
    assert all(math.isfinite(number) for number in samples(site).values())


def test_an_absent_wrapper_has_no_series(site: Served) -> None:
    job = Job()
    job.step()
    site.send(job.report())
    for name in ("guard_not_finite_count", "guard_not_finite_limit", "accumulation_mini_step", "gradient_norm_limit"):
        assert value(site, f"optwrap_{name}") is None


def test_parameters_beyond_the_first_ten_are_one_series(site: Served) -> None:
    job = Job()
    for number in range(13):
        job.step("skipped_not_finite", "NaN", **{f"layer_{number:02}": 1})
        site.send(job.report())
    job.step("skipped_not_finite", "NaN", layer_12=1, layer_00=1)
    site.send(job.report())
    shown = {
        dict(labels)["parameter"]: value
        for (name, labels), value in samples(site).items()
        if name == "optwrap_parameter_not_finite_steps_total"
    }
    assert shown == {**{f"layer_{number:02}": 1 for number in range(1, 10)}, "layer_00": 2, "other": 4}


def test_replicas_beyond_the_first_ten_are_one_series(site: Served) -> None:
    """A series is labelled by number, process and device; what a report leaves out is "unknown"."""
    job = Job()
    site.send(job.report("starting"))
    assert replicas(site) == {("other", "other", "other"): 0}
    for number in (*range(12, 0, -1), 12):
        at = {} if number == 9 else {"process": number // 4, "device": f"tpu:{number}"}
        job.step("skipped_not_finite", "NaN", replica={"replica": number, "count": 1, **at}, w=1)
        site.send(job.report())
    named = {(str(number), str(number // 4), f"tpu:{number}"): 1 for number in range(3, 12) if number != 9}
    expected = {**named, ("9", "unknown", "unknown"): 1, ("12", "3", "tpu:12"): 2, ("other", "other", "other"): 2}
    assert replicas(site) == expected


def replicas(site: Served) -> dict[tuple[str, ...], float]:
    """The series of replicas by their labels."""
    return {
        tuple(dict(labels)[name] for name in ("replica", "replica_process", "device")): value
        for (name, labels), value in samples(site).items()
        if name == "optwrap_replica_not_finite_steps_total"
    }


def shown(site: Served, run: str, process: str = "0") -> tuple[bool, bool]:
    """Whether the gauges of a process have series, its health among them, and whether its counters have."""
    gauge = value(site, "optwrap_not_finite_streak", run, process) is not None
    health = any(value(site, "optwrap_process_health", run, process, health=name) for name in HEALTHS)
    assert gauge == health
    return gauge, value(site, "optwrap_steps_total", run, process) is not None


def test_gauges_of_a_finished_process_disappear_before_its_counters(site: Served) -> None:
    ended, live = Job(run="ended", clock=site.clock), Job(run="live", clock=site.clock)
    ended.step()
    site.send(ended.report("finished"))
    gone = site.clock.now

    def at(seconds: float) -> tuple[bool, bool]:
        site.clock.now = gone + seconds
        live.step()
        site.send(live.report())
        assert shown(site, "live") == (True, True)
        return shown(site, "ended")

    assert at(GAUGES_GO_AFTER - 1) == (True, True)
    assert at(GAUGES_GO_AFTER + 1) == (False, True)
    assert at(COUNTERS_GO_AFTER - 1) == (False, True)
    assert at(COUNTERS_GO_AFTER + 1) == (False, False)


@pytest.mark.parametrize("end", ["failed", "stopped", "stale"])
def test_a_dead_process_keeps_its_series_until_it_reports_again(site: Served, end: str) -> None:
    """If they went, its alert would resolve, although nothing is."""
    job = Job(run="dead", clock=site.clock)
    job.step()
    site.send(job.report("running" if end == "stale" else end))
    for seconds in (GAUGES_GO_AFTER + 1, COUNTERS_GO_AFTER, 7 * 86_400):
        site.clock.advance(seconds)
        site.ingest.tick()
        assert shown(site, "dead") == (True, True)
        assert value(site, "optwrap_process_health", "dead", health=end) == 1
        assert samples(site)["optwrap_run_health", (("health", end), ("run", "dead"))] == 1
        assert site.get("/v1/runs/dead")["health"] == end
    again = Job(run="dead", incarnation="e2", attempt="a2", clock=site.clock, state=job.state.copy())
    again.step()
    site.send(again.report())
    assert value(site, "optwrap_process_health", "dead", health="ok") == 1
    assert site.get("/v1/runs/dead")["health"] == "ok"


def test_a_dead_process_that_the_next_launch_goes_on_without_keeps_its_series_for_a_while(site: Served) -> None:
    for process in range(2):
        job = Job(run="smaller", process=process, process_count=2, clock=site.clock)
        job.step()
        site.send(job.report())
    site.clock.advance(60)
    again = Job(run="smaller", incarnation="e2", attempt="a2", clock=site.clock)
    site.send(again.report("starting"))

    def at(seconds: float) -> tuple[bool, bool]:
        site.clock.advance(seconds - 60)
        again.step()
        site.send(again.report())
        assert shown(site, "smaller") == (True, True)
        found = shown(site, "smaller", "1")
        site.clock.advance(60 - seconds)
        return found

    assert at(GAUGES_GO_AFTER - 1) == (True, True)
    assert at(GAUGES_GO_AFTER + 1) == (False, True)
    assert at(COUNTERS_GO_AFTER - 1) == (False, True)
    assert at(COUNTERS_GO_AFTER + 1) == (False, False)


def test_the_scrape_histogram_counts_each_scrape(site: Served) -> None:
    def count() -> float:
        return samples(site)[("optwrap_exporter_scrape_duration_seconds_count", ())]

    assert [count() for _ in range(3)] == [0, 1, 2]
    found = samples(site)
    buckets = [value for (name, _), value in found.items() if name == "optwrap_exporter_scrape_duration_seconds_bucket"]
    assert buckets == sorted(buckets)
    assert buckets[-1] == found[("optwrap_exporter_scrape_duration_seconds_count", ())]


def test_the_store_has_metrics_of_its_size_and_limit(site: Served) -> None:
    site.send(Job().report())
    found = samples(site)
    assert 0 < found[("optwrap_exporter_store_bytes", ())] <= found[("optwrap_exporter_store_limit_bytes", ())]
    assert found[("optwrap_exporter_runs", ())] == 1


def test_a_scrape_changes_nothing(site: Served) -> None:
    story(site)
    before = {key: value for key, value in samples(site).items() if "scrape_duration" not in key[0]}
    assert {key: value for key, value in samples(site).items() if "scrape_duration" not in key[0]} == before
