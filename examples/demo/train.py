"""The training job: with optwrap and without, on the same damaged data."""

import functools
from collections.abc import Iterable, Iterator
from typing import Any, Final, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optwrap
from examples.demo import model, optimizer
from examples.demo.data import Batch, Corpus
from examples.demo.faults import damaged
from examples.demo.progress import Progress
from examples.demo.settings import SAVE_EVERY, STOP_AFTER, Settings

POLICY: Final = optwrap.StopPolicy(not_finite_streak=STOP_AFTER)
Emit = Literal["reading", "callback"]
Losses = np.ndarray[Any, np.dtype[np.float32]]
"""float32[steps]: the language model's loss in each micro-step, nats per character."""


class Rollback(NamedTuple):
    """A stop of the training, and how it went on."""

    stop: optwrap.Stop
    restored: int
    """The step of the checkpoint that was restored."""
    left_out: tuple[int, ...]
    """The batches that were left out from then on."""


class Training(NamedTuple):
    """A training with optwrap."""

    losses: Losses
    """Without the steps that were rolled back."""
    rollbacks: list[Rollback]


def with_optwrap(
    settings: Settings,
    *,
    seed: int,
    monitor: optwrap.Monitor,
    emit: Emit,
    progress: Progress,
    recorder: optwrap.Recorder,
) -> Training:
    """Train with optwrap: a bad batch is skipped, `monitor` reports it, and `recorder` keeps the first one.

    A training script adds only the lines marked `# 1`, and with emit="reading" those marked `# 2`. The lines marked
    `# 3` stop and roll back, if `monitor` has a policy; those marked `# 4` are for an autopsy. Here checkpoints are
    copies on the device, so that the demo needs no files; `examples/stop_and_roll_back.py` saves them with orbax.
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

    @jax.jit
    def copied(tree: Any) -> Any:
        return jax.tree.map(jnp.copy, tree)

    params, losses = job.params, []
    opt_state = tx.init(params)
    glance = jax.jit(optwrap.reading)  # for the progress bar, a few times a second
    numbers = list(range(1, settings.steps + 1))  # step n takes the n-th of these batches
    batches, done = job.batches(numbers), 0
    checkpoints, rollbacks = {0: copied((params, opt_state))}, []
    while done < len(numbers):
        batch = next(batches)
        recorder.hold(batch)  # 4
        params, opt_state, loss, reading = step(params, opt_state, batch)
        done += 1
        if reading is not None:
            monitor.observe(reading, loss=loss)  # 2
            recorder.observe(reading)  # 4
        losses.append(loss)
        progress.advance(numbers[done - 1], loss, functools.partial(glance, opt_state))
        if stop := monitor.should_stop():  # 3
            left_out = tuple(numbers[bad.step - 1] for bad in stop.bad_steps)
            checkpoints = {saved: state for saved, state in checkpoints.items() if saved <= stop.last_clean_step}
            done = max(checkpoints)
            params, opt_state = copied(checkpoints[done])  # a copy, because the next step overwrites it
            numbers = [number for number in numbers if number not in left_out]
            batches = job.batches(numbers[done:])
            del losses[done:]
            rollbacks.append(Rollback(stop, done, left_out))
        elif done % SAVE_EVERY == 0:
            # The newest one may be from after the last clean step.
            checkpoints = {max(checkpoints): checkpoints[max(checkpoints)], done: copied((params, opt_state))}
    jax.block_until_ready(opt_state)  # type: ignore[no-untyped-call]  # jax gives it no types
    return Training(np.array(jax.device_get(losses), np.float32), rollbacks)


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
    for number, batch in enumerate(job.batches(range(1, settings.steps + 1)), start=1):
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

    def batches(self, numbers: Iterable[int]) -> Iterator[Batch]:
        """The batches of these numbers, which ascend from 1, damaged as the settings say."""
        stored = enumerate(self._corpus.batches(self._settings.batch, self._seed), start=1)
        for number in numbers:
            batch = next(batch for at, batch in stored if at == number)
            yield self._corpus.decode(damaged(batch, number, self._settings.faults))
