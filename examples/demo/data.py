"""The training data: CPython's own documentation, cut into records, and batches of them.

A record is what a preprocessing job would have stored: `context + 1` characters, and beside them, for each layer of the
model, float32 targets that the layer's probe predicts. A target is the share of each class of characters (letters,
white space, digits, all else) among the next 4, 8, 16, ... characters: the deeper the layer, the further it looks.
"""

import dataclasses
import pydoc_data.topics
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

CLASSES = 4
"""Classes of characters: letters, white space, digits, all else."""

Array = np.ndarray[Any, np.dtype[Any]]


class Batch(NamedTuple):
    """What one micro-step trains on, decoded."""

    tokens: Any
    """int32[B, T + 1]: characters as indices into the vocabulary."""
    ahead: Any
    """float32[L, B, T, 4]: share of each class among the characters to come, one window for each layer."""


class Scale(NamedTuple):
    """By what the targets are standardised, over the whole corpus."""

    mean: Any
    """float32[L, 4]."""
    std: Any
    """float32[L, 4]."""


@dataclasses.dataclass(frozen=True)
class StoredBatch:
    """The same as its bytes lie in storage: by column, as Parquet or Arrow would keep it."""

    text: Array
    """uint8[B, T + 1]: ASCII."""
    ahead: tuple[Array, ...]
    """For each layer the block with its targets: uint8[4 * B * T * 4], little-endian float32."""


class Corpus:
    """The documentation as records of `context + 1` characters with targets for `layers` layers."""

    def __init__(self, *, context: int, layers: int) -> None:
        topics: dict[str, str] = pydoc_data.topics.topics
        text = np.frombuffer("\n".join(topics[name] for name in sorted(topics)).encode("ascii", "replace"), np.uint8)
        self.vocabulary = np.unique(text)
        """uint8[V]: every character that occurs, ascending."""
        self._context = context
        self._text = text
        windows = [4 << layer for layer in range(layers)]
        usable = len(text) - windows[-1] - 1
        self._starts = np.arange(0, usable - context, context)
        self._ahead = np.stack([_shares(text, window)[:usable] for window in windows])

        self.scale = Scale(
            mean=self._ahead.mean(axis=1, dtype=np.float64).astype(np.float32),
            std=self._ahead.std(axis=1, dtype=np.float64).astype(np.float32),
        )

    def batches(self, size: int, seed: int) -> Iterator[StoredBatch]:
        """Batches of `size` records, without end, each record once per pass; the same ones for the same seed."""
        rng = np.random.default_rng(seed)
        while True:
            order = rng.permutation(self._starts)
            for at in range(0, len(order) - size + 1, size):
                yield self._stored(order[at : at + size])

    def decode(self, stored: StoredBatch) -> Batch:
        """Bytes to arrays, and nothing more: what is stored is believed."""
        count = len(stored.text)
        return Batch(
            tokens=np.searchsorted(self.vocabulary, stored.text).astype(np.int32),
            ahead=np.stack([block.view("<f4").reshape(count, self._context, CLASSES) for block in stored.ahead]),
        )

    def _stored(self, starts: Array) -> StoredBatch:
        within = starts[:, None] + np.arange(self._context + 1)
        targets = self._ahead[:, within[:, :-1]].astype("<f4")
        return StoredBatch(self._text[within], tuple(block.reshape(-1).view(np.uint8) for block in targets))


def _shares(text: Array, window: int) -> Array:
    """float32[N - window, 4]: share of each class among the `window` characters after each one."""
    letters = ((text | 0x20) >= ord("a")) & ((text | 0x20) <= ord("z"))
    space = (text == ord(" ")) | (text == ord("\n"))
    digits = (text >= ord("0")) & (text <= ord("9"))
    classes = np.stack([letters, space, digits, ~(letters | space | digits)], axis=1)
    counted = np.concatenate([np.zeros((1, CLASSES), np.int64), np.cumsum(classes, axis=0)])
    # After the character at t come those from t + 1 to t + window.
    shares: Array = (counted[window + 1 :] - counted[1:-window]) / window
    return shares.astype(np.float32)
