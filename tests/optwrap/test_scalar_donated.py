"""A scalar that a later step was given to overwrite."""

import logging

import jax.numpy as jnp
import pytest

from optwrap._monitor.intake import Scalars
from optwrap._monitor.log import LogOnce


def test_the_log_says_which_scalar_was_donated(caplog: pytest.LogCaptureFixture) -> None:
    """JAX's own message names no argument, and a loop may observe sixteen."""
    gone = jnp.ones(())
    gone.delete()
    with caplog.at_level(logging.WARNING, "optwrap"):
        found = Scalars(LogOnce()).values({"kept": 2.0, "accuracy": gone}, rows=1)
    assert list(found) == ["kept"]
    (line,) = caplog.records
    assert "scalar accuracy: it was donated" in line.getMessage()
