"""Sets of integers, such as the seqs received, as sorted ranges that neither overlap nor touch."""

import itertools
from collections.abc import Iterable
from typing import Final

Ranges = tuple[tuple[int, int], ...]
"""Pairs of first and last, both included."""

MOST: Final = 512
"""The most ranges kept for the seqs of one incarnation."""


def add(ranges: Ranges, number: int) -> Ranges:
    """The ranges with `number` added."""
    if ranges and number == ranges[-1][1] + 1:  # the usual case: the next seq
        return (*ranges[:-1], (ranges[-1][0], number))
    if contains(ranges, number):
        return ranges
    return union([*ranges, (number, number)])


def contains(ranges: Ranges, number: int) -> bool:
    """Whether `number` is in one of the ranges."""
    return any(first <= number <= last for first, last in reversed(ranges))


def end_of_contiguous(ranges: Ranges, start: int) -> int:
    """The last n such that all numbers from `start` to n are in the ranges; `start - 1` if `start` is not in them."""
    return next((last for first, last in reversed(ranges) if first <= start <= last), start - 1)


def union(pairs: Iterable[tuple[int, int]]) -> Ranges:
    """The union of ranges that may overlap. A pair whose last is below its first is empty."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted(pair for pair in pairs if pair[0] <= pair[1]):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return tuple(merged)


def plus(ranges: Ranges, more: Ranges) -> Ranges:
    """The union of two sets of ranges."""
    if not ranges or not more:
        return ranges or more
    if ranges[-1][1] + 1 < more[0][0]:  # the usual case: later ones
        return ranges + more
    return union([*ranges, *more])


def joined(ranges: Ranges) -> Ranges:
    """The ranges with the narrowest gap between two of them filled."""
    gap, at = min((after[0] - before[1], i) for i, (before, after) in enumerate(itertools.pairwise(ranges)))
    del gap
    return (*ranges[:at], (ranges[at][0], ranges[at + 1][1]), *ranges[at + 2 :])


def count(ranges: Ranges, first: int, last: int) -> int:
    """How many numbers from `first` to `last` are in the ranges."""
    return sum(max(0, min(b, last) - max(a, first) + 1) for a, b in ranges)


def size(ranges: Ranges) -> int:
    """How many numbers are in the ranges."""
    return sum(last - first + 1 for first, last in ranges)


def above(ranges: Ranges, number: int) -> Ranges:
    """The part of the ranges above `number`."""
    if not ranges or ranges[0][0] > number:
        return ranges
    return tuple((max(first, number + 1), last) for first, last in ranges if last > number)


def without(ranges: Ranges, number: int) -> Ranges:
    """The ranges without `number`."""
    if not contains(ranges, number):
        return ranges
    parts = (part for a, b in ranges for part in ((a, min(b, number - 1)), (max(a, number + 1), b)))
    return union(parts)


def of(numbers: Iterable[int]) -> Ranges:
    """The ranges of some numbers."""
    pairs = [(number, number) for number in numbers]
    return union(pairs) if len(pairs) > 1 else tuple(pairs)


def start_of(ranges: Ranges, number: int) -> int:
    """The first number of the range that `number` is in; `number` if it is in none."""
    return next((first for first, last in reversed(ranges) if first <= number <= last), number)
