"""What is already known of the gradients where something is asked of them: whoever asks next is told the same.

On one device XLA merges equal questions, where both are asked by the same operations. On a mesh it does not: each would
have all-reduces of its own. And of two who ask differently (are all finite? how many of each leaf are not?) it knows
not that one's answer has the other's in it.
"""

import contextlib
import contextvars
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import jax

from optwrap._core.collectives import Together


class Answer(NamedTuple):
    """What came of asking whether every value of some leaves is finite."""

    finite: jax.Array
    """bool[]: it is."""
    counts: jax.Array
    """How many values are not, by leaf, in `count_dtype`; for more leaves than were asked about if these have none."""


class _Asked(NamedTuple):
    leaves: tuple[Any, ...]
    axes: tuple[tuple[str, ...], ...]
    """By leaf, those along which the devices answer together."""
    answer: Answer


class _Known(NamedTuple):
    norms: Mapping[int, tuple[Any, jax.Array]] = types.MappingProxyType({})
    """By the identity of a leaf, the leaf and its squared norm. Without its object an id means nothing."""
    asked: tuple[_Asked, ...] = ()


# The default can be shared: it is of tuples and a proxy, in which nothing can be changed.
_known: Final = contextvars.ContextVar("optwrap_known", default=_Known())  # noqa: B039


def norm_of(leaf: Any) -> jax.Array | None:
    """The leaf's squared norm, where it is known."""
    found = _known.get().norms.get(id(leaf))
    return None if found is None else found[1]


@contextlib.contextmanager
def knowing_norms(leaves: Sequence[Any], norms: Sequence[jax.Array]) -> Iterator[None]:
    """While it lasts, `norm_of` knows these."""
    new = {id(leaf): (leaf, norm) for leaf, norm in zip(leaves, norms, strict=True)}
    with _knowing(norms={**_known.get().norms, **new}):
        yield


def answer_about(leaves: Sequence[Any], together: Together) -> Answer | None:
    """What is known of these very leaves, for devices that decide along the same axes."""
    for asked in _known.get().asked:
        if _same(asked.leaves, leaves) and asked.axes == _axes(leaves, together):
            return asked.answer
    return None


@contextlib.contextmanager
def knowing_answer(leaves: Sequence[Any], together: Together, answer: Answer) -> Iterator[None]:
    """While it lasts, `answer_about` knows this one; not of arrays, which may outlive the trace that it is of."""
    if not all(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        yield
        return
    with _knowing(asked=(*_known.get().asked, _Asked(tuple(leaves), _axes(leaves, together), answer))):
        yield


@contextlib.contextmanager
def _knowing(**new: Any) -> Iterator[None]:
    token = _known.set(_known.get()._replace(**new))
    try:
        yield
    finally:
        _known.reset(token)


def _same(leaves: Sequence[Any], others: Sequence[Any]) -> bool:
    return len(leaves) == len(others) and all(a is b for a, b in zip(leaves, others, strict=True))


def _axes(leaves: Sequence[Any], together: Together) -> tuple[tuple[str, ...], ...]:
    return tuple(together.axes(leaf) for leaf in leaves)
