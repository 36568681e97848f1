"""The summary at the end of the demo: the faults, what the exporter counted, and the loss."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from examples.demo.model import probe_path
from examples.demo.settings import Settings
from examples.demo.train import Losses, Rollback, Training

LAST = 20
"""Micro-steps over which the final loss is averaged."""


def summarize(settings: Settings, answer: dict[str, Any] | None, training: Training, baseline: Losses | None) -> str:
    """The summary, as lines.

    Args:
      settings: what was trained, with its faults.
      answer: of GET /v1/runs/{run}; None if there is none.
      training: the one with optwrap.
      baseline: the losses of the one without; None if there was none.
    """
    lines = ["", "Faults in the data:", *_faults(settings)]
    if answer is not None:
        lines += ["Counted by the exporter:", *_counted(answer)]
    if training.rollbacks:
        lines += ["Stopped, and recovered:", *map(_rolled_back, training.rollbacks)]
    lines += ["Loss in nats per character, first and last:", f"  with optwrap     {_course(training.losses)}"]
    if baseline is not None:
        lines.append(f"  without optwrap  {_course(baseline)}  (optax.MultiSteps around the same adamw, same data)")
    return "\n".join([*lines, ""])


def final(losses: Losses) -> float:
    """The mean of the last steps: NaN if one of them is."""
    return float(np.mean(losses[-LAST:]))


def _faults(settings: Settings) -> Iterator[str]:
    for fault in settings.faults:
        if fault.first <= settings.steps:
            last = min(fault.first + fault.count - 1, settings.steps)
            batches = f"batch {fault.first}" if last == fault.first else f"batches {fault.first}-{last}"
            yield f"  {batches:<17}{fault.damage.title}, {probe_path(fault.layer)}: {fault.damage.outcome}"


def _counted(answer: dict[str, Any]) -> Iterator[str]:
    totals, gauges = answer["totals"], answer["gauges"]
    skipped = totals["skipped"]
    yield f"  {totals['steps']} steps, of which {totals['gradient_steps']} moved the parameters"
    yield (
        f"  skipped: {skipped['not_finite']} not finite, {skipped['large']} too large, {skipped['other']} other; "
        f"longest streak {gauges['not_finite_streak_peak']}"
    )
    yield f"  rebases: {gauges['guard_rebases']}; after one the guard takes norms at the new level"
    for bad in sorted(answer["parameters"], key=lambda parameter: int(parameter["first_step"])):
        steps = "1 step" if bad["steps"] == 1 else f"{bad['steps']} steps"
        yield f"  {bad['parameter']}: not finite in {steps}, first in step {bad['first_step']}"


def _rolled_back(one: Rollback) -> str:
    left_out = ", ".join(map(str, one.left_out))
    return f"  at step {one.stop.step}: {one.stop.reason}; went on from step {one.restored} without batches {left_out}"


def _course(losses: Losses) -> str:
    course = f"{losses[0]:.2f} -> {final(losses):.2f}"
    bad = np.flatnonzero(~np.isfinite(losses))
    return f"{course}, not finite from step {bad[0] + 1} on" if len(bad) else course
