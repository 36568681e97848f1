"""Other trainers' rules for skipping steps, from their published formulas, and skip_spikes' own: for bench_guards.py.

Each takes norms (float64[rows, steps], in the order of their steps) and returns what it skips (bool[rows, steps]). A
rule that clips instead of skipping counts as skipping where it clips. All skip what is not finite, unless
their docstring says otherwise.
"""

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from optwrap._wrappers.spike_rule import TAKEN, Settings, replay

Array = np.ndarray[Any, Any]
Rule = Callable[[Array], Array]


def skip_spikes(norms: Array) -> Array:
    """The rule of optwrap with its default settings."""
    return np.not_equal(replay(norms, Settings()).decision, TAKEN)


def simple_count(norms: Array) -> Array:
    """The same level, spread and limit, but a new level only after 32 spikes in a row: what the doubt replaced."""
    rows, steps = norms.shape
    level, spread, previous, pending = np.zeros((4, rows))
    seen, count = np.zeros((2, rows), int)
    skipped = np.zeros(norms.shape, bool)
    for t in range(steps):
        finite = np.isfinite(norms[:, t]) & (norms[:, t] > 0)
        y = np.log(np.where(finite, norms[:, t], 1.0))
        margin = np.maximum(6 * np.maximum(spread, 0.02), np.log(2))
        margin = np.where(seen < 64, np.maximum(margin, np.log(20)), margin)
        spike = finite & (seen >= 10) & (y >= level + margin)
        taken = finite & ~spike
        count = np.where(taken, 0, count + spike)
        pending = np.where(spike, pending + (y - pending) / np.maximum(count, 1), pending)
        rebase = count >= 32
        difference = np.minimum(np.abs(y - previous), margin) / 1.128
        grown = spread + np.maximum(0.01, 1 / np.maximum(seen, 1)) * (difference - spread)
        spread = np.where(taken & (seen > 0), grown, spread)
        seen = seen + taken
        moved = level + np.maximum(0.03, 1 / np.maximum(seen, 1)) * (y - level)
        level = np.where(rebase, pending, np.where(taken, moved, level))
        previous = np.where(rebase, pending, np.where(taken, y, previous))
        count = np.where(rebase, 0, count)
        skipped[:, t] = (spike & ~rebase) | ~np.isfinite(norms[:, t])
    return skipped


def rolling_deviation(norms: Array, window: int = 128, factor: float = 6.0) -> Array:
    """OLMo-core, MaxText and Levanter: above the mean by 6 standard deviations of the last 128 norms, skipped or not.

    It begins when half of the window is filled. A NaN in the window makes mean and limit NaN.
    """
    skipped = np.zeros(norms.shape, bool)
    with np.errstate(invalid="ignore"):
        for t in range(norms.shape[1]):
            last = norms[:, max(0, t - window) : t]
            if last.shape[1] >= window // 2:
                limit = last.mean(axis=1) + factor * last.std(axis=1, ddof=1)
                skipped[:, t] = ~(norms[:, t] <= limit)
            else:
                skipped[:, t] = ~np.isfinite(norms[:, t])
    return skipped


def _moments(norms: Array, limit: Callable[[Array, Array, Array], Array], decay: float = 0.99) -> Array:
    """AXLearn: mean and mean square of the norms that were taken, exponential with bias correction, 1 at the start."""
    rows = len(norms)
    mean, square, count = np.ones(rows), np.ones(rows), np.zeros(rows)
    skipped = np.zeros(norms.shape, bool)
    for t in range(norms.shape[1]):
        x = norms[:, t]
        deviation = np.sqrt(np.maximum(square - mean**2, 0.0))
        taken = np.isfinite(x) & (x < limit(count, mean, deviation))
        keep = decay * (1 - decay**count) / (1 - decay ** (count + 1))
        x = np.where(taken, x, 0.0)
        mean = np.where(taken, keep * mean + (1 - keep) * x, mean)
        square = np.where(taken, keep * square + (1 - keep) * x**2, square)
        count = count + taken
        skipped[:, t] = ~taken
    return skipped


def multiple_of_mean(norms: Array) -> Array:
    """AXLearn: 20 times the exponential mean (0.99) of the norms taken."""
    return _moments(norms, lambda _count, mean, _deviation: 20 * mean)


def deviations_of_mean(norms: Array) -> Array:
    """AXLearn: the exponential mean and 20 standard deviations, from the 500th norm taken on."""
    return _moments(norms, lambda count, mean, deviation: np.where(count < 500, 1e10, mean + 20 * deviation))


def z_score(norms: Array, warm_up: int = 25, decay: float = 0.97, most: float = 2.5) -> Array:
    """ZClip: clips a norm by more than 2.5 standard deviations above the exponential mean (0.97).

    The first 25 norms give the first mean and variance. What it clips enters as it was clipped: the mean plus
    2.5**2 / z standard deviations.
    """
    skipped = np.zeros(norms.shape, bool)
    with np.errstate(invalid="ignore", over="ignore"):
        first = norms[:, :warm_up]
        mean, variance = first.mean(axis=1), first.var(axis=1)
        for t in range(warm_up, norms.shape[1]):
            x, deviation = norms[:, t], np.sqrt(variance)
            z = (x - mean) / (deviation + 1e-6)
            clips = z > most
            skipped[:, t] = clips
            x = np.where(clips, mean + most**2 / np.where(clips, z, 1.0) * deviation, x)
            mean_after = decay * mean + (1 - decay) * x
            variance = decay * variance + (1 - decay) * (x - mean) ** 2
            mean = mean_after
    return skipped


def twice_the_running_mean(norms: Array, window: int = 10, factor: float = 2.0) -> Array:
    """Lightning's SpikeDetection: above twice the mean of the last 10 values that were no spikes.

    It is made for the loss. It begins with the second value.
    """
    rows = len(norms)
    last, count = np.zeros((rows, window)), np.zeros(rows, int)
    skipped = np.zeros(norms.shape, bool)
    for t in range(norms.shape[1]):
        x = norms[:, t]
        mean = last.sum(axis=1) / np.maximum(np.minimum(count, window), 1)
        taken = np.isfinite(x) & ((count < 1) | (x <= factor * mean))
        place = count % window
        rows_taken = np.flatnonzero(taken)
        last[rows_taken, place[rows_taken]] = x[rows_taken]
        count = count + taken
        skipped[:, t] = ~taken
    return skipped


RULES: Final[dict[str, Rule]] = {
    "skip_spikes": skip_spikes,
    "32 in a row": simple_count,
    "OLMo-core, MaxText, Levanter": rolling_deviation,
    "AXLearn, 20x": multiple_of_mean,
    "AXLearn, 20 sd": deviations_of_mean,
    "ZClip": z_score,
    "Lightning": twice_the_running_mean,
}
"""By the title in the table."""
