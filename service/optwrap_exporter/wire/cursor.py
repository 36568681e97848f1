"""Cursors: opaque, and bound to the list they came from."""

import base64
import binascii
import json
from typing import Final

from optwrap_exporter.wire.requests import shown

_LARGEST: Final = 2**63 - 1
"""The largest number that a row can have: SQLite's."""


class CursorError(ValueError):
    """A cursor that is none, or one of another list; `value` is what was given, `allowed` what would do (422)."""

    def __init__(self, value: str) -> None:
        self.value = shown(value)
        self.allowed = "the cursor of this list's last answer, with the same filters, or none to begin at its start"
        super().__init__(f"cursor: {self.value!r}: expected {self.allowed}")


def encode(of: str, key: list[int | str]) -> str:
    """The cursor that continues the list named `of` after `key`."""
    return base64.urlsafe_b64encode(json.dumps([of, *key]).encode()).decode().rstrip("=")


def decode(of: str, cursor: str, types: tuple[type, ...]) -> list[int | str]:
    """The key that `encode` was given.

    Raises:
      CursorError: not made by `encode` for the list named `of`, or the key is not of `types`.
    """
    try:
        made = json.loads(base64.urlsafe_b64decode(cursor.encode() + b"=" * (-len(cursor) % 4)))
    except (ValueError, binascii.Error, RecursionError):
        raise CursorError(cursor) from None
    if not isinstance(made, list) or made[:1] != [of] or [type(part) for part in made[1:]] != list(types):
        raise CursorError(cursor)
    if not all(-_LARGEST <= part <= _LARGEST for part in made[1:] if isinstance(part, int)):
        raise CursorError(cursor)
    return made[1:]
