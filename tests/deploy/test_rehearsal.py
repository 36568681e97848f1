"""A rehearsal in short: two hosts in namespaces, a real job, and everything that watches it, with one fault."""

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.deploy.places import PROMETHEUS, ROOT, RULES
from tests.deploy.rehearsal import hosts
from tests.deploy.rehearsal.findings import Compared
from tests.deploy.rehearsal.programs import NEEDED, scaled_rules
from tests.deploy.rehearsal.truth import Truth


@pytest.mark.programs(*hosts.PROGRAMS, *NEEDED)
def test_prometheus_json_and_alerts_say_what_the_trainers_did() -> None:
    """`make rehearse` has four hosts and all faults. Six NaN in a row are the one whose alert comes soonest."""
    if why := hosts.problem():
        pytest.skip(why)
    done = subprocess.run(
        hosts.python("tests.deploy.rehearsal", "--faults=nan-streak", "--hosts=2", "--scale=600"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = [line for line in done.stdout.splitlines() if line.startswith("| six non-finite steps")]
    assert "200 steps, 6 non-finite" in row
    assert row.count("equal (") == 3
    assert row.count("OptwrapNotFiniteStreak (warning) after ") == 2
    assert done.stdout.splitlines()[-1].endswith(" 0 differ")


def written(directory: Path, name: str, steps: list[int], bad: tuple[int, ...] = ()) -> None:
    lines = [
        {
            "step": step,
            "batch": step,
            "outcome": "skipped_not_finite" if step in bad else "applied",
            "finite": step not in bad,
            "norm": 1.0,
            "streak": 0,
            "parameters": {"w": 3} if step in bad else {},
        }
        for step in steps
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (directory / f"{name}.jsonl").write_text(text + '{"step": 99')  # killed in the middle of a line


def test_the_truth_of_a_run_is_the_largest_process_of_each_attempt(tmp_path: Path) -> None:
    """The second attempt takes two steps again. The host of process 1 is new in it."""
    written(tmp_path, "one-0", [1, 2, 3, 4, 5], (3,))
    written(tmp_path, "one-1", [1, 2, 3, 4], (3,))
    written(tmp_path, "two-0", [4, 5, 6], (6,))
    written(tmp_path, "two-1", [4, 5, 6], (6,))
    truth = Truth.read(tmp_path, ["one", "two"], 2)
    run = truth.run()
    assert (run.steps, run.gradient_steps, run.skipped["not_finite"], run.not_finite) == (8, 6, 2, 2)
    assert dict(run.parameters) == {"w": 2}
    assert [truth.process(0).steps, truth.process(1).steps, truth.process(1, 1).steps] == [8, 7, 3]
    assert truth.redone() == 2
    assert truth.problems((3, 6)) == []


def test_trainers_that_contradict_each_other_or_the_faults_are_found(tmp_path: Path) -> None:
    written(tmp_path, "one-0", [1, 2, 3], (3,))
    written(tmp_path, "one-1", [1, 2, 3], (2,))
    (other, missed) = Truth.read(tmp_path, ["one"], 2).problems(())
    assert other == "one: process 1 took other steps than another one"
    assert missed == "one: step 3 with batch 3: finite is False"


def test_a_difference_is_counted_and_shown() -> None:
    compared = Compared()
    compared.same("steps", 7, 7)
    assert str(compared) == "equal (1)"
    compared.same("attempts", None, 2)
    assert str(compared) == "**1 of 2 differ**"
    assert compared.differences == ["attempts is None, and should be 2"]


def test_the_rehearsal_changes_only_the_durations_of_the_shipped_rules(tmp_path: Path) -> None:
    delays = scaled_rules(tmp_path, 30)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in (PROMETHEUS / "rules").iterdir()}
    scaled = [
        rule
        for path in sorted(tmp_path.iterdir())
        for group in yaml.safe_load(path.read_text())["groups"]
        for rule in group["rules"]
    ]
    changed = {"for", "keep_firing_for"}
    assert [{name: rule[name] for name in rule if name not in changed} for rule in scaled] == [
        {name: rule[name] for name in rule if name not in changed} for rule in RULES
    ]
    assert delays["OptwrapProcessStale"] == 10
    assert delays["OptwrapGaveUp"] == 4, "it fires at once, and keeps firing for two minutes"
    (down, unseen) = [rule for rule in scaled if rule.get("alert") == "OptwrapExporterDown"]
    assert down["for"] == unseen["for"] == "8000ms", "longer than Prometheus takes to drop a target"
