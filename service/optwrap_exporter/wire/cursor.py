"""Cursors of paged lists. A cursor is opaque to clients and works only for the list that it came from."""

import base64
import binascii
import json
from typing import Final

from optwrap_exporter.wire.errors import ExporterError, shown

_LARGEST: Final = 2**63 - 1
"""The largest integer of SQLite."""


class CursorError(ExporterError, ValueError):
    """A cursor is damaged or belongs to another list (HTTP 422).

    Attributes:
      value: the cursor received, shortened.
      allowed: what is allowed.
    """

    def __init__(self, value: str) -> None:
        self.value = shown(value)
        self.allowed = "the cursor of this list's last answer, with the same filters; none for the first page"
        super().__init__(f"cursor: {self.value!r}: expected {self.allowed}")


def encode(of: str, key: list[int | str]) -> str:
    """The cursor that continues the list named `of` after the item with `key`."""
    return base64.urlsafe_b64encode(json.dumps([of, *key]).encode()).decode().rstrip("=")


def decode(of: str, cursor: str, types: tuple[type, ...]) -> list[int | str]:
    """The key in a cursor.

    Args:
      of: the name of the list.
      cursor: the cursor received.
      types: the types of the key's parts.

    Raises:
      CursorError: `encode` did not make it for this list, or its key has other types.
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
