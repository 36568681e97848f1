"""Limits how many JSON values a body may have and how long its numbers are, before it is parsed.

An empty object is two bytes in a body and 500 bytes in the parser: 4 MiB of them are 900 MB. The largest report that a
Monitor sends has about 95,000 structural characters. The time to parse an integer grows with the square of its length.
"""

from typing import Final

from optwrap_exporter.wire.errors import ExporterError

MOST_STRUCTURE: Final = 131_072
"""The most of the characters `{ [ , :` in one body, also within strings."""
_DIGITS: Final = 500
"""A number of at least 999 digits fills one of the parts of so many bytes into which a body is cut."""


class OversizeError(ExporterError):
    """A body has too many JSON values, or too long numbers, to be parsed (HTTP 413)."""


def check_size(body: bytes) -> None:
    """Raise if a body has too many values, or too long numbers, to be parsed.

    Raises:
      OversizeError: it has more than MOST_STRUCTURE of the characters `{ [ , :`, or a long row of digits.
    """
    if len(body) <= MOST_STRUCTURE:
        return
    found = len(body) - len(body.translate(None, b"{[,:"))
    if found > MOST_STRUCTURE:
        raise OversizeError(f"{found} of the characters {{ [ , :")
    if any(body[start : start + _DIGITS].isdigit() for start in range(0, len(body), _DIGITS)):
        raise OversizeError(f"a number of at least {_DIGITS} digits")
