"""The optimizer, with optwrap's wrappers and without."""

import functools

import optax

import optwrap
from examples.demo.settings import EVERY_K, MAX_CONSECUTIVE_ERRORS, MAX_NORM, Settings


def guarded(settings: Settings) -> optax.GradientTransformation:
    """AdamW on windows of four mini-steps; a mini-step with non-finite or huge gradients is left out."""
    window = optwrap.MultiSteps(
        _adamw(settings),
        every_k_schedule=EVERY_K,
        should_skip_update_fn=functools.partial(optwrap.skip_large_updates, max_squared_norm=MAX_NORM**2),
    )
    return optwrap.apply_if_finite(window.gradient_transformation(), MAX_CONSECUTIVE_ERRORS)


def bare(settings: Settings) -> optax.GradientTransformation:
    """The same AdamW with optax's own windows; nothing is skipped."""
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
