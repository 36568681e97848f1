"""Downsampling keeps every bad step and the extremes of the good ones."""

import itertools
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optwrap_exporter.store.steps.downsample import Axis
from optwrap_exporter.store.steps.rollups import SIZE
from optwrap_exporter.wire.vocabulary import OUTCOMES

from tests.exporter.stores import Kept, check_blocks, fresh, rows
from tests.exporter.trainer import Trainer

good = st.tuples(st.just("applied"), st.floats(0, 1e3) | st.sampled_from(["NaN", "Infinity"]))

bad = st.tuples(st.sampled_from(["skipped_large", "skipped_not_finite", "accepted_not_finite"]), st.floats(0, 1e3))


@given(
    gaps=st.lists(st.sampled_from([1, 1, 1, 2, 100, 5000]), min_size=1, max_size=60),
    filler=st.integers(0, 40),
    kinds=st.lists(good | bad, min_size=1, max_size=60),
    points=st.integers(0, 40),
    bounds=st.tuples(st.none() | st.integers(0, 3000), st.none() | st.integers(0, 3000)),
    axis=st.sampled_from(["step", "time"]),
    pace=st.lists(st.sampled_from([0.0, 0.1, 1.0, 500.0, -3.0]), min_size=1, max_size=7),
)
@settings(max_examples=40)
def test_downsampling_keeps_every_bad_step_and_the_extremes_of_the_good_ones(
    tmp_path_factory: pytest.TempPathFactory,
    *,
    gaps: list[int],
    filler: int,
    kinds: list[tuple[str, float | str]],
    points: int,
    bounds: tuple[int | None, int | None],
    axis: Axis,
    pace: list[float],
) -> None:
    """Compared with the records themselves, for dense and sparse steps, partial ranges, fast and slow steps."""
    stored: dict[int, tuple[str, float | str]] = {}
    at = 0
    for gap in gaps * (filler + 1):
        at += gap
        stored[at] = kinds[at % len(kinds)]
    columns: dict[str, list[Any]] = {
        "step": list(stored),
        "time": [1e6 + time for time in itertools.accumulate(pace[step % len(pace)] for step in stored)],
        "outcome": [outcome for outcome, _ in stored.values()],
        "finite": [outcome in {"applied", "skipped_large"} for outcome, _ in stored.values()],
        "norm": [norm for _, norm in stored.values()],
        "mini_step": [None] * len(stored),
    }
    since, until = bounds
    with fresh(tmp_path_factory) as kept:
        trainer = Trainer(kept.clock)
        trainer.state.outcomes.update(dict.fromkeys(OUTCOMES, at))
        kept.take(trainer.report(steps=columns))
        answer = kept.store.steps("lm", 0, since=since, until=until, points=points, axis=axis)
        check_blocks(kept.directory)
    asked = {s: row for s, row in stored.items() if s >= (since or 0) and (until is None or s <= until)}
    good = {s: float(norm) for s, (outcome, norm) in asked.items() if outcome == "applied"}
    got = rows(answer)
    steps = [row[0] for row in got]
    assert steps == sorted(set(steps))
    assert {(s, v, str(n)) for s, v, _, n in got} <= {(s, v, str(n)) for s, (v, n) in asked.items()}
    assert answer.total == len(asked)
    assert set(asked) - set(good) <= set(steps)
    shown = [s for s in steps if s in good]
    assert answer.sampled == (len(good) > points)
    if not answer.sampled:
        assert shown == list(good)
        return
    assert len(shown) <= points
    if points >= 2:
        as_number = {s: float("inf") if n != n else n for s, n in good.items()}  # noqa: PLR0124 NaN
        assert min(as_number.values()) == min(as_number[s] for s in shown)
        assert max(as_number.values()) == max(as_number[s] for s in shown)


@pytest.mark.parametrize("points", [10, 100, 2000])
@pytest.mark.parametrize("since", [1, 777])
def test_downsampling_keeps_the_extremes_of_every_bucket(kept: Kept, points: int, since: int) -> None:
    """The buckets are computed here again; wide ones consist of whole blocks."""
    chance = random.Random(points)
    trainer = Trainer(kept.clock)
    norms: dict[int, float] = {}
    for _ in range(8):
        for _ in range(5_000):
            trainer.step(norm=chance.random())
            norms[trainer.state.steps] = trainer.columns["norm"][-1]
        kept.take(trainer.report())
    wanted = {step: norm for step, norm in norms.items() if step >= since}
    shown = [row[0] for row in rows(kept.store.steps("lm", 0, since=since, points=points))]
    count = (points - 2) // 2  # the first and the last step are always shown
    width = -(-len(wanted) // count)
    unit, first = (SIZE, since // SIZE) if width >= 2 * SIZE else (1, since)
    together = -(-(len(norms) // unit - first + 1) // count)
    parts: dict[int, list[int]] = {}
    for step in wanted:
        parts.setdefault((step // unit - first) // together, []).append(step)
    extremes = {choose(part, key=wanted.__getitem__) for part in parts.values() for choose in (min, max)}
    assert shown == sorted(extremes | {since, len(norms)})
    assert points * 0.6 <= len(shown) <= points


@pytest.mark.thin(5)
@pytest.mark.parametrize("axis", ["step", "time"])
@pytest.mark.parametrize(("steps", "points"), [(3_000, 100), (40_000, 100), (40_000, 2000)])
def test_downsampling_keeps_a_spike_of_the_loss_alone(kept: Kept, axis: Axis, steps: int, points: int) -> None:
    """In both directions, where the norm shows nothing: at its place by step number and by time, in a range too."""
    chance = random.Random(points)
    spikes = {steps // 3: 1e6, steps // 2: -1e6, steps - 7: 1e5}
    trainer = Trainer(kept.clock)
    columns: dict[str, list[Any]] = {
        "step": list(range(1, steps + 1)),
        "time": [1e6 + step for step in range(1, steps + 1)],
        "outcome": ["applied"] * steps,
        "finite": [True] * steps,
        "norm": [chance.random() for _ in range(steps)],
        "mini_step": [None] * steps,
    }
    loss = [spikes.get(step, chance.random()) for step in columns["step"]]
    rate = [None if step % 3 else 0.1 for step in columns["step"]]
    trainer.state.outcomes.update(applied=steps)
    for first in range(0, steps, 8_000):
        part = slice(first, first + 8_000)
        of_part = {name: column[part] for name, column in columns.items()}
        kept.take(trainer.report(steps={**of_part, "scalars": {"loss": loss[part], "learning_rate": rate[part]}}))
    check_blocks(kept.directory)
    for since in (None, 100):
        answer = kept.store.steps("lm", 0, since=since, points=points, axis=axis)
        assert answer.sampled
        assert points * 0.5 <= len(answer.columns) <= points
        shown = dict(zip(answer.columns.step, answer.columns.scalars["loss"], strict=True))
        assert {step: value for step, value in shown.items() if value is not None and abs(value) > 1} == spikes


def test_a_non_finite_loss_counts_as_the_largest_norm_of_its_bucket(kept: Kept) -> None:
    """It is in no extreme of the loss, which is that of the finite ones."""
    trainer = Trainer(kept.clock)
    for step in range(1, 1001):
        trainer.step(norm=1.0 + step / 1e4)
    loss = ["NaN" if step == 500 else float(step) for step in range(1, 1001)]
    kept.take(trainer.report(steps={**trainer.columns, "scalars": {"loss": loss}}))
    check_blocks(kept.directory)
    shown = kept.store.steps("lm", 0, points=8).columns
    assert 500 in shown.step


def test_downsampling_by_time_keeps_slow_steps_among_many_fast_ones(kept: Kept) -> None:
    """After 40,000 steps in seven minutes, 500 steps in eight hours are shown in every part of these hours."""
    chance = random.Random(5)
    fast, slow, points = 40_000, 500, 200
    steps = list(range(1, fast + slow + 1))
    times = [step * 0.01 if step <= fast else fast * 0.01 + (step - fast) * 60.0 for step in steps]
    norms = [chance.random() for _ in steps]
    columns: dict[str, list[Any]] = {
        "step": steps,
        "time": times,
        "outcome": ["applied"] * len(steps),
        "finite": [True] * len(steps),
        "norm": norms,
        "mini_step": [None] * len(steps),
    }
    trainer = Trainer(kept.clock)
    trainer.state.outcomes.update(applied=len(steps))
    for first in range(0, len(steps), 8_000):
        kept.take(trainer.report(steps={name: column[first : first + 8_000] for name, column in columns.items()}))

    def shown(axis: Axis) -> list[int]:
        found = [row[0] for row in rows(kept.store.steps("lm", 0, points=points, axis=axis))]
        assert len(found) <= points
        return found

    assert sum(step > fast for step in shown("step")) < 10
    by_time = shown("time")
    count = (points - 2) // 2
    width = (times[-1] - times[0]) / count
    parts: dict[int, list[int]] = {}
    for step, time in zip(steps, times, strict=True):
        parts.setdefault(min(count - 1, int((time - times[0]) / width)), []).append(step)
    # Where a block of steps lasts longer than a part, each part's own; before it, and on the border, those of blocks.
    clear = [part for part in parts.values() if part[0] > fast + 2 * SIZE]
    assert len(clear) > 0.6 * count
    for part in clear:
        assert set(by_time) >= {choose(part, key=lambda step: norms[step - 1]) for choose in (min, max)}
    assert set(by_time) & set(range(1, fast + 1))
