"""The cart pole (Barto, Sutton & Anderson 1983) and a policy gradient with a baseline (Williams 1992), in plain JAX.

Sixteen episodes of at most 200 steps give one batch. An episode ends when the pole leans by 12 degrees or the cart
leaves the track; its later steps have no reward and no weight.
"""

from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np

EPISODES: Final = 16
HORIZON: Final = 200
DISCOUNT: Final = 0.99
_HIDDEN: Final = 32
_TIME: Final = 0.02
_MASS, _POLE_MASS, _HALF_LENGTH, _FORCE, _GRAVITY = 1.1, 0.1, 0.5, 10.0, 9.8


def init(seed: int) -> dict[str, Any]:
    """The parameters of the policy (two logits) and of the baseline, which share their first layer."""
    rng = np.random.default_rng(seed)
    return {
        "hidden": 0.5 * rng.normal(size=(4, _HIDDEN)).astype(np.float32),
        "policy": 0.1 * rng.normal(size=(_HIDDEN, 2)).astype(np.float32),
        "baseline": 0.1 * rng.normal(size=(_HIDDEN, 1)).astype(np.float32),
    }


def gradients(params: Any, batch: Any) -> Any:
    """The gradients of one batch: a random key, and what rewards are multiplied by."""
    key, scale = batch
    states, actions, alive = jax.vmap(lambda one: _episode(params, one))(jax.random.split(key, EPISODES))

    def discounted(later: jax.Array, reward: jax.Array) -> tuple[jax.Array, jax.Array]:
        total = reward + DISCOUNT * later
        return total, total

    returns = jax.vmap(lambda row: jax.lax.scan(discounted, jnp.float32(0.0), row, reverse=True)[1])(
        0.01 * scale * alive
    )
    return jax.grad(_loss)(params, states, actions, alive, returns)


def _loss(params: Any, states: jax.Array, actions: jax.Array, alive: jax.Array, returns: jax.Array) -> jax.Array:
    logits, values = _heads(params, states)
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), actions[..., None], axis=-1)[..., 0]
    advantage = returns - jax.lax.stop_gradient(values)
    each = -chosen * advantage + 0.5 * jnp.square(returns - values)
    return jnp.sum(each * alive) / jnp.sum(alive)


def _heads(params: Any, states: jax.Array) -> tuple[jax.Array, jax.Array]:
    hidden = jnp.tanh(states @ params["hidden"])
    return hidden @ params["policy"], (hidden @ params["baseline"])[..., 0]


def _episode(params: Any, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """States float32[HORIZON, 4], actions int32[HORIZON], and 1.0 while the episode lasts."""
    start, rest = jax.random.split(key)

    def step(carry: Any, key: jax.Array) -> Any:
        state, alive = carry
        action = jax.random.categorical(key, _heads(params, state)[0])
        after = _moved(state, jnp.where(action == 1, _FORCE, -_FORCE))
        lasts = alive * (jnp.abs(after[0]) < 2.4) * (jnp.abs(after[2]) < 0.2095)
        return (after, lasts.astype(jnp.float32)), (state, action, alive)

    first = jax.random.uniform(start, (4,), minval=-0.05, maxval=0.05)
    episode: tuple[jax.Array, jax.Array, jax.Array]
    _, episode = jax.lax.scan(step, (first, jnp.float32(1.0)), jax.random.split(rest, HORIZON))
    return episode


def _moved(state: jax.Array, force: jax.Array) -> jax.Array:
    _, speed, angle, turning = state
    pushed = (force + _POLE_MASS * _HALF_LENGTH * turning**2 * jnp.sin(angle)) / _MASS
    turn = (_GRAVITY * jnp.sin(angle) - jnp.cos(angle) * pushed) / (
        _HALF_LENGTH * (4 / 3 - _POLE_MASS * jnp.cos(angle) ** 2 / _MASS)
    )
    push = pushed - _POLE_MASS * _HALF_LENGTH * turn * jnp.cos(angle) / _MASS
    change = jnp.stack([speed, push, turning, turn])
    return state + _TIME * change
