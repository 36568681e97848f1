"""A scalar that a later step was given to overwrite."""

import logging

import jax.numpy as jnp
import pytest

from optwrap._monitor.scalars import Scalars


def test_the_log_says_which_scalar_was_donated(caplog: pytest.LogCaptureFixture) -> None:
    """JAX's own message names no argument, and a loop may observe sixteen."""
    gone = jnp.ones(())
    gone.delete()
    with caplog.at_level(logging.WARNING, "optwrap"):
        found = Scalars().values({"kept": 2.0, "accuracy": gone}, rows=1)
    assert list(found) == ["kept"]
    (line,) = caplog.records
    assert "the scalar 'accuracy' is ignored" in line.getMessage()
    assert "it was donated" in line.getMessage()
