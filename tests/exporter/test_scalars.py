"""Scalars, update norms and shares of the norm: from a report through the store to the API, the metrics and events."""

import math
from pathlib import Path
from typing import Any

import pytest
from optwrap_exporter.store.steps.rollups import SIZE
from optwrap_exporter.wire.vocabulary import MOST_SCALARS

from tests.exporter.running import START, Job, Served, served
from tests.exporter.stores import Kept
from tests.exporter.trainer import Trainer

SHARES = [{"parameter": "decoder/w", "norm_share": 0.93}, {"parameter": "embed", "norm_share": 0.05}]


def report(job: Job, **columns: Any) -> dict[str, Any]:
    """The next report, with more columns."""
    found = job.report()
    found["steps"] |= columns
    return found


def steps(exporter: Served) -> dict[str, Any]:
    """The columns of all steps."""
    found: dict[str, Any] = exporter.get("/v1/runs/lm/steps")["columns"]
    return found


def test_scalars_are_stored_with_their_steps(tmp_path: Path) -> None:
    with served(tmp_path) as exporter:
        job = Job(clock=exporter.clock)
        for _ in range(3):
            job.step()
        exporter.send(
            report(job, scalars={"loss": [3, 2.5, "NaN"], "lr": [0.1, None, 0.1]}, update_norm=[1, "NaN", None])
        )
        job.step()
        exporter.send(report(job, scalars={"loss": ["-Infinity"], "new": [7]}))
        assert steps(exporter)["scalars"] == {
            "loss": [3.0, 2.5, "NaN", "-Infinity"],
            "lr": [0.1, None, 0.1, None],
            "new": [None, None, None, 7.0],
        }
        assert steps(exporter)["update_norm"] == [1.0, "NaN", None, None]
        found = exporter.get("/v1/runs/lm")["scalars"]
        assert {name: (of["value"], of["step"], of["time"]) for name, of in found.items()} == {
            "loss": ("-Infinity", 4, START),
            "lr": (0.1, 3, START),
            "new": (7.0, 4, START),
        }
        scraped = exporter.scrape()
    assert 'optwrap_scalar{name="loss",process="0",run="lm"} 2.5' in scraped
    assert 'optwrap_update_norm{process="0",run="lm"} 1.0' in scraped


def test_steps_without_scalars_have_no_columns_for_them(tmp_path: Path) -> None:
    with served(tmp_path) as exporter:
        job = Job(clock=exporter.clock)
        job.step()
        exporter.send(job.report())
        assert not {"scalars", "update_norm"} & set(steps(exporter))
        assert exporter.get("/v1/runs/lm")["scalars"] == {}
        assert "optwrap_scalar{" not in exporter.scrape()


@pytest.mark.parametrize(
    ("columns", "field"),
    [
        ({"scalars": {"loss": [1, 2]}}, "scalars.loss"),
        ({"scalars": {"a-b": [1]}}, "scalars"),
        ({"scalars": {"a" * 65: [1]}}, "scalars"),
        ({"scalars": {"loss": ["nan"]}}, "scalars.loss"),
        ({"scalars": {"loss": [True]}}, "scalars.loss"),
        ({"scalars": {f"n{i}": [1] for i in range(MOST_SCALARS + 1)}}, "scalars"),
        ({"scalars": []}, "scalars"),
        ({"update_norm": [-1]}, "update_norm"),
        ({"update_norm": [1, 2]}, "update_norm"),
    ],
    ids=str,
)
def test_wrong_columns_are_refused(columns: dict[str, Any], field: str, tmp_path: Path) -> None:
    with served(tmp_path) as exporter:
        job = Job(clock=exporter.clock)
        job.step()
        answer = exporter.client.post("/v1/reports", json=report(job, **columns))
    assert answer.status_code == 422
    assert field in answer.json()["detail"][0]["field"]


@pytest.mark.parametrize(
    "offender",
    [{}, {"not_finite": 1, "norm_share": 0.5}, {"norm_share": 1.5}, {"norm_share": -0.5}, {"norm_share": "NaN"}],
    ids=str,
)
def test_an_offender_has_either_a_count_or_a_share(offender: dict[str, Any], tmp_path: Path) -> None:
    with served(tmp_path) as exporter:
        job = Job(clock=exporter.clock)
        job.step("skipped_large", norm=71)
        job.offenders = [{"step": 1, "parameter": "w", **offender}]
        assert exporter.client.post("/v1/reports", json=job.report()).status_code == 422


def test_a_spike_names_its_parameters(tmp_path: Path) -> None:
    with served(tmp_path) as exporter:
        job = Job(clock=exporter.clock)
        job.step("skipped_large", norm=71)
        job.offenders = [{"step": 1, **share} for share in SHARES]
        exporter.send(job.report())
        (event,) = exporter.get("/v1/runs/lm/events", kind="skipped")["items"]
        assert event["detail"] == {"norm": 71.0, "finite": True, "reason": "large", "norm_shares": SHARES}
        assert exporter.get("/v1/runs/lm")["parameters"] == [], "none is non-finite"
        message = exporter.store.changes(0, None, until=None, room=10_000).messages[0]
        assert [one.model_dump(exclude_none=True) for one in message.offenders] == [
            {"step": 1, **share} for share in SHARES
        ]


def test_a_restart_keeps_the_last_scalars(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    trainer = Trainer(kept.clock)
    trainer.step()
    trainer.columns |= {"scalars": {"loss": [0.5]}, "update_norm": [2.0]}  # type: ignore[dict-item]
    kept.take(trainer.report())
    again = kept.reopened()
    (view,) = again.ledger.process_views()
    assert (view.scalars, view.update_norm) == ({"loss": 0.5}, 2.0)
    again.store.close()


def test_a_loss_that_is_nan_is_the_last_loss_until_it_is_finite_again(tmp_path: Path) -> None:
    """Over a restart of the exporter, too. The metric has the last finite one."""
    kept = Kept(tmp_path)
    trainer = Trainer(kept.clock)

    def take(*losses: float | str | None) -> None:
        for _ in losses:
            trainer.step()
        trainer.columns |= {"scalars": {"loss": list(losses)}}  # type: ignore[dict-item]
        kept.take(trainer.report())

    def last(of: Kept) -> tuple[float, int | None]:
        row = of.ledger.summary("lm")
        assert row is not None
        return row.scalars["loss"].value, row.scalars["loss"].step

    take(0.5, "NaN", None)
    assert str(last(kept)) == "(nan, 2)"
    kept = kept.reopened()
    assert str(last(kept)) == "(nan, 2)"
    (view,) = kept.ledger.process_views()
    assert view.scalars == {"loss": 0.5}
    take(None)
    assert str(last(kept)) == "(nan, 2)"
    take("Infinity", 0.25)
    assert last(kept) == (0.25, 6)
    kept.store.close()


def test_the_names_of_a_process_are_bounded(tmp_path: Path) -> None:
    """A program whose names change keeps the last ones."""
    kept = Kept(tmp_path)
    trainer = Trainer(kept.clock)
    for number in range(40):
        trainer.step()
        trainer.columns |= {"scalars": {f"n{number}": [1.0]}}  # type: ignore[dict-item]
        kept.take(trainer.report())
    (view,) = kept.ledger.process_views()
    names = [f"n{number}" for number in range(39, 39 - MOST_SCALARS, -1)]
    assert list(view.scalars) == names
    columns = kept.store.steps("lm", 0, since=None, until=None, points=100).columns
    assert list(columns.scalars) == names
    kept.store.close()


def test_downsampling_keeps_good_steps_with_a_non_finite_scalar(tmp_path: Path) -> None:
    """Their norms are like all others, so only the scalar makes them stand out."""
    kept = Kept(tmp_path)
    trainer = Trainer(kept.clock)
    count, odd = 40 * SIZE, 17 * SIZE + 5
    for start in range(0, count, 512):
        for _ in range(512):
            trainer.step()
        given = ["NaN" if start + i + 1 == odd else 1.0 for i in range(512)]
        trainer.columns |= {"scalars": {"loss": given}}  # type: ignore[dict-item]
        kept.take(trainer.report())
    for axis in ("step", "time"):
        answer = kept.store.steps("lm", 0, since=None, until=None, points=20, axis=axis)
        assert answer.sampled
        losses = dict(zip(answer.columns.step, answer.columns.scalars["loss"], strict=True))
        assert math.isnan(losses[odd] or 0)
    kept.store.close()
