"""The training job: with optwrap and without, on the same damaged data."""

import functools
import itertools
from collections.abc import Iterator
from typing import Any, Literal

import jax
import numpy as np
import optax

import optwrap
from examples.demo import model, optimizer
from examples.demo.data import Batch, Corpus
from examples.demo.faults import damaged
from examples.demo.progress import Progress
from examples.demo.settings import Settings

Emit = Literal["reading", "callback"]
Losses = np.ndarray[Any, np.dtype[np.float32]]
"""float32[steps]: the language model's loss in each micro-step, nats per character."""


def with_optwrap(
    settings: Settings,
    *,
    seed: int,
    monitor: optwrap.Monitor,
    emit: Emit,
    progress: Progress,
    recorder: optwrap.Recorder,
) -> Losses:
    """Train with optwrap: a bad batch is skipped, `monitor` reports it, and `recorder` keeps the first one.

    A training script adds only the lines marked `# 1`, with emit="reading" those marked `# 2`, and for an autopsy those
    marked `# 3`.
    """
    job = _Job(settings, seed)
    tx = optimizer.guarded(settings)
    tx = optwrap.instrument(tx, monitor, emit=emit)  # 1

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: model.Params, opt_state: Any, batch: Batch) -> Any:
        gradients, loss = job.gradients(params, batch)
        # With emit="callback" the loss goes with the update.
        scalars = {"scalars": {"loss": loss}} if emit == "callback" else {}
        updates, opt_state = tx.update(gradients, opt_state, params, **scalars)
        params = optax.apply_updates(params, updates)
        reading = optwrap.reading(opt_state) if emit == "reading" else None  # 2
        return params, opt_state, loss, reading

    params, losses = job.params, []
    opt_state = tx.init(params)
    glance = jax.jit(optwrap.reading)  # for the progress bar, a few times a second
    for number, batch in enumerate(job.batches(), start=1):
        recorder.hold(batch)  # 3
        params, opt_state, loss, reading = step(params, opt_state, batch)
        if reading is not None:
            monitor.observe(reading, loss=loss)  # 2
            recorder.observe(reading)  # 3
        losses.append(loss)
        progress.advance(number, loss, functools.partial(glance, opt_state))
    jax.block_until_ready(opt_state)  # type: ignore[no-untyped-call]  # jax gives it no types
    return np.array(jax.device_get(losses), np.float32)


def without_optwrap(settings: Settings, *, seed: int, progress: Progress) -> Losses:
    """The same training with optax alone, which skips nothing."""
    job = _Job(settings, seed)
    tx = optimizer.bare(settings)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: model.Params, opt_state: Any, batch: Batch) -> Any:
        gradients, loss = job.gradients(params, batch)
        updates, opt_state = tx.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    params, losses = job.params, []
    opt_state = tx.init(params)
    for number, batch in enumerate(job.batches(), start=1):
        params, opt_state, loss = step(params, opt_state, batch)
        losses.append(loss)
        progress.advance(number, loss)
    return np.array(jax.device_get(losses), np.float32)


def autopsy(settings: Settings, *, seed: int, held: optwrap.HeldStep) -> optwrap.Findings:
    """Why a step was bad.

    Its parameters are gone, because the step donates them. The fault is in the batch, so the initial ones will do.
    """
    job = _Job(settings, seed)
    return optwrap.autopsy(job.loss, job.params, *held.args)


class _Job:
    """What both trainings share: the initial parameters, the gradients, and the batches with their faults."""

    def __init__(self, settings: Settings, seed: int) -> None:
        self._settings = settings
        self._seed = seed
        self._corpus = Corpus(context=settings.context, layers=settings.layers)
        self._shape = model.Shape(
            vocabulary=len(self._corpus.vocabulary),
            context=settings.context,
            layers=settings.layers,
            heads=settings.heads,
            width=settings.width,
        )
        self.params = model.init(seed, self._shape)

    def gradients(self, params: model.Params, batch: Batch) -> tuple[model.Params, jax.Array]:
        """Gradients, and the language model's loss; to be traced."""
        gradients, loss = jax.grad(self.loss, has_aux=True)(params, batch)
        return gradients, loss

    def loss(self, params: model.Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """What is minimised, and the language model's part of it; to be traced."""
        return model.loss(params, self._shape, batch, self._corpus.scale)

    def batches(self) -> Iterator[Batch]:
        """One for each micro-step, damaged as the settings say."""
        stored = self._corpus.batches(self._settings.batch, self._seed)
        for number, batch in enumerate(itertools.islice(stored, self._settings.steps), start=1):
            yield self._corpus.decode(damaged(batch, number, self._settings.faults))
