"""Series: steps counted in buckets of time agree with counting every step."""

import csv
import io
import math
import random
from collections import Counter
from typing import Any

import pytest
from optwrap_exporter.store.steps import record_series
from optwrap_exporter.store.steps.grid import BUCKETS, WIDTHS, BucketsError, Wanted
from optwrap_exporter.wire.series import SeriesLine

from tests.exporter.running import START, Job, Served
from tests.exporter.stores import Kept
from tests.exporter.trainer import Trainer, first_replica

Step = tuple[float, str, tuple[str, ...], int | None]
"""Time, kind, non-finite parameters, replica."""
OUTCOMES = (
    "applied",
    "applied",
    "applied",
    "accumulated",
    "skipped_not_finite",
    "skipped_large",
    "accepted_not_finite",
)


def history(kept: Kept, seed: int, steps: int = 1500) -> list[Step]:
    """A run with pauses and a rollback. Returns every step that was taken."""
    rnd = random.Random(seed)
    taken: list[Step] = []
    trainer = Trainer(kept.clock)
    kept.take(trainer.hello())
    saved = None
    for number in range(steps):
        kept.clock.advance(rnd.choice([0.1, 0.5, 0.5, 2.0]) + (500 if rnd.random() < 0.003 else 0))
        outcome = rnd.choice(OUTCOMES)
        bad = outcome.endswith("not_finite") or (outcome == "accumulated" and rnd.random() < 0.3)
        names = tuple(f"layer_{k}/w" for k in range(3) if rnd.random() < 0.6) if bad else ()
        names = names or (("layer_9/w",) if bad else ())
        replica = rnd.randrange(3) if bad and rnd.random() < 0.5 else None
        trainer.step(
            outcome,
            "NaN" if bad else 1.0,
            offenders=dict.fromkeys(names, 2),
            replica=None if replica is None else first_replica(replica, 0, f"cpu:{replica}"),
        )
        kind = "accumulated_not_finite" if outcome == "accumulated" and bad else outcome
        taken.append((kept.clock(), kind, names, replica))
        if number == steps // 3:
            saved = trainer.state.copy()
        if number % 40 == 39:
            kept.take(trainer.report())
        if number == 2 * steps // 3:
            kept.take(trainer.report())
            assert saved is not None
            trainer = Trainer(kept.clock, state=saved)
    kept.take(trainer.report())
    return taken


def counted(line: SeriesLine, times: list[float]) -> dict[float, int]:
    return {time: count for time, count in zip(times, line.counts, strict=True) if count}


@pytest.mark.parametrize("width", [5.0, 60.0, 3600.0, None])
@pytest.mark.parametrize("part", ["all", "middle"])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_step_is_in_its_bucket(kept: Kept, width: float | None, part: str, seed: int) -> None:
    taken = history(kept, seed)
    since, until = (None, None) if part == "all" else (taken[400][0], taken[1200][0])
    if width == 5.0:
        since, until = taken[100][0], taken[100][0] + 900
    expected = [one for one in taken if (since or 0) <= one[0] < (until or math.inf)]
    found = kept.store.series("lm", 0, Wanted("outcome", since, until, width))
    assert found.bucket is not None
    assert found.bucket == (width or found.bucket)
    assert found.bucket in (*WIDTHS, width)

    def bucket(time: float) -> float:
        assert found.bucket is not None
        return math.floor(time / found.bucket) * found.bucket

    assert dict(zip(found.times, found.steps, strict=True)) == {
        time: Counter(bucket(one[0]) for one in expected)[time] for time in found.times
    }
    for line in found.lines:
        mine = [one[0] for one in expected if one[1] == line.of.kind]
        assert line.total == len(mine)
        assert counted(line, found.times) == Counter(map(bucket, mine))
    assert sum(line.total for line in found.lines) == len(expected)
    by_parameter = kept.store.series("lm", 0, Wanted("parameter", since, until, width))
    assert {line.of.parameter for line in by_parameter.lines} == {name for one in expected for name in one[2]}
    for line in by_parameter.lines:
        mine = [one[0] for one in expected if line.of.parameter in one[2]]
        assert counted(line, found.times) == Counter(map(bucket, mine))
        assert line.values == [2 * count for count in line.counts]
        assert (line.first_time, line.last_time) == (min(mine), max(mine))
    by_replica = kept.store.series("lm", 0, Wanted("replica", since, until, width))
    for line in by_replica.lines:
        mine = [one[0] for one in expected if one[3] == line.of.replica]
        assert counted(line, found.times) == Counter(map(bucket, mine))
    assert {line.of.device for line in by_replica.lines} == {f"cpu:{one[3]}" for one in expected if one[3] is not None}


def test_only_the_largest_lines_are_shown_and_the_others_counted(kept: Kept) -> None:
    history(kept, 0, steps=300)
    whole = kept.store.series("lm", 0, Wanted("parameter"))
    cut = kept.store.series("lm", 0, Wanted("parameter", limit=2))
    assert cut.lines == whole.lines[:2]
    assert cut.left_out == len(whole.lines) - 2
    assert [line.total for line in whole.lines] == sorted((line.total for line in whole.lines), reverse=True)
    one = kept.store.series("lm", 0, Wanted("parameter", parameters=("layer_9/w", "no/such")))
    assert one.lines == [line for line in whole.lines if line.of.parameter == "layer_9/w"]


def test_of_very_many_bad_steps_a_sample_gives_an_estimate(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    history(kept, 0)
    whole = kept.store.series("lm", 0, Wanted("parameter"))
    monkeypatch.setattr(record_series, "MOST_RECORDS", 400)
    part = kept.store.series("lm", 0, Wanted("parameter"))
    assert whole.sampled is None
    assert part.sampled is not None
    assert part.sampled < 1
    totals = {line.of.parameter: line.total for line in part.lines}
    for line in whole.lines:
        assert totals[line.of.parameter] == pytest.approx(line.total, rel=0.4)
    assert part.steps == whole.steps


def test_too_many_buckets_are_refused_with_the_least_width(kept: Kept) -> None:
    taken = history(kept, 0, steps=300)
    with pytest.raises(BucketsError) as error:
        kept.store.series("lm", 0, Wanted("outcome", taken[0][0] - 5, taken[0][0] + 1e6, 1e-3))
    assert len(kept.store.series("lm", 0, Wanted("outcome", width=error.value.least)).times) <= BUCKETS


def test_a_range_without_steps_has_no_lines(kept: Kept) -> None:
    history(kept, 0, steps=100)
    for wanted in (Wanted("outcome", since=START + 1e6), Wanted("outcome", until=START - 5)):
        found = kept.store.series("lm", 0, wanted)
        assert (found.lines, found.times, found.since) == ([], [], None)
    assert kept.store.series("nobody", 0, Wanted("outcome")).lines == []


@pytest.fixture(scope="module")
def filled(shared: Served) -> Served:
    """Two hours: in the first a tenth of the steps is skipped, in the second half of them."""
    job = Job(clock=shared.clock)
    shared.clock.now = math.ceil(START / 3600) * 3600
    for number in range(720):
        if number % 2 == 0 if number >= 360 else number % 10 == 0:
            job.step("skipped_not_finite", "NaN", layer__w=7)
        else:
            job.step()
        shared.clock.advance(10)
        if number % 100 == 99:
            shared.send(job.report())
    shared.send(job.report())
    return shared


def get(site: Served, **query: Any) -> dict[str, Any]:
    answer: dict[str, Any] = site.get("/v1/runs/lm/series", **query)
    return answer


def test_skips_per_hour_by_reason_are_one_request(filled: Served) -> None:
    found = get(filled, bucket="1h", since="-86400")
    assert found["steps"] == [360, 360]
    (skipped,) = [line for line in found["lines"] if line["of"]["kind"] == "skipped_not_finite"]
    assert skipped["counts"] == [36, 180]
    assert skipped["share"] == [0.1, 0.5]
    assert skipped["per_second"][0] == pytest.approx(0.01, rel=0.01)
    assert found["times_rfc3339"] == ["2025-11-22T09:00:00.000Z", "2025-11-22T10:00:00.000Z"]


def test_when_a_parameter_went_bad_is_one_request(filled: Served) -> None:
    (line,) = get(filled, by="parameter", parameter="layer/w")["lines"]
    assert (line["first_step"], line["last_step"]) == (1, 719)
    assert line["first_time_rfc3339"] == "2025-11-22T09:00:00.000Z"


def test_a_series_as_csv_has_a_row_for_each_bucket_of_each_line(filled: Served) -> None:
    answer = filled.client.get("/v1/runs/lm/series", params={"bucket": "1h"}, headers={"accept": "text/csv"})
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [(row["kind"], row["count"]) for row in rows] == [
        ("applied", "324"),
        ("applied", "180"),
        ("skipped_not_finite", "36"),
        ("skipped_not_finite", "180"),
    ]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"bucket": "0"}, "bucket"),
        ({"bucket": "1 week"}, "bucket"),
        ({"bucket": "1"}, "bucket"),
        ({"by": "layer"}, "by"),
        ({"parameter": "layer/w"}, "parameter"),
        ({"since": "-60", "until": "-120"}, "until"),
    ],
)
def test_what_is_wrong_is_named(filled: Served, query: dict[str, str], field: str) -> None:
    answer = filled.client.get("/v1/runs/lm/series", params=query)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["field"] == field


def test_an_unknown_run_or_process_is_404(filled: Served) -> None:
    assert filled.client.get("/v1/runs/none/series").status_code == 404
    assert filled.client.get("/v1/runs/lm/series", params={"process": 7}).status_code == 404
