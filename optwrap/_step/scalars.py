"""The scalars of a step: injected hyperparameters from the state, and those given to `update`, in callback mode."""

import logging
from collections.abc import Mapping
from typing import Any, Final

import jax
import jax.numpy as jnp

from optwrap._core.checks import shown
from optwrap._core.declarations import walk
from optwrap._reading.scalars import ALLOWED, MAX_SCALARS, is_name
from optwrap._step.grad_summary import mean_of_devices, on_any_device
from optwrap._step.wrappers import INJECTED

_log: Final = logging.getLogger("optwrap")


def hyperparameters(state: Any) -> dict[str, Any]:
    """The scalar hyperparameters of every `optax.inject_hyperparams` in an optimizer's state, at most MAX_SCALARS.

    They are sorted by name within a state, because jit sorts the keys of dictionaries. If several states have a
    hyperparameter of one name, the outermost keeps the name, and the others are `NAME_2`, `NAME_3` and so on.
    """
    found: dict[str, Any] = {}
    for node in walk(state, INJECTED):
        for name in sorted(filter(is_name, node.hyperparams)):
            value, number, free = node.hyperparams[name], 1, name
            while free in found:
                number += 1
                free = f"{name}_{number}"
            if len(found) < MAX_SCALARS and is_name(free) and _is_real_scalar(value):
                found[free] = value
    return found


def values(scalars: Mapping[str, Any]) -> list[jax.Array]:
    """The values of `hyperparameters`, each float32[]."""
    return [on_any_device(jnp.asarray(value).astype(jnp.float32)) for value in scalars.values()]


def given(scalars: Any, room: int) -> dict[str, jax.Array]:
    """The scalars passed to `update`, each float32[]. What is not allowed is ignored, with one line in the log.

    Args:
      scalars: the argument; None for none.
      room: the most that can be reported.
    """
    if scalars is None:
        return {}
    if not isinstance(scalars, Mapping):
        _log.warning("optwrap: scalars of update are ignored: got a %s; allowed: a dict", type(scalars).__name__)
        return {}
    found: dict[str, jax.Array] = {}
    for name, value in scalars.items():
        if len(found) < room and is_name(name) and _is_real_scalar(value):
            # Devices that train together may each have the loss of their own part of the batch.
            found[name] = mean_of_devices(jax.lax.stop_gradient(jnp.asarray(value)).astype(jnp.float32))
        else:
            _log.warning(
                "optwrap: the scalar %s of update, %s, is ignored; allowed: %s, each a real number without axes",
                shown(name),
                shown(value),
                ALLOWED,
            )
    return found


def _is_real_scalar(value: Any) -> bool:
    try:
        dtype = jnp.result_type(value)
    except (TypeError, ValueError):
        return False
    return jnp.ndim(value) == 0 and any(jnp.issubdtype(dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_))
