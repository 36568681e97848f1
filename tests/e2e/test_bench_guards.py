"""benchmarks/bench_guards.py prints its tables; docs/guides/guards.md has the figures of skip_spikes that it prints."""

from pathlib import Path

import pytest

from benchmarks import bench_guards
from benchmarks.spike_rules import RULES
from benchmarks.spike_scenarios import SCENARIOS, SHIFTS, Scenario
from benchmarks.spike_traces import TRAININGS

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "guards.md"


def in_the_guide() -> dict[str, str]:
    """The column of skip_spikes in the guide's tables, by the name of the row."""
    rows = [line.split("|")[1:3] for line in GUIDE.read_text("utf-8").splitlines() if line.count("|") == len(RULES) + 2]
    return {name.strip(): value.strip() for name, value in rows}


@pytest.fixture
def only_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_guards, "RULES", {"skip_spikes": RULES["skip_spikes"]})


@pytest.mark.parametrize("scenarios", [SCENARIOS, SHIFTS], ids=["scenarios", "shifts"])
def test_the_guide_has_the_figures_of_every_scenario(scenarios: tuple[Scenario, ...], only_ours: None) -> None:
    del only_ours
    guide = in_the_guide()
    printed = {row[0]: row[1] for row in bench_guards.of_scenarios(scenarios, 20)}
    assert {name: guide[name] for name in printed} == printed


def test_the_guide_has_the_figures_of_every_training(only_ours: None) -> None:
    del only_ours
    guide = in_the_guide()
    printed = {row[0]: row[1] for row in bench_guards.of_traces()}
    assert set(printed) == {*TRAININGS, *(f"{name}, faults" for name in TRAININGS)}
    assert {name: guide[name] for name in printed} == printed


def test_every_rule_is_run_and_fails_where_it_is_known_to() -> None:
    """One seed of two scenarios: a level that jumps 40x for good, and one NaN."""
    chosen = tuple(one for one in SCENARIOS if one.name in ("level up 40x for good", "one NaN, spike 200 later"))
    jump, nan = (dict(zip(RULES, row[1:], strict=True)) for row in bench_guards.of_scenarios(chosen, 1))
    assert jump["skip_spikes"] == jump["32 in a row"] == "+31"
    assert jump["AXLearn, 20x"] == jump["AXLearn, 20 sd"] == jump["Lightning"] == "+2,000"
    assert nan["OLMo-core, MaxText, Levanter"] == "+128"
    assert nan["ZClip"].startswith("-2")
    assert nan["skip_spikes"] == nan["Lightning"] == "ok"


def test_the_cost_has_a_row_for_each_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """No time is asserted. By XLA's count skip_spikes reads about what apply_if_finite reads."""
    monkeypatch.setattr(bench_guards, "ROUNDS", 3)
    rows = {row[0]: row for row in bench_guards.costs(3, 100_000, 1)}
    assert list(rows) == list(bench_guards.FORMS)
    read = {form: float(row[-2].replace(",", "")) for form, row in rows.items()}
    assert read["skip_spikes"] < 1.05 * read["apply_if_finite"]
