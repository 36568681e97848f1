"""skip_spikes over the norms of real trainings, recorded by benchmarks/spike_traces.py."""

import functools

import numpy as np
import pytest

from benchmarks.spike_traces import FILE, TRAININGS, recorded
from optwrap._wrappers.spike_rule import TAKEN, Memory, Settings, replay


@functools.cache
def traces() -> dict[str, np.ndarray]:
    with np.load(FILE) as file:
        return dict(file)


@functools.cache
def guarded(title: str) -> Memory:
    return replay(traces()[title], Settings())


@pytest.mark.parametrize("name", TRAININGS)
def test_a_sound_training_loses_less_than_a_step_in_a_thousand(name: str) -> None:
    """Through warm-up, changes of the learning rate and heavy tails."""
    skipped = np.asarray(guarded(name).decision) != TAKEN
    assert len(skipped) == 3000
    assert np.mean(skipped) < 0.001


@pytest.mark.parametrize("name", TRAININGS)
def test_every_fault_in_the_data_is_skipped(name: str) -> None:
    """And at most three other steps."""
    after, faulty = guarded(f"{name}, faults"), traces()[f"{name}, faulty"]
    skipped = np.asarray(after.decision) != TAKEN
    assert np.all(skipped[faulty])
    assert np.sum(skipped) <= len(faulty) + 3
    assert int(after.rebases[-1]) == 0
    for statistic in (after.level, after.spread, after.previous, after.pending):
        assert np.all(np.isfinite(statistic))


@pytest.mark.thin(5)
@pytest.mark.parametrize("name", list(reversed(TRAININGS)))
def test_the_recorder_makes_such_traces(name: str) -> None:
    """The norms of sound steps are finite; a fault's is at least ten times as large, or not finite."""
    short = recorded(24, [name])
    sound, faulty = short[name], short[f"{name}, faults"][short[f"{name}, faulty"]]
    assert sound.shape == (24,)
    assert np.all(np.isfinite(sound) & (sound > 0))
    assert np.all(~np.isfinite(faulty) | (faulty > 10 * np.median(sound)))
