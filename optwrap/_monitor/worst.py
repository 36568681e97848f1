"""Picks the parameters that a report names. A model may have 100,000, and all of them may be non-finite at once."""

from collections.abc import Mapping
from typing import Final, NamedTuple

MAX_PARAMETERS: Final = 4096
"""Limit of the parameters that the totals of a report name, and the record of one step. The wire allows no more."""


class Named(NamedTuple):
    """The counts of the parameters that are named, and the others summed up."""

    counts: Mapping[str, int]
    """In the order in which they were given."""
    others: int = 0
    """Number of parameters that are not named."""
    rest: int = 0
    """Sum of their counts."""


def name_worst(counts: Mapping[str, int], limit: int, *, keep_first: bool = False) -> Named:
    """Names the parameters with the largest counts, and sums up the others. Of equal counts the first are named.

    Args:
      counts: by parameter.
      limit: the most parameters that are named.
      keep_first: whether the first parameter is named even if its count is small.
    """
    if len(counts) <= limit:
        return Named(counts)
    order = sorted(counts, key=lambda path: -counts[path])
    if keep_first:
        first = next(iter(counts))
        order.remove(first)
        order.insert(0, first)
    chosen = set(order[:limit])
    named = {path: count for path, count in counts.items() if path in chosen}
    return Named(named, len(counts) - len(named), sum(counts.values()) - sum(named.values()))
