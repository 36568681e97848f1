"""Sets of integers as sorted, disjoint, not touching ranges: which reports came, which steps were seen."""

from collections.abc import Iterable
from typing import Final

Ranges = tuple[tuple[int, int], ...]
"""Pairs of first and last, both included."""

MOST: Final = 512
"""Ranges that are kept of one incarnation's reports."""


def add(ranges: Ranges, number: int) -> Ranges:
    """With `number` in it."""
    if ranges and number == ranges[-1][1] + 1:  # what nearly always happens: the next one
        return (*ranges[:-1], (ranges[-1][0], number))
    if contains(ranges, number):
        return ranges
    return union([*ranges, (number, number)])


def contains(ranges: Ranges, number: int) -> bool:
    """Whether `number` is in it."""
    return any(first <= number <= last for first, last in reversed(ranges))


def up_to(ranges: Ranges, start: int) -> int:
    """The highest n with everything from `start` to n in it; `start - 1` where `start` is not."""
    return next((last for first, last in reversed(ranges) if first <= start <= last), start - 1)


def union(pairs: Iterable[tuple[int, int]]) -> Ranges:
    """All of them together; a pair whose last is below its first is empty."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted(pair for pair in pairs if pair[0] <= pair[1]):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return tuple(merged)


def count(ranges: Ranges, first: int, last: int) -> int:
    """How many numbers from `first` to `last` are in it."""
    return sum(max(0, min(b, last) - max(a, first) + 1) for a, b in ranges)
