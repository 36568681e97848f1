"""Readings and scalars with leading axes: which row belongs to which step, and what a scalar of a step is."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from optwrap._reading.rows import mean_by_step, rows_by_step


@settings(deadline=None)
@given(
    outer=st.integers(1, 3),
    replicas=st.integers(1, 3),
    inner=st.integers(1, 3),
    where=st.integers(0, 2),
    repeats=st.integers(1, 2),
)
def test_a_scalar_of_a_step_is_the_mean_over_its_replicas_and_repeated_rows(
    outer: int, replicas: int, inner: int, where: int, repeats: int
) -> None:
    """Steps in two nested scans, an axis of replicas anywhere among them, and rows that repeat their step."""
    steps = np.arange(1, outer * inner + 1, dtype=np.uint32).reshape(outer, inner)
    steps = np.repeat(steps, repeats, axis=1)
    lead = np.repeat(np.expand_dims(steps, where), replicas, axis=where)
    words = np.stack([np.full_like(lead, 7), lead], axis=-1)
    losses = np.random.default_rng(0).uniform(size=lead.shape)

    rows, step_of = rows_by_step(words)

    assert rows[:, 1].tolist() == list(range(1, outer * inner + 1))
    np.testing.assert_array_equal(rows[step_of][:, 1], lead.reshape(-1))
    expected = [losses[lead == step].mean() for step in range(1, outer * inner + 1)]
    np.testing.assert_allclose(mean_by_step(losses.reshape(-1), step_of), expected)
