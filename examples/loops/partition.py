"""optax.partition with a guard for each group: a named instrument and a Monitor for each say which group moved."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

import optwrap

STEPS = 12
CORRUPTED = (3, 4)
"""Steps in which the head's gradient is NaN, and the body's is not."""


def main() -> None:
    """Train two groups of parameters, each with its own optimizer."""
    # [watched]
    with optwrap.Monitor(run="partition.body") as body, optwrap.Monitor(run="partition.head") as head:
        tx = optax.partition(
            {
                "body": optwrap.instrument(optwrap.apply_if_finite(optax.adam(0.1), 5), body, name="body"),
                "head": optwrap.instrument(optwrap.apply_if_finite(optax.sgd(0.1), 5), head, name="head"),
            },
            {"body": {"w": "body", "b": "body"}, "head": "head"},
        )

        @jax.jit
        def train_step(params: Any, opt_state: Any, fault: jax.Array) -> Any:
            grads = jax.grad(lambda p: p["body"]["w"] ** 2 + p["body"]["b"] ** 2 + fault * p["head"] ** 2)(params)
            updates, opt_state = tx.update(grads, opt_state, params)
            readings = optwrap.reading(opt_state, "body"), optwrap.reading(opt_state, "head")
            return optax.apply_updates(params, updates), opt_state, readings

        params = {"body": {"w": jnp.ones(()), "b": jnp.ones(())}, "head": jnp.ones(())}
        opt_state = tx.init(params)
        for step in range(STEPS):
            fault = jnp.where(step in CORRUPTED, jnp.nan, 1.0)
            params, opt_state, (of_body, of_head) = train_step(params, opt_state, fault)
            body.observe(of_body)
            head.observe(of_head)
    # [watched]


if __name__ == "__main__":
    main()
