"""Trackers: callables for `Monitor(on_step=...)` that log each step to W&B, TensorBoard, MLflow or trackio.

For example::

    monitor = optwrap.Monitor(run="my-run", on_step=optwrap.trackers.tensorboard("logs"))

The tracker's own package must be installed. To log beside your own values, in
your own loop, pass `metrics(...)` to your own logger instead::

    wandb.log({"loss": loss, **optwrap.trackers.metrics(monitor.latest())})
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from optwrap._monitor.local.record import StepRecord
from optwrap._reading.counters import is_bad
from optwrap._reading.unpack import Reading

__all__ = ["PREFIX", "OnStep", "SummaryWriter", "metrics", "mlflow", "tensorboard", "trackio", "wandb"]

PREFIX: Final = "optwrap/"
"""The beginning of every name that is logged."""

OnStep = Callable[[StepRecord], None]
"""What `Monitor(on_step=...)` takes."""


class SummaryWriter(Protocol):
    """What TensorBoard's writers have in common: those of tensorboardX, PyTorch and others."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int | None = None) -> Any:
        """Log one value."""


def metrics(step: StepRecord | Reading | None) -> dict[str, float]:
    """The values of one step by name, such as `optwrap/gradient_norm` or `optwrap/scalar/loss`; none if `step` is None.

    Scalars have a prefix of their own, so that none can take the name of a gauge or of a total.

    Args:
      step: a record, or a reading: `Monitor.latest()`, or the result of `optwrap.unpack`.

    Returns:
      The gauges of the step, by their names; its scalars, as `scalar/NAME`; the totals of the state: `steps`,
      `not_finite_steps`, and the steps by outcome, `steps_applied` and so on. A norm or a scalar may be non-finite.
    """
    if step is None:
        return {}
    reading = step.reading if isinstance(step, StepRecord) else step
    totals = reading.totals
    found: dict[str, float] = {
        **{f"scalar/{name}": value for name, value in reading.scalars.items()},
        **reading.gauges,
        "steps": totals.steps,
        "not_finite_steps": totals.not_finite_steps,
    }
    found |= {f"steps_{outcome}": count for outcome, count in totals.outcomes.items()}
    return {PREFIX + name: value for name, value in found.items()}


def wandb(run: Any = None, *, every: int = 1) -> OnStep:
    """Logs to a run of Weights & Biases.

    W&B numbers the rows of a run by one counter, and ignores rows that come late. So give this a run to which nothing
    else is logged; or log `metrics(monitor.latest())` with your own values. The x-axis is `optwrap/step`.

    Args:
      run: the run, as `wandb.init` returns it. Default: the current one.
      every: log each n-th step, and every bad one.

    Raises:
      ModuleNotFoundError: the package is not installed.
      ValueError: there is no current run, or `every` is no integer from 1 on.
    """
    if run is None:
        import wandb as package  # noqa: PLC0415  # only when used

        run = package.run
        if run is None:
            raise ValueError("wandb: there is no current run; allowed: call wandb.init(...) first, or pass a run")
    run.define_metric(f"{PREFIX}step")
    run.define_metric(f"{PREFIX}*", step_metric=f"{PREFIX}step")
    return _thinned(every, lambda values, record: run.log({**values, f"{PREFIX}step": record.step}))


def tensorboard(writer: SummaryWriter | str, *, every: int = 1) -> OnStep:
    """Logs to TensorBoard.

    Args:
      writer: anything with TensorBoard's `add_scalar`: a `SummaryWriter` of tensorboardX or of PyTorch. Or the log
        directory, for a writer of tensorboardX.
      every: log each n-th step, and every bad one.

    Raises:
      ModuleNotFoundError: tensorboardX is not installed.
      ValueError: `every` is no integer from 1 on.
    """
    if isinstance(writer, str):
        from tensorboardX import SummaryWriter as Writer  # noqa: PLC0415  # only when used

        to: SummaryWriter = Writer(writer)
    else:
        to = writer

    def log(values: Mapping[str, float], record: StepRecord) -> None:
        for name, value in values.items():
            to.add_scalar(name, value, record.step)

    return _thinned(every, log)


def mlflow(run_id: str | None = None, *, every: int = 1) -> OnStep:
    """Logs to a run of MLflow, at the tracking address that is set when this is called.

    Args:
      run_id: the run. Default: the active one.
      every: log each n-th step, and every bad one.

    Raises:
      ModuleNotFoundError: the package is not installed.
      ValueError: there is no active run, or `every` is no integer from 1 on.
    """
    import mlflow as package  # noqa: PLC0415  # only when used
    from mlflow.entities import Metric  # noqa: PLC0415

    active = package.active_run()
    if run_id is None:
        if active is None:
            raise ValueError("mlflow: there is no active run; allowed: call mlflow.start_run() first, or pass a run_id")
        run_id = active.info.run_id
    client, run = package.MlflowClient(), run_id

    def log(values: Mapping[str, float], record: StepRecord) -> None:
        milliseconds = int(record.time * 1000)
        client.log_batch(run, [Metric(name, value, milliseconds, record.step) for name, value in values.items()])

    return _thinned(every, log)


def trackio(run: Any, *, every: int = 1) -> OnStep:
    """Logs to a run of trackio.

    Args:
      run: the run, as `trackio.init` returns it. (`trackio.log` finds it only in the thread that made it.)
      every: log each n-th step, and every bad one.

    Raises:
      ValueError: `every` is no integer from 1 on.
    """
    return _thinned(every, lambda values, record: run.log(dict(values), step=record.step))


def _thinned(every: int, log: Callable[[Mapping[str, float], StepRecord], object]) -> OnStep:
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ValueError(f"every: got {every!r}; allowed: an integer from 1 on")

    def on_step(record: StepRecord) -> None:
        if record.step % every == 0 or is_bad(record.outcome, record.finite):
            log(metrics(record), record)

    return on_step
