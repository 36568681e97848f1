"""Buckets of steps are exact: every step is in one bucket, and each bucket has the norms and times of its steps."""

import itertools
import statistics
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optwrap_exporter.store.steps.downsample import Axis
from optwrap_exporter.wire.step_answers import StepBuckets
from optwrap_exporter.wire.vocabulary import OUTCOMES

from tests.exporter.running import Job, Served
from tests.exporter.stores import Kept, fresh, kind_in_words
from tests.exporter.trainer import Trainer

Record = tuple[int, float, str, bool, float]
"""Step, time, outcome, finite, norm."""


def of(answer: StepBuckets, number: int) -> list[Any]:
    """What a bucket says."""
    counts = {kind: column[number] for kind, column in answer.kinds.items() if column[number]}
    norms = [answer.norm_min[number], answer.norm_median[number], answer.norm_max[number]]
    return [Counter(counts), *norms, answer.first_time[number], answer.last_time[number]]


def truth(records: list[Record]) -> list[Any]:
    """What a bucket of these records has to say."""
    norms = [norm for *_, norm in records if norm < float("inf")]
    found = [min(norms), statistics.median_low(norms), max(norms)] if norms else [None] * 3
    times = [time for _, time, *_ in records]
    return [Counter(kind_in_words(o, finite) for _, _, o, finite, _ in records), *found, min(times), max(times)]


@given(
    gaps=st.lists(st.sampled_from([1, 1, 1, 2, 100, 5000]), min_size=1, max_size=60),
    filler=st.integers(0, 40),
    kinds=st.lists(
        st.tuples(st.sampled_from(OUTCOMES), st.booleans(), st.floats(0, 1e300) | st.sampled_from(["NaN", "Infinity"])),
        min_size=1,
        max_size=60,
    ),
    count=st.integers(1, 40),
    bounds=st.tuples(st.none() | st.integers(0, 3000), st.none() | st.integers(0, 3000)),
    axis=st.sampled_from(["step", "time"]),
    pace=st.lists(st.sampled_from([0.0, 0.1, 1.0, 500.0, -3.0]), min_size=1, max_size=7),
)
@settings(max_examples=60)
def test_buckets_are_exact(
    tmp_path_factory: pytest.TempPathFactory,
    *,
    gaps: list[int],
    filler: int,
    kinds: list[tuple[str, bool, float | str]],
    count: int,
    bounds: tuple[int | None, int | None],
    axis: Axis,
    pace: list[float],
) -> None:
    """Compared with the records themselves, for dense and sparse steps, partial ranges, fast and slow steps."""
    steps = list(itertools.accumulate(gaps * (filler + 1)))
    of_step = [kinds[step % len(kinds)] for step in steps]
    times = [1e6 + time for time in itertools.accumulate(pace[step % len(pace)] for step in steps)]
    columns: dict[str, list[Any]] = {
        "step": steps,
        "time": times,
        "outcome": [outcome for outcome, _, _ in of_step],
        "finite": [finite for _, finite, _ in of_step],
        "norm": [norm for _, _, norm in of_step],
        "mini_step": [None] * len(steps),
    }
    since, until = bounds
    with fresh(tmp_path_factory) as kept:
        trainer = Trainer(kept.clock)
        trainer.state.outcomes.update(dict.fromkeys(OUTCOMES, steps[-1]))
        kept.take(trainer.report(steps=columns))
        answer = kept.store.steps("lm", 0, since=since, until=until, axis=axis, buckets=count)
    asked: list[Record] = [
        (step, time, outcome, finite, float(norm))
        for step, time, outcome, finite, norm in zip(
            steps, times, columns["outcome"], columns["finite"], columns["norm"], strict=True
        )
        if step >= (since or 0) and (until is None or step <= until)
    ]
    found = answer.buckets
    assert found is not None
    number = len(found.first_time)
    assert number <= count
    assert sum(sum(column) for column in found.kinds.values()) == answer.total == len(asked)
    if axis == "step":
        assert found.since is not None
        assert found.until is not None
        parts = [
            [record for record in asked if first <= record[0] <= last]
            for first, last in zip(found.since, found.until, strict=True)
        ]
        assert [of(found, i) for i in range(number)] == [truth(part) for part in parts]
        assert all(last < first for last, first in zip(found.until, found.since[1:], strict=False))
        return
    assert all(last < first for last, first in zip(found.last_time, found.first_time[1:], strict=False))
    parts = [
        [record for record in asked if first <= record[1] <= last]
        for first, last in zip(found.first_time, found.last_time, strict=True)
    ]
    assert [of(found, i) for i in range(number)] == [truth(part) for part in parts]
    assert all(
        last - first <= found.width * (1 + 1e-9) for first, last in zip(found.first_time, found.last_time, strict=True)
    )


def test_a_step_taken_again_counts_again(kept: Kept) -> None:
    """The first two steps are taken twice."""
    for attempt, norms in (("one", (1.0, 2.0, 3.0)), ("two", (5.0, 7.0))):
        trainer = Trainer(kept.clock, attempt=attempt)
        for norm in norms:
            kept.clock.advance(1)
            trainer.step(norm=norm)
        kept.take(trainer.report())
    found = kept.store.steps("lm", 0, buckets=2).buckets
    assert found is not None
    assert (found.since, found.until) == ([1, 3], [2, 3])
    assert found.kinds == {"applied": [4, 1]}
    assert (found.norm_min, found.norm_median, found.norm_max) == ([1.0, 3.0], [2.0, 3.0], [7.0, 3.0])


def test_an_unknown_range_has_no_buckets(kept: Kept) -> None:
    kept.take(Trainer(kept.clock).report())
    for axis in ("step", "time"):
        found = kept.store.steps("lm", 0, since=500, axis=axis, buckets=3).buckets
        assert found is not None
        assert (found.first_time, found.kinds) == ([], {})


def test_buckets_come_only_if_asked_for(site: Served) -> None:
    job = Job(clock=site.clock)
    for outcome, norm in (("applied", 1.0), ("skipped_not_finite", "NaN"), ("skipped_large", 90.0)):
        site.clock.advance(1)
        job.step(outcome, norm, **({"w": 1} if norm == "NaN" else {}))
    site.send(job.report())
    assert site.get("/v1/runs/lm/steps")["buckets"] is None
    now = site.clock()
    assert site.get("/v1/runs/lm/steps", buckets=2)["buckets"] == {
        "axis": "step",
        "width": 2.0,
        "since": [1, 3],
        "until": [2, 3],
        "first_time": [now - 2, now],
        "last_time": [now - 1, now],
        "norm_min": [1.0, 90.0],
        "norm_median": [1.0, 90.0],
        "norm_max": [1.0, 90.0],
        "kinds": {"applied": [1, 0], "skipped_not_finite": [1, 0], "skipped_large": [0, 1]},
    }
    refused = site.client.get("/v1/runs/lm/steps", params={"buckets": 2001})
    assert refused.status_code == 422
