"""The optimizer, with optwrap's wrappers and without."""

import functools

import optax

import optwrap
from examples.demo.settings import EVERY_K, MAX_CONSECUTIVE_ERRORS, MAX_NORM, Settings


def guarded(settings: Settings) -> optax.GradientTransformation:
    """Adam with weight decay, four mini-steps to a window; one that is not finite, or huge, stays out of it."""
    window = optwrap.MultiSteps(
        _adamw(settings),
        every_k_schedule=EVERY_K,
        should_skip_update_fn=functools.partial(optwrap.skip_large_updates, max_squared_norm=MAX_NORM**2),
    )
    return optwrap.apply_if_finite(window.gradient_transformation(), MAX_CONSECUTIVE_ERRORS)


def bare(settings: Settings) -> optax.GradientTransformation:
    """The same adamw on the same windows, optax's own, and nothing that skips."""
    return optax.MultiSteps(_adamw(settings), EVERY_K).gradient_transformation()


def _adamw(settings: Settings) -> optax.GradientTransformation:
    gradient_steps = -(-settings.steps // EVERY_K)
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=settings.learning_rate,
        warmup_steps=gradient_steps // 10,
        decay_steps=gradient_steps,
        end_value=settings.learning_rate / 20,
    )
    return optax.adamw(schedule)
