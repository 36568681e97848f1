"""How the parameters are called."""

import collections
from typing import Any

import jax
from jax.tree_util import GetAttrKey, keystr


def parameter_paths(tree: Any) -> tuple[str, ...]:
    """The path of each leaf, in the tree's order, all different: `decoder/layer_3/mlp/w`.

    Paths that would be the same (`{"a/b": x, "a": {"b": y}}`) are written in full: `['a/b']`, `['a']['b']`. The `value`
    inside a box, as flax has them, goes unsaid: at times the same parameter comes with its box and at times without. A
    tree that is a single leaf calls it `params`.
    """
    keys = [_unboxed(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    paths = [keystr(path, simple=True, separator="/") or "params" for path in keys]
    repeated = _repeated(paths)
    paths = [keystr(keys[i]) if i in repeated else path for i, path in enumerate(paths)]
    # Keys of somebody's own kind may print alike even so.
    repeated = _repeated(paths)
    return tuple(f"{path}#{i}" if i in repeated else path for i, path in enumerate(paths))


def _unboxed(path: tuple[Any, ...]) -> tuple[Any, ...]:
    return path[:-1] if path and path[-1] == GetAttrKey("value") else path


def _repeated(paths: list[str]) -> set[int]:
    times = collections.Counter(paths)
    return {i for i, path in enumerate(paths) if times[path] > 1}
