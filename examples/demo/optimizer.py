"""The optimizer, with optwrap's wrappers and without."""

import optax

import optwrap
from examples.demo.settings import EVERY_K, MAX_CONSECUTIVE_ERRORS, MAX_NORM, MIN_RATIO, REBASE_AFTER, Settings


def guarded(settings: Settings) -> optax.GradientTransformation:
    """AdamW on windows of four mini-steps; a mini-step with non-finite or unusually large gradients is skipped."""
    window = optwrap.MultiSteps(_adamw(settings), EVERY_K).gradient_transformation()
    guard = optwrap.skip_spikes(window, min_ratio=MIN_RATIO, rebase_after=REBASE_AFTER, max_norm=MAX_NORM)
    return optwrap.apply_if_finite(guard, MAX_CONSECUTIVE_ERRORS)


def bare(settings: Settings) -> optax.GradientTransformation:
    """The same AdamW with optax's own windows; nothing is skipped."""
    return optax.MultiSteps(_adamw(settings), EVERY_K).gradient_transformation()


def _adamw(settings: Settings) -> optax.GradientTransformation:
    gradient_steps = -(-settings.steps // EVERY_K)
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=settings.learning_rate,
        warmup_steps=min(settings.warmup_steps, gradient_steps // 10),
        decay_steps=gradient_steps,
        end_value=settings.learning_rate / 20,
    )
    return optax.adamw(schedule)
