"""Limits how many JSON values a body may have, before it is parsed.

An empty object is two bytes in a body and 500 bytes in the parser: 4 MiB of them are 900 MB. The largest report that a
Monitor sends has about 95,000 structural characters.
"""

from typing import Final

from optwrap_exporter.wire.errors import ExporterError

MOST_STRUCTURE: Final = 131_072
"""The most of the characters `{ [ , :` in one body, also within strings."""


class OversizeError(ExporterError):
    """A body has too many JSON values to be parsed (HTTP 413)."""


def check_size(body: bytes) -> None:
    """Raise if a body has too many values to be parsed.

    Raises:
      OversizeError: it has more than MOST_STRUCTURE of the characters `{ [ , :`.
    """
    if len(body) <= MOST_STRUCTURE:
        return
    found = len(body) - len(body.translate(None, b"{[,:"))
    if found > MOST_STRUCTURE:
        raise OversizeError(f"{found} of the characters {{ [ , :")
