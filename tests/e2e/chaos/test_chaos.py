"""All kinds of interruptions, mixed by a seed, over real processes: all numbers are the truth at the end.

`make chaos SEEDS=50` for more of them; `python -m tests.e2e.chaos --first 7 --seeds 1 --keep` for one that failed.
"""

import dataclasses
from pathlib import Path

import pytest

from tests.e2e.chaos.__main__ import weather
from tests.e2e.chaos.schedule import FATES, INTERRUPTIONS, Action, Schedule, draw

pytestmark = [pytest.mark.programs("prometheus"), pytest.mark.timeout(300)]


def of(seed: int, directory: Path, schedule: Schedule | None = None) -> None:
    schedule = schedule or draw(seed)
    try:
        weather(schedule, directory)
    except BaseException:
        print(schedule)
        raise


@pytest.mark.thin(3)
@pytest.mark.parametrize("seed", [52, 53])
def test_whatever_happens_every_number_ends_at_the_truth(seed: int, tmp_path: Path) -> None:
    """Two seeds that have all interruptions between them: one by reading with orbax, one by callback with numpy."""
    of(seed, tmp_path)


def test_an_exporter_killed_fifty_times_in_one_run_loses_nothing_and_counts_nothing_twice(tmp_path: Path) -> None:
    """At any moment, also during a report; between two kills it may have stored one report or none."""
    drawn = draw(50)
    kills = tuple(
        Action("exporter killed", steps=20, moment=n * 0.618 % 1, pause=n * 0.382 % 0.1, which=0, back=0)
        for n in range(50)
    )
    calm = (0.0,) * len(FATES[1:])
    of(50, tmp_path, dataclasses.replace(drawn, weather=calm, actions=kills, processes=1, pace=0.002))


def test_a_schedule_is_a_function_of_its_seed_and_two_in_a_row_bring_every_interruption() -> None:
    for seed in range(0, 40, 2):
        assert draw(seed) == draw(seed)
        kinds = {action.kind for drawn in (draw(seed), draw(seed + 1)) for action in drawn.actions}
        assert kinds >= set(INTERRUPTIONS)
    assert len({str(draw(seed)) for seed in range(40)}) == 40
