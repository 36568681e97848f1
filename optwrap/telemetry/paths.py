"""How the parameters are called."""

import collections
from typing import Any

import jax
from jax.tree_util import keystr


def parameter_paths(tree: Any) -> tuple[str, ...]:
    """The path of each leaf, in the tree's order, all different: `decoder/layer_3/mlp/w`.

    Paths that would be the same (`{"a/b": x, "a": {"b": y}}`) are written in full: `['a/b']`, `['a']['b']`. A tree that
    is a single leaf calls it `params`.
    """
    keys = [path for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    paths = [keystr(path, simple=True, separator="/") or "params" for path in keys]
    paths = [keystr(keys[i]) if i in _repeated(paths) else path for i, path in enumerate(paths)]
    # Keys of somebody's own kind may print alike even so.
    return tuple(f"{path}#{i}" if i in _repeated(paths) else path for i, path in enumerate(paths))


def _repeated(paths: list[str]) -> set[int]:
    times = collections.Counter(paths)
    return {i for i, path in enumerate(paths) if times[path] > 1}
