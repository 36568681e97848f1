"""Trace-time cache of gradient norms and finiteness.

Nested wrappers need the same norms of the same gradients. XLA merges equal computations on one device, but not across
the branches of a condition, and on a mesh each copy would have its own all-reduce. So the outer wrapper puts its
results into this cache while it traces the transformation inside it.

An entry is found by the identity of its tracers. Arrays are never cached: they may outlive the trace.
"""

import contextlib
import contextvars
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import jax

from optwrap._core.collectives import Together


class Answer(NamedTuple):
    """The cached result for a list of leaves."""

    finite: jax.Array
    """bool[]: whether every value is finite."""
    counts: jax.Array | None = None
    """The number of non-finite values in each leaf, in `count_dtype`; None if they have not been counted."""


class _Entry(NamedTuple):
    leaves: tuple[Any, ...]
    axes: tuple[tuple[str, ...], ...]
    """For each leaf, the mesh axes along which the devices decide together."""
    answer: Answer


class _Cache(NamedTuple):
    norms: Mapping[int, tuple[Any, jax.Array]] = types.MappingProxyType({})
    """From the `id` of a leaf to the leaf and its squared norm. The leaf is kept so that its `id` stays valid."""
    entries: tuple[_Entry, ...] = ()


# The default can be shared: nothing in it can be changed.
_cache: Final = contextvars.ContextVar("optwrap_norm_cache", default=_Cache())  # noqa: B039


def cached_norm(leaf: Any) -> jax.Array | None:
    """The leaf's squared norm, or None if it is not cached."""
    entry = _cache.get().norms.get(id(leaf))
    return None if entry is None else entry[1]


@contextlib.contextmanager
def caching_norms(leaves: Sequence[Any], norms: Sequence[jax.Array]) -> Iterator[None]:
    """Cache the squared norms of these leaves inside the block."""
    pairs = zip(leaves, norms, strict=True)
    new = {id(leaf): (leaf, norm) for leaf, norm in pairs if isinstance(leaf, jax.core.Tracer)}
    with _extended(norms={**_cache.get().norms, **new}):
        yield


def cached_answer(leaves: Sequence[Any], together: Together) -> Answer | None:
    """The answer for exactly these leaves and for devices that decide along the same axes; None if it is not cached."""
    for entry in _cache.get().entries:
        if _same(entry.leaves, leaves) and entry.axes == _axes(leaves, together):
            return entry.answer
    return None


@contextlib.contextmanager
def caching_answer(leaves: Sequence[Any], together: Together, answer: Answer) -> Iterator[None]:
    """Cache the answer for these leaves inside the block. An answer that is cached already stays."""
    if not all(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        yield
        return
    entry = _Entry(tuple(leaves), _axes(leaves, together), answer)
    with _extended(entries=(*_cache.get().entries, entry)):
        yield


@contextlib.contextmanager
def _extended(**new: Any) -> Iterator[None]:
    token = _cache.set(_cache.get()._replace(**new))
    try:
        yield
    finally:
        _cache.reset(token)


def _same(leaves: Sequence[Any], others: Sequence[Any]) -> bool:
    return len(leaves) == len(others) and all(a is b for a, b in zip(leaves, others, strict=True))


def _axes(leaves: Sequence[Any], together: Together) -> tuple[tuple[str, ...], ...]:
    return tuple(together.axes(leaf) for leaf in leaves)
