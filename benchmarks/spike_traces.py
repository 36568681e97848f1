"""Records gradient norms of real trainings: a transformer, a convolutional net, and reinforcement learning.

    python benchmarks/spike_traces.py [--steps N] [--out FILE]

Each is trained twice, on sound data and with faults in the data, and its learning rate changes on the way. In a step
with a fault the norm is recorded and the step left out, as a guard would, so that the trace goes on. The file has for
each training the norms (float32[steps]) and the steps with a fault.
"""

import argparse
import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import cart_pole
from examples.demo import model
from examples.demo.data import Batch, Corpus, StoredBatch
from examples.demo.faults import Damage, Outcome
from examples.demo.settings import FULL, QUICK, Settings

FILE: Final = Path(__file__).parent / "spike_traces.npz"
STEPS: Final = 3000
FIRST_FAULT: Final = 200

Array = np.ndarray[Any, Any]
Gradients = Callable[[Any, Any], Any]


def rate(peak: float, steps: int) -> optax.Schedule:
    """A learning rate with what usually happens to it: warm-up, a drop to a third, a restart, and a decline."""
    return optax.join_schedules(
        [
            optax.linear_schedule(0.0, peak, steps // 20),
            optax.constant_schedule(peak / 3),
            optax.constant_schedule(peak),
            optax.cosine_decay_schedule(peak, steps // 4),
        ],
        [steps // 3, steps // 2, 3 * steps // 4],
    )


def faulty_steps(steps: int) -> list[int]:
    """The steps with a fault: single ones, and three in a row, from FIRST_FAULT on."""
    single = np.arange(min(FIRST_FAULT, steps // 2), steps, max(1, steps // 12))
    return sorted({*map(int, single), *(int(single[-1]) - i for i in (1, 2))})


def record(gradients: Gradients, params: Any, batches: Iterable[Any], tx: Any, faulty: list[int]) -> Array:
    """The norm of each batch's gradients; the optimizer takes every step but the faulty ones."""

    @jax.jit
    def step(params: Any, state: Any, batch: Any, take: Any) -> Any:
        grads = gradients(params, batch)
        updates, after = tx.update(grads, state, params)
        moved = optax.apply_updates(params, updates)
        kept = jax.tree.map(lambda new, old: jnp.where(take, new, old), (moved, after), (params, state))
        return *kept, optax.tree.norm(grads)

    state, norms = tx.init(params), []
    for number, batch in enumerate(batches):
        params, state, norm = step(params, state, batch, number not in faulty)
        norms.append(norm)
    return np.array(jax.device_get(norms), np.float32)


def transformer(settings: Settings, steps: int, faulty: list[int]) -> Array:
    """The demo's model on its text; a fault damages the stored targets of one layer."""
    corpus = Corpus(context=settings.context, layers=settings.layers)
    shape = model.Shape(len(corpus.vocabulary), settings.context, settings.layers, settings.heads, settings.width)
    damages = [damage for damage in Damage if damage.outcome is not Outcome.NEW_LEVEL for _ in range(3)]

    def batches() -> Iterable[Batch]:
        for number, stored in zip(range(steps), corpus.batches(settings.batch, seed=0), strict=False):
            first, *others = stored.ahead
            if number in faulty:
                first = damages[faulty.index(number) % len(damages)].damage(first)
            yield corpus.decode(StoredBatch(stored.text, (first, *others)))

    def gradients(params: Any, batch: Batch) -> Any:
        return jax.grad(model.loss, has_aux=True)(params, shape, batch, corpus.scale)[0]

    return record(gradients, model.init(0, shape), batches(), optax.adamw(rate(settings.learning_rate, steps)), faulty)


CLASSES: Final = 8
SIDE: Final = 12


def convolutional(steps: int, faulty: list[int]) -> Array:
    """Two convolutions on noisy shapes that move about; in a fault the pixels are not normalised (0 to 255)."""
    rng = np.random.default_rng(0)
    shapes = rng.normal(size=(CLASSES, SIDE, SIDE)).astype(np.float32)

    def batches() -> Iterable[Any]:
        for number in range(steps):
            labels = rng.integers(CLASSES, size=32)
            moved = [np.roll(shapes[label], rng.integers(-2, 3, 2), (0, 1)) for label in labels]
            images = np.stack(moved) + rng.normal(0, 1.0, (32, SIDE, SIDE)).astype(np.float32)
            if number in faulty:
                images = 40 * images + 128
            yield images[..., None].astype(np.float32), labels

    def loss(params: Any, batch: Any) -> jax.Array:
        x, labels = batch
        for kernel in ("first", "second"):
            x = jax.lax.conv_general_dilated(
                x, params[kernel], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            x = jax.nn.relu(x)
        logits = x.reshape(len(x), -1) @ params["head"]
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    params = {
        "first": 0.3 * rng.normal(size=(3, 3, 1, 8)).astype(np.float32),
        "second": 0.1 * rng.normal(size=(3, 3, 8, 16)).astype(np.float32),
        "head": 0.05 * rng.normal(size=(9 * 16, CLASSES)).astype(np.float32),
    }
    tx = optax.sgd(rate(0.05, steps), momentum=0.9)
    return record(jax.grad(loss), params, batches(), tx, faulty)


def reinforcement(steps: int, faulty: list[int]) -> Array:
    """A policy gradient on the cart pole; in a fault rewards are not scaled (1,000 times as large)."""

    def batches() -> Iterable[Any]:
        for number in range(steps):
            yield jax.random.key(number), np.float32(1000.0 if number in faulty else 1.0)

    tx = optax.adam(rate(3e-3, steps))
    return record(cart_pole.gradients, cart_pole.init(0), batches(), tx, faulty)


TRAININGS: Final[dict[str, Callable[[int, list[int]], Array]]] = {
    "transformer": functools.partial(transformer, FULL),
    "small transformer": functools.partial(transformer, QUICK),
    "convolutional net": convolutional,
    "reinforcement learning": reinforcement,
}


def recorded(steps: int, names: Iterable[str] = tuple(TRAININGS)) -> dict[str, Array]:
    """The traces of these trainings: `NAME` and `NAME, faults` are norms, `NAME, faulty` the steps with a fault."""
    faulty = faulty_steps(steps)
    traces: dict[str, Array] = {}
    for name in names:
        training = TRAININGS[name]
        traces[name] = training(steps, [])
        traces[f"{name}, faults"] = training(steps, faulty)
        traces[f"{name}, faulty"] = np.array(faulty, np.int32)
    return traces


def main() -> None:
    """Record and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of each training (default {STEPS})")
    parser.add_argument("--out", type=Path, default=FILE, help="the file to write (default: the committed one)")
    options = parser.parse_args()
    traces: dict[str, Any] = recorded(options.steps)
    np.savez_compressed(options.out, **traces)
    print(f"wrote {options.out}, {options.out.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
