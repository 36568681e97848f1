"""Keras 3 on JAX: `Optimizer` is any optax transformation as an optimizer of Keras, for `model.fit`.

For example, with the variable KERAS_BACKEND set to jax before Keras is imported::

    import optwrap.keras

    tx = optwrap.instrument(optwrap.apply_if_finite(optax.adam(1e-3), 5), monitor, emit="callback")
    model.compile(optimizer=optwrap.keras.Optimizer(tx), loss="mse")

`fit` hides its loop, so the steps report through the callback. `import optwrap` alone does not import this module.
"""

from collections.abc import Sequence
from typing import Any

import jax
import keras

from optwrap._core.apply_gradients import apply_gradients

__all__ = ["Optimizer"]


class Optimizer(keras.optimizers.Optimizer):  # type: ignore[misc]  # Keras has no types
    """An optax transformation as an optimizer of Keras.

    The parameters' names are Keras's own paths, such as `line/dense/kernel`. The transformation's state is variables of
    the optimizer, so `save_weights` and `load_weights` of a built model save and restore it. A transformation cannot be
    written to a file, so load what `model.save` has written with `compile=False`, and compile it again.

    The learning rate, clipping and weight decay are the transformation's. Keras's own learning rate, which its
    schedules and callbacks change, has no effect.

    Args:
      tx: the transformation. Its state must consist of arrays of numbers; no keys of `jax.random.key`.
      name: the optimizer's name in Keras.

    Raises:
      ValueError: Keras runs on another backend than JAX.
    """

    def __init__(self, tx: Any, name: str = "optwrap") -> None:
        if keras.backend.backend() != "jax":
            raise ValueError(
                f"optwrap.keras: the backend of Keras is {keras.backend.backend()!r}; allowed: 'jax'; set the variable "
                "KERAS_BACKEND=jax before Keras is imported"
            )
        super().__init__(learning_rate=0.0, name=name)
        self._tx = tx

    def build(self, variables: Sequence[Any]) -> None:
        """Make the state. Keras calls this with the trainable variables.

        Raises:
          ValueError: two variables have the same path.
        """
        paths = [variable.path for variable in variables]
        twice = sorted({path for path in paths if paths.count(path) > 1})
        if twice:
            raise ValueError(f"optwrap.keras: two variables have the path {twice[0]!r}; give each layer its own name")
        super().build(variables)
        leaves, self._structure = jax.tree.flatten(self._tx.init({v.path: v.value for v in variables}))
        self._state = [self.add_variable(x.shape, lambda *_, x=x, **__: x, str(x.dtype), name="state") for x in leaves]

    def apply(self, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> None:
        """Take one step.

        Args:
          grads: one gradient for each variable, in the same order.
          trainable_variables: all variables that the optimizer was built with, in any order; needed in the first call
            of an optimizer that is not built. Default: those, in the order in which they were given.

        Raises:
          ValueError: the variables are not those that the optimizer was built with, their number is not that of the
            gradients, or the optimizer is not built.
        """
        if trainable_variables is not None and not self.built:
            self.build(list(trainable_variables))
        given = self._trainable_variables if trainable_variables is None else trainable_variables
        variables = {variable.path: variable for variable in self._trainable_variables}
        if len(grads) != len(given) or {variable.path for variable in given} != set(variables) or not self.built:
            raise ValueError(
                f"optwrap.keras: got {len(grads)} gradients for {len(given)} variables; allowed: one for each of the "
                f"{len(variables)} variables that the optimizer was built with"
            )
        params = {path: variable.value for path, variable in variables.items()}
        state = jax.tree.unflatten(self._structure, [leaf.value for leaf in self._state])
        by_path = {variable.path: grad for variable, grad in zip(given, grads, strict=True)}
        params, state = apply_gradients(self._tx, by_path, state, params)
        for path, variable in variables.items():
            variable.assign(params[path])
            if variable.constraint is not None:
                variable.assign(variable.constraint(variable))
        for variable, leaf in zip(self._state, jax.tree.leaves(state), strict=True):
            variable.assign(leaf)
        self.iterations.assign_add(1)

    @classmethod
    def from_config(cls, config: Any, custom_objects: Any = None) -> Any:
        """Not possible: a transformation cannot be written to a file.

        Raises:
          ValueError: always.
        """
        del config, custom_objects
        raise ValueError(
            "optwrap.keras: a saved model does not hold the optax transformation; load it with compile=False, and "
            "compile it with a new Optimizer(tx)"
        )
