"""The step of the wrapped transformation, under a condition that is decided on the device."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from optwrap._devices import vary, varying
from optwrap._trees import Tree, cast


class Step(NamedTuple):
    """What came of a step under a condition."""

    updates: Any
    """The updates of the wrapped transformation, or zeros."""
    state: Any
    """Its new state, or the one it had."""
    taken: jax.Array
    """bool[]: which of the two. It is the condition, but it comes out of the branches: what depends on it is computed
    after them, so that XLA can overwrite in place what they read."""


def step_if(
    condition: jax.Array, step: Callable[[], tuple[Tree, Tree]], state: Tree, *, name: str, keep_dtypes: bool = False
) -> Step:
    """`step()` where the condition holds; else zero updates and `state` as it is.

    The updates may have another structure or other dtypes than what the step was given (lookahead's pair, float32
    gradients of bfloat16 parameters): the zeros are shaped after what the step returns. It is traced once.

    Args:
      condition: bool[].
      step: calls the wrapped transformation's update.
      state: the wrapped transformation's state before the step.
      name: of the wrapper, for messages.
      keep_dtypes: if true the new state is cast to the dtypes of `state`, as optax.MultiSteps does; else the result has
        the wider dtype of the two, so that neither loses anything.

    Raises:
      TypeError: the step returns a state of another structure or of other shapes than `state`.
    """
    state = jax.tree.map(jnp.asarray, state)
    old_types = jax.tree.map(jax.typeof, state)
    returned: tuple[Tree, Tree] | None = None

    def common(leaf: jax.Array, old: Any, new: Any) -> jax.Array:
        with jax.numpy_dtype_promotion("standard"):
            dtype = old.dtype if keep_dtypes or old.dtype == new.dtype else jnp.promote_types(old.dtype, new.dtype)
        return vary(cast(leaf, dtype), varying(old) | varying(new))

    def take() -> Step:
        nonlocal returned
        updates, new_state = jax.tree.map(jnp.asarray, step())
        _check_same_shape(name, old_types, new_state)
        returned = jax.tree.map(jax.typeof, (updates, new_state))
        return Step(updates, jax.tree.map(common, new_state, old_types, returned[1]), jnp.array(True))

    def keep() -> Step:
        if returned is None:  # cond traces the true branch first; without jit it runs one branch only
            jax.eval_shape(take)
        assert returned is not None
        zeros = jax.tree.map(_zeros, returned[0])
        return Step(zeros, jax.tree.map(common, state, old_types, returned[1]), jnp.array(False))

    # What changes nothing must be the false branch: XLA:CPU then works in place, and copies the state otherwise.
    taken: Step = lax.cond(condition, take, keep)
    return taken


def _check_same_shape(name: str, old: Tree, new: Tree) -> None:
    remedy = (
        "a skipped step keeps the state it had, so init and update must return alike; wrap a transformation whose "
        "state keeps its structure and shapes"
    )
    expected: Any = jax.tree.structure(old)
    if jax.tree.structure(new) != expected:
        raise TypeError(
            f"{name}: the wrapped transformation's update returned a state of another structure than it was given: "
            f"{jax.tree.structure(new)}, expected {expected}: {remedy}"
        )
    for (path, before), after in zip(jax.tree_util.tree_leaves_with_path(old), jax.tree.leaves(new), strict=True):
        if before.shape != after.shape:
            raise TypeError(
                f"{name}: the wrapped transformation's update returned state{jax.tree_util.keystr(path)} with shape "
                f"{after.shape}, expected {before.shape}: {remedy}"
            )


def _zeros(like: Any) -> jax.Array:
    """Zeros of an abstract array's type, its sharding and varying axes included."""
    return vary(jnp.zeros(like.shape, like.dtype, out_sharding=like.sharding), varying(like))
