"""Keras 3 on JAX: a short optimizer around any optax transformation, for `model.fit`.

Set KERAS_BACKEND=jax before Keras is imported.
"""

from typing import Any

import jax
import keras
import numpy as np
import optax

import optwrap
from examples.loops.flax_nnx import STEPS, batch


# [bridge]
class Optax(keras.optimizers.Optimizer):  # type: ignore[misc]  # Keras has no types
    """An optax transformation as an optimizer of Keras; its state is variables, its parameters have Keras's paths."""

    def __init__(self, tx: Any) -> None:
        super().__init__(learning_rate=0.0)  # the transformation has its own
        self.tx = tx

    def build(self, variables: Any) -> None:  # noqa: D102
        super().build(variables)
        leaves, self.tree = jax.tree.flatten(self.tx.init({v.path: v.value for v in variables}))
        self.leaves = [self.add_variable(x.shape, lambda *_, x=x, **__: x, str(x.dtype)) for x in leaves]

    def apply(self, grads: Any, _: Any = None) -> None:  # noqa: D102
        params = {v.path: v.value for v in self._trainable_variables}
        state = jax.tree.unflatten(self.tree, [leaf.value for leaf in self.leaves])
        updates, state = self.tx.update(dict(zip(params, grads, strict=True)), state, params)
        moved = [(v, v.value + updates[v.path]) for v in self._trainable_variables]
        for variable, value in [*moved, *zip(self.leaves, jax.tree.leaves(state), strict=True)]:
            variable.assign(value)


# [bridge]


def main() -> None:
    """Fit a line."""
    data = np.concatenate([np.asarray(batch(step)) for step in range(STEPS)])
    # [watched]
    with optwrap.Monitor(run="keras-fit") as monitor:
        tx = optwrap.instrument(optwrap.apply_if_finite(optax.adam(0.1), 5), monitor, emit="callback")
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, name="dense")], name="line")
        model.compile(optimizer=Optax(tx), loss="mse")
        model.fit(data, np.ones(len(data)), batch_size=4, shuffle=False, verbose=0)
    # [watched]


if __name__ == "__main__":
    main()
