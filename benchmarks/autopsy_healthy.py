"""Healthy functions full of legitimate infinities and NaN: autopsy must find no fault in them.

Each takes a parameter `w` and an input `x`, float32[4] both, and gets ones.
"""

# ruff: noqa: D103  # the name of a function says what it is

from collections.abc import Callable
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optwrap

Array = jax.Array


HEALTHY: Final[list[Callable[[Array, Array], Any]]] = []
"""Functions of the same arguments, of ones, whose outputs and gradients are finite."""


def healthy(function: Callable[[Array, Array], Any]) -> Callable[[Array, Array], Any]:
    """Add a function to the healthy ones."""
    HEALTHY.append(function)
    return function


_KEPT: Final = np.array([True, False, True, True])


@healthy
def masked_softmax(w: Array, x: Array) -> Any:
    return jax.nn.softmax(jnp.where(_KEPT, w * x, -jnp.inf))


@healthy
def gradient_of_a_masked_softmax(w: Array, x: Array) -> Any:
    return jax.grad(lambda w: jnp.vdot(masked_softmax(w, x), x))(w)


@healthy
def causal_attention(w: Array, x: Array) -> Any:
    def loss(w: Array) -> Any:
        q = (w * x).reshape(1, 4, 1, 1)
        scores = jnp.einsum("btnh,bsnh->bnts", q, q)
        mixed = jax.nn.softmax(jnp.where(jnp.tri(4, dtype=bool), scores, -jnp.inf))
        return jnp.sum(jnp.einsum("bnts,bsnh->btnh", mixed, q))

    return jax.value_and_grad(loss)(w)


@healthy
def masked_log_softmax(w: Array, x: Array) -> Any:
    scores = jax.nn.log_softmax(jnp.where(_KEPT, w * x, -jnp.inf))
    return jnp.sum(jnp.where(_KEPT, scores, 0))


@healthy
def masked_logits_as_output(w: Array, x: Array) -> Any:
    return jnp.where(_KEPT, w * x, -jnp.inf)


@healthy
def logsumexp_with_empty_terms(w: Array, x: Array) -> Any:
    return jax.nn.logsumexp(jnp.where(_KEPT, w + x, -jnp.inf))


@healthy
def running_maximum(w: Array, x: Array) -> Any:
    def body(carry: Array, row: Array) -> tuple[Array, Array]:
        carry = jnp.maximum(carry, row)
        return carry, jnp.exp(row - carry)

    return jax.lax.scan(body, jnp.array(-jnp.inf), w * x)


@healthy
def online_softmax(w: Array, x: Array) -> Any:
    def body(carry: tuple[Array, Array], row: Array) -> tuple[tuple[Array, Array], None]:
        top, total = carry
        new = jnp.maximum(top, row)
        return (new, total * jnp.exp(top - new) + jnp.exp(row - new)), None

    (top, total), _ = jax.lax.scan(body, (jnp.array(-jnp.inf), jnp.array(0.0)), w * x)
    return top + jnp.log(total)


@healthy
def smallest_of_nothing_yet(w: Array, x: Array) -> Any:
    return jnp.min(w * x, initial=jnp.inf), jnp.argmax(jnp.where(_KEPT, w, -jnp.inf))


@healthy
def log_of_zero_that_is_discarded(w: Array, x: Array) -> Any:
    zero = w - x
    return jnp.where(zero > 0, jnp.log(zero), w)


@healthy
def double_where(w: Array, x: Array) -> Any:
    def loss(w: Array) -> Any:
        zero = w - x
        positive = zero > 0
        return jnp.sum(jnp.where(positive, jnp.log(jnp.where(positive, zero, 1)), 0))

    return jax.value_and_grad(loss)(w)


@healthy
def saturating_functions(w: Array, x: Array) -> Any:
    endless = jnp.where(_KEPT, w * x, jnp.inf)
    return jnp.tanh(endless), jax.nn.sigmoid(-endless), jnp.arctan(endless), jnp.exp(-endless), 1 / endless


@healthy
def clipped_infinity(w: Array, x: Array) -> Any:
    return jnp.clip(w / (w - x), -10, 10)


@healthy
def rectified_minus_infinity(w: Array, x: Array) -> Any:
    return jax.nn.relu(jnp.where(_KEPT, w * x, -jnp.inf))


@healthy
def cleaned_batch(w: Array, x: Array) -> Any:
    broken = jnp.where(_KEPT, x, jnp.nan)
    return jnp.sum(w * jnp.where(jnp.isfinite(broken), broken, 0)), jnp.nan_to_num(broken) @ w


@healthy
def mean_of_what_is_known(w: Array, x: Array) -> Any:
    return jnp.nanmean(jnp.where(_KEPT, w * x, jnp.nan)), jnp.nanmax(jnp.where(_KEPT, w, jnp.nan))


@healthy
def padded_sort(w: Array, x: Array) -> Any:
    return jnp.sort(jnp.where(_KEPT, w * x, jnp.inf))[:3]


@healthy
def beam_search(w: Array, x: Array) -> Any:
    scores = jnp.full((4,), -jnp.inf).at[0].set(0.0)
    for _ in range(2):
        scores, _ = jax.lax.top_k((scores[:, None] + jax.nn.log_softmax(w * x)[None]).reshape(-1), 4)
    return scores


@healthy
def forward_algorithm(w: Array, x: Array) -> Any:
    transitions = jnp.where(jnp.tri(4, dtype=bool), 0.0, -jnp.inf)
    state = jnp.where(jnp.arange(4) == 3, 0.0, -jnp.inf)
    return jax.nn.logsumexp(jax.nn.logsumexp(transitions + state[None], axis=1) + w * x)


@healthy
def filled_read_that_is_masked(w: Array, x: Array) -> Any:
    index = jnp.arange(6)
    return jnp.where(index < 4, jnp.take(w * x, index), 0)


@healthy
def skipped_update(w: Array, x: Array) -> Any:
    tx = optax.apply_if_finite(optax.sgd(0.1), 5)
    updates, _ = tx.update(jnp.where(_KEPT, x, jnp.nan), tx.init(w), w)
    return optax.apply_updates(w, updates)


@healthy
def first_step_of_an_adaptive_guard(w: Array, x: Array) -> Any:
    tx = optwrap.skip_spikes(optax.sgd(0.1))
    return tx.update(w * x, tx.init(w), w)


@healthy
def log_probability_of_an_impossible_event(w: Array, x: Array) -> Any:
    return jax.nn.log_softmax(jnp.where(_KEPT, w * x, -jnp.inf))


@healthy
def loop_under_vmap_of_which_members_have_ended(w: Array, x: Array) -> Any:
    def one(value: Array) -> Any:
        return jax.lax.while_loop(lambda v: v < 3, lambda v: v + jnp.sqrt(4 - v), value)

    return jax.vmap(one)(w * x + jnp.arange(4) * 2)


@healthy
def best_loss_so_far(w: Array, x: Array) -> Any:
    tx = optax.contrib.reduce_on_plateau()
    _, state = tx.update(x, tx.init(w), value=jnp.sum(w * x))
    return state.best_value


@healthy
def infinite_bound(w: Array, x: Array) -> Any:
    low = jnp.where(_KEPT, -jnp.inf, 0.0)
    return jnp.maximum(w * x, low), jnp.where(jnp.isinf(low), w, x)
