"""Keras 3 on JAX: any optax transformation as an optimizer, for `model.fit`.

Set KERAS_BACKEND=jax before Keras is imported.
"""

import keras
import numpy as np
import optax

import optwrap.keras
from examples.loops.flax_nnx import STEPS, batch


def main() -> None:
    """Fit a line."""
    data = np.concatenate([np.asarray(batch(step)) for step in range(STEPS)])
    # [watched]
    with optwrap.Monitor(run="keras-fit") as monitor:
        tx = optwrap.instrument(optwrap.apply_if_finite(optax.adam(0.1), 5), monitor, emit="callback")
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, name="dense")], name="line")
        model.compile(optimizer=optwrap.keras.Optimizer(tx), loss="mse")
        model.fit(data, np.ones(len(data)), batch_size=4, shuffle=False, verbose=0)
    # [watched]


if __name__ == "__main__":
    main()
