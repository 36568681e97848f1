"""Finds duplicate JSON keys. Parsers disagree about which value counts; pydantic takes the last."""

import json
from collections import Counter
from typing import Any


class _Found(Exception):
    """Ends the parse at the first duplicate key."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def first_duplicate_key(body: bytes) -> str | None:
    """The first key that an object in `body` has more than once; None if there is none.

    Args:
      body: JSON that pydantic has accepted, so it is well-formed and not deeply nested.
    """

    def check(pairs: list[tuple[str, Any]]) -> None:
        if len(dict(pairs)) < len(pairs):
            raise _Found(next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1))

    try:
        json.loads(body, object_pairs_hook=check)
    except _Found as found:
        return found.key
    return None
