"""Records of the non-finite values that an evaluation meets, with their origins."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from optwrap._autopsy.overflow import wrapped
from optwrap._autopsy.program.jaxprs import Plan, Region, bind
from optwrap._autopsy.program.source import is_check
from optwrap._autopsy.tags import MOVES, NONE, origins
from optwrap._autopsy.values import Frame, Node, Value, classes, is_inexact, measured, node_of, on_host

_UNCHANGED: Final = MOVES | {"convert_element_type"}
"""Primitives that leave an infinity as it is."""
_KEEP_PATH: Final = (MOVES - {"concatenate", "select_n", "pad"}) | {"convert_element_type"}
"""Primitives whose output is a part or a copy of the first operand."""


MAX_RECORDS: Final = 20_000
"""Records, of some kilobytes each at most. After them a value that only carries an origin on has its input's record."""


class Operation(NamedTuple):
    """What is evaluated as one."""

    name: str
    equation: Any
    """Its equation; of a region the first."""
    frame: Frame
    plan: Plan
    region: Region | None = None
    """None if it is one equation."""

    @property
    def detail(self) -> str | None:
        """What a region consists of."""
        if self.region is None:
            return None
        return "compiled together: " + ", ".join(dict.fromkeys(e.primitive.name for e in self.region.equations))


class Records:
    """What one evaluation has met so far."""

    def __init__(self) -> None:
        self.origins: dict[int, Node] = {}
        """The record in which each origin began, by its number; the numbers ascend in time."""
        self.joins: dict[int, dict[int, Node]] = {}
        """For an origin the others that met it, as in a sum, with the record of the result that has only the first."""
        self.notes: dict[str, None] = {}
        """An ordered set."""
        self.checked: list[Value] = []
        """Non-finite values that optwrap looked for, as a wrapper does that skips the step. Without their arrays."""
        self._kept = 0
        """Number of records of results."""
        self.largest: tuple[float, Node] | None = None
        """The largest finite magnitude, and a record of its operation."""

    def given(self, kind: str, array: Any, equation: Any, frame: Frame, *, path: str | None = None) -> Value:
        """A value that no operation computed: an `argument` or a `constant` that the equation uses."""
        least, greatest, finite = measured(array)
        value = Value(array, least, greatest, path=path)
        if not finite:
            number = len(self.origins) + 1
            value.node = node_of(array, kind, kind, equation, frame, origins=frozenset({number}), path=path)
            value.tag = number
            self.origins[number] = value.node
        return value

    def results(self, operation: Operation, values: Sequence[Value], arrays: Sequence[Any]) -> list[Value]:
        """The results of an operation, with the records of those that are non-finite.

        Args:
          operation: what was evaluated.
          values: its inputs.
          arrays: its outputs.
        """
        if any(value.node is not None for value in values) and is_check(operation.equation):
            self._note_checked(values)
        overflow = next((value.overflow for value in values if value.overflow is not None), None)
        path = values[0].path if values and operation.name in _KEEP_PATH else None
        outs, bad = [], []
        for array in arrays:
            least, greatest, finite = measured(array)
            out = Value(array, least, greatest, path=path, overflow=overflow)
            outs.append(out)
            if not finite:
                bad.append(out)
            self._keep_largest(out, operation)
        if len(outs) == 1 and operation.region is None:
            self._note_overflow(outs[0], values, operation)
        if bad:
            hosts = [on_host(out.array) for out in outs]
            if any(value.node is not None for value in values):
                tags = origins(None if operation.region else operation.equation, values, hosts, bind)
            else:
                tags = [np.where(classes(host).any, NONE, 0) if host.dtype.kind in "fc" else host for host in hosts]
            for out, tag in zip(outs, tags, strict=True):
                if out in bad:
                    self._attribute(out, tag, values, operation)
        return outs

    def _attribute(self, value: Value, tag: Any, values: Sequence[Value], operation: Operation) -> None:
        """Give a non-finite result its record. Elements whose tag is NONE have a new origin."""
        number = len(self.origins) + 1
        tag = np.where(tag == NONE, np.int32(number), tag)
        value.tag = tag
        numbers = value.origins
        value.tag = next(iter(numbers)) if len(numbers) == 1 else tag
        parents = tuple(parent.node for parent in values if parent.node is not None)
        self._kept += 1
        if self._kept > MAX_RECORDS and number not in numbers:
            value.node = next((parent for parent in parents if numbers <= parent.origins), None)
            if value.node is not None:
                return
        value.node = node = node_of(
            value.array, "operation", operation.name, operation.equation, operation.frame, parents=parents,
            origins=numbers, moves=operation.name in _UNCHANGED,
        )  # fmt: skip
        before = {kind for parent in parents for kind in parent.names}
        if number in numbers or not set(node.names) <= before:
            node.operands = tuple(parent.operand for parent in values)
            node.feeding = operation.plan.feeding(operation.equation)
            node.detail = operation.detail
        if operation.name not in MOVES:
            for other in _joined(values, numbers, node.names):
                self.joins.setdefault(min(numbers), {}).setdefault(other, node)
        if number in numbers:
            self.origins[number] = node
            if value.overflow is not None and not parents:
                node.parents = (value.overflow,)

    def _note_checked(self, values: Sequence[Value]) -> None:
        known = {id(value.node) for value in self.checked}
        for value in values:
            node = value.node
            if node is not None and id(node) not in known and not (node.equation and is_check(node.equation)):
                self.checked.append(dataclasses.replace(value, array=None))

    def _note_overflow(self, value: Value, values: Sequence[Value], operation: Operation) -> None:
        mask = wrapped(operation.equation, values, value.array)
        if mask is not None:
            value.overflow = node_of(
                value.array, "integer_overflow", operation.name, operation.equation, operation.frame, mask=mask,
                operands=tuple(value.operand for value in values),
            )  # fmt: skip

    def _keep_largest(self, value: Value, operation: Operation) -> None:
        if not is_inexact(value.array):
            return
        for end in (value.least, value.greatest):
            if end is not None and (self.largest is None or abs(end) > self.largest[0]):
                mask = np.zeros(np.shape(value.array), bool)
                node = node_of(value.array, "operation", operation.name, operation.equation, operation.frame, mask=mask)
                self.largest = (abs(end), node)


def _joined(values: Sequence[Value], kept: frozenset[int], names: Sequence[str]) -> list[int]:
    """Origins that are in the inputs and no more in the result, of elements that alone would have made it like this."""
    found: set[int] = set()
    for value in values:
        if value.node is not None and not value.node.origins <= kept:
            kinds = classes(on_host(value.array))
            alike = np.any([kinds.named(name) for name in names], axis=0)
            found.update(int(number) for number in np.unique(np.where(alike, np.asarray(value.tag), 0)))
    return sorted(found - kept - {0})
