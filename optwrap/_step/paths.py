"""The parameters' names."""

import collections
from typing import Any

import jax
from jax.tree_util import GetAttrKey, keystr


def parameter_paths(tree: Any) -> tuple[str, ...]:
    """The path of each leaf, in the tree's order, all different: `decoder/layer_3/mlp/w`.

    Paths that would be the same (`{"a/b": x, "a": {"b": y}}`) are written with brackets: `['a/b']`, `['a']['b']`. flax
    puts parameters into boxes. Their `value` is left out of the path, so that a parameter has the same path with and
    without its box. A tree that is a single leaf has the path `params`.
    """
    keys = [_unboxed(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    paths = [keystr(path, simple=True, separator="/") or "params" for path in keys]
    repeated = _repeated(paths)
    paths = [keystr(keys[i]) if i in repeated else path for i, path in enumerate(paths)]
    # Keys of a custom pytree node may print alike even in brackets.
    repeated = _repeated(paths)
    return tuple(f"{path}#{i}" if i in repeated else path for i, path in enumerate(paths))


def _unboxed(path: tuple[Any, ...]) -> tuple[Any, ...]:
    return path[:-1] if path and path[-1] == GetAttrKey("value") else path


def _repeated(paths: list[str]) -> set[int]:
    times = collections.Counter(paths)
    return {i for i, path in enumerate(paths) if times[path] > 1}
