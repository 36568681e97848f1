"""JSON that says the same thing twice: parsers differ in which they believe, pydantic's takes the last."""

import json
from collections import Counter
from typing import Any


class _Twice(Exception):
    pass


def named_twice(body: bytes) -> str | None:
    """The first name that an object in `body` has more than once; None where each name is there once.

    Args:
      body: JSON that pydantic has accepted, so that it is neither deep nor broken.
    """

    def take(pairs: list[tuple[str, Any]]) -> None:
        if len({name for name, _ in pairs}) < len(pairs):
            raise _Twice(next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1))

    try:
        json.loads(body, object_pairs_hook=take)
    except _Twice as twice:
        return str(twice.args[0])
    return None
