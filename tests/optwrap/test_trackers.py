"""The trackers, each against its real package, writing to local files."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import optwrap
from optwrap import trackers
from optwrap._monitor.monitor import Monitor
from optwrap._monitor.queue import Ending
from tests.optwrap.monitoring import Training

pytestmark = pytest.mark.filterwarnings("default")
"""These packages warn of their own affairs."""

OUTCOMES = ("applied", "applied", "skipped_not_finite", "applied", "applied")
NORMS = {1: 1.0, 2: 1.0, 3: math.nan, 4: 1.0, 5: 1.0}


def run(make: Callable[..., Monitor], on_step: trackers.OnStep) -> None:
    """Five steps, of which the third is bad."""
    training, monitor = Training(), make(endpoint="off", on_step=on_step)
    monitor.describe(training.layout)
    rows = []
    for outcome in OUTCOMES:
        training.step(outcome, {"head": 1} if "not_finite" in outcome else None)
        rows.append(np.array(training.words()))
    monitor.observe(np.stack(rows))
    assert monitor._lifecycle.worker is not None
    monitor._lifecycle.worker._request_end(Ending("finished"), 30)  # a busy machine: more than the 2 s of `close`
    assert monitor._lifecycle.worker.inbox.done.wait(60)


@pytest.fixture(autouse=True)
def no_calls_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """These packages report their own use and errors unless they are told not to."""
    monkeypatch.setenv("DO_NOT_TRACK", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")


class Writer:
    """TensorBoard's interface."""

    def __init__(self) -> None:
        self.written: dict[tuple[str, int], float] = {}

    def add_scalar(self, tag: str, scalar_value: float, global_step: int | None = None) -> None:
        assert global_step is not None
        self.written[tag, global_step] = scalar_value


@pytest.mark.parametrize(("every", "steps"), [(1, [1, 2, 3, 4, 5]), (2, [2, 3, 4]), (100, [3])])
def test_each_nth_step_and_every_bad_one_is_logged(make: Callable[..., Monitor], every: int, steps: list[int]) -> None:
    writer = Writer()
    run(make, trackers.tensorboard(writer, every=every))
    assert [step for tag, step in writer.written if tag == "optwrap/gradient_norm"] == steps
    at = writer.written
    assert (at["optwrap/steps", 3], at["optwrap/not_finite_steps", 3], at["optwrap/steps_applied", 3]) == (3, 1, 2)
    assert math.isnan(at["optwrap/gradient_norm", 3])


def test_metrics_of_a_reading_are_those_of_its_record() -> None:
    """Nothing before the first step, so that a loop can log `latest()` from its beginning."""
    reading = Training().step().reading()
    found = trackers.metrics(reading)
    assert found == trackers.metrics(optwrap.StepRecord("r", 0.0, False, reading))
    assert found["optwrap/steps"] == found["optwrap/steps_applied"] == 1
    assert trackers.metrics(None) == {}


def test_a_scalar_named_like_a_gauge_or_a_total_takes_no_place() -> None:
    """All three are logged: the user's `steps` is no count of ours, and ours is not lost to it."""
    plain = Training().step().reading()
    scalars = {"gradient_norm": 7.0, "steps": 8.0, "steps_applied": 9.0, "loss": 0.5}
    found = trackers.metrics(dataclasses.replace(plain, scalars=scalars))
    assert found == trackers.metrics(plain) | {f"optwrap/scalar/{name}": value for name, value in scalars.items()}


@pytest.mark.parametrize("every", [0, -1, True, 1.5, "2"])
def test_a_wrong_every_is_an_error(every: Any) -> None:
    with pytest.raises(ValueError, match=r"every: got .*allowed: an integer from 1 on"):
        trackers.tensorboard(Writer(), every=every)


def test_tensorboard_writes_event_files(make: Callable[..., Monitor], tmp_path: Path) -> None:
    import tensorboardX
    from tensorboardX.proto.event_pb2 import Event

    with tensorboardX.SummaryWriter(str(tmp_path)) as writer:
        run(make, trackers.tensorboard(writer))
    (file,) = tmp_path.iterdir()
    data = file.read_bytes()
    found: dict[tuple[int, str], float] = {}
    while data:
        size = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + size])
        data = data[16 + size :]
        found |= {(event.step, value.tag): value.simple_value for value in event.summary.value}
    norms = {step: value for (step, tag), value in found.items() if tag == "optwrap/gradient_norm"}
    assert {step: round(norm) for step, norm in norms.items() if step != 3} == {1: 1, 2: 1, 4: 1, 5: 1}
    assert math.isnan(norms[3])


def test_mlflow_logs_to_the_active_run(
    make: Callable[..., Monitor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The light package, mlflow-skinny, has no other store without a server.
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    import mlflow

    mlflow.set_tracking_uri(f"file://{tmp_path}/mlruns")
    with pytest.raises(ValueError, match="there is no active run"):
        trackers.mlflow()
    with mlflow.start_run() as active:
        run(make, trackers.mlflow())
        history = mlflow.MlflowClient().get_metric_history(active.info.run_id, "optwrap/not_finite_steps")
    assert [(metric.step, metric.value) for metric in history] == [(1, 0), (2, 0), (3, 1), (4, 1), (5, 1)]


def test_wandb_logs_to_an_offline_run(make: Callable[..., Monitor], tmp_path: Path) -> None:
    import wandb

    with pytest.raises(ValueError, match="there is no current run"):
        trackers.wandb()
    with wandb.init(project="p", dir=str(tmp_path), mode="offline", settings={"console": "off"}) as active:
        run(make, trackers.wandb())
        summary = dict(active.summary)
    assert (summary["optwrap/step"], summary["optwrap/not_finite_steps"]) == (5, 1)
    assert list(tmp_path.rglob("*.wandb"))


def test_trackio_logs_to_a_local_run(
    make: Callable[..., Monitor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    import trackio

    active = trackio.init(project="p", name="n", embed=False)
    run(make, trackers.trackio(active))
    active.finish()
    from trackio.sqlite_storage import SQLiteStorage

    logs = SQLiteStorage.get_logs("p", "n")
    assert [(row["step"], row["optwrap/not_finite_steps"]) for row in logs] == [(1, 0), (2, 0), (3, 1), (4, 1), (5, 1)]
