"""Loops: the first iterations in parts; then compiled, up to an iteration in which something new goes wrong.

A compiled part ends before the first iteration of which a result has a kind of non-finite value that it is not known to
have. That iteration is evaluated in parts again.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxpr_as_fun

from optwrap._autopsy.forward import buffers_of, row_of, scan_forward, select, stored, while_forward
from optwrap._autopsy.parts import LoopIteration
from optwrap._autopsy.program.jaxprs import WALKED, bind, is_here, opened, scan_inputs
from optwrap._autopsy.program.source import name_stack
from optwrap._autopsy.progress import Progress
from optwrap._autopsy.records import Records
from optwrap._autopsy.values import Array, Frame, Node, Value, classes, measured, node_of, on_host

Block = Callable[[Any, list[Value], Frame], list[Value]]
Jitted = Callable[[Any, Callable[[], Callable[..., Any]]], Callable[..., Any]]
Firsts = Mapping[str, tuple[int, Node]]
"""For each kind of non-finite value that a result has had, the first origin, and a record that has it."""


class Loops:
    """The loops of one evaluation."""

    def __init__(self, records: Records, progress: Progress, block: Block, jitted: Jitted) -> None:
        """Prepare.

        Args:
          records: of the evaluation.
          progress: of the evaluation.
          block: evaluates a jaxpr in parts.
          jitted: compiles the function that a function returns, once for the object that it belongs to.
        """
        self._records = records
        self._progress = progress
        self._block = block
        self._jitted = jitted
        self._buffers_of = jax.jit(buffers_of, static_argnums=1)
        self._stored = jax.jit(stored, donate_argnums=0)

    def while_(self, equation: Any, values: list[Value], frame: Frame) -> list[Value]:
        """Evaluate a `while`. The list of its inputs is emptied."""
        params = equation.params
        first = params["cond_nconsts"]
        last = first + params["body_nconsts"]
        asked, constants, carry = values[:first], values[first:last], values[last:]
        values.clear()
        condition = self._jitted(params["cond_jaxpr"], lambda: jaxpr_as_fun(params["cond_jaxpr"]))
        watch = _Watch(self._records, params["body_jaxpr"])
        index = 0
        while True:
            if index >= WALKED and watch.is_quiet:
                self._progress.advance()
                forward = self._jitted(equation, lambda: while_forward(params))
                count, arrays = forward(_arrays(asked), _arrays(constants), _arrays(carry), watch.expected())
                carry = watch.attributed(arrays, carry, equation, frame) if count else carry
                index += int(count)
            (wanted,) = condition(*_arrays(asked), *_arrays(carry))
            if not np.any(wanted):
                return carry
            inside = _iteration(equation, frame, LoopIteration("while", index, None))
            new = self._block(params["body_jaxpr"], [*constants, *carry], inside)
            if np.ndim(wanted):  # under vmap; the members whose condition is false keep their values
                new = [_chosen(wanted, *pair, equation, frame) for pair in zip(new, carry, strict=True)]
            carry = new
            watch.walked(carry)
            index += 1

    def scan(self, equation: Any, values: list[Value], frame: Frame) -> list[Value]:
        """Evaluate a `scan`. The list of its inputs is emptied."""
        params = equation.params
        length, (consts, carried) = params["length"], scan_inputs(params)
        if not length:
            outs = bind(equation, _arrays(values))
            found = map(measured, outs)
            return [Value(array, one.least, one.greatest) for array, one in zip(outs, found, strict=True)]
        constants, carry, stacked = values[:consts], values[consts : consts + carried], values[consts + carried :]
        values.clear()
        buffers: list[Any] = []
        parts: list[tuple[int | slice, list[Any]]] = []
        watch = _Watch(self._records, params["jaxpr"])
        done = 0
        while done < length:
            if done >= WALKED and watch.is_quiet:
                self._progress.advance()
                forward = self._jitted(equation, lambda: scan_forward(params, carried))
                given = _arrays(constants), _arrays(carry), _arrays(stacked)
                end, arrays, buffers = forward(given, buffers, done, watch.expected())
                reached = int(end)
                if reached > done:
                    carry = watch.attributed(arrays, carry, equation, frame)
                    place = slice(length - reached, length - done) if params["reverse"] else slice(done, reached)
                    parts.append((place, watch.firsts[carried:]))
                    done = reached
                    continue
            index = length - 1 - done if params["reverse"] else done
            row = list(_rows(stacked, index))
            inside = _iteration(equation, frame, LoopIteration("scan", index, length))
            outs = self._block(params["jaxpr"], [*constants, *carry, *row], inside)
            watch.walked(outs)
            carry, row = outs[:carried], outs[carried:]
            new = [jnp.asarray(value.array) for value in row]
            buffers = self._stored(buffers or self._buffers_of(new, length), new, index)
            # What is known of them; the arrays are in the buffers.
            parts.append((index, [dataclasses.replace(value, array=None) for value in row]))
            done += 1
        return carry + [
            _stack(buffer, [(place, row[i]) for place, row in parts], equation, frame)
            for i, buffer in enumerate(buffers)
        ]


class _Watch:
    """Tracks the non-finite results of those iterations of a loop that are not compiled."""

    def __init__(self, records: Records, body: Any) -> None:
        self.firsts: list[dict[str, tuple[int, Node]]] = []
        """For each result of an iteration."""
        self._records = records
        self._equations: set[int] = set()
        self._origins = len(records.origins)
        self._nothing_new = 0
        self._bad = False
        jaxpr = opened(body)[0]
        # A jax.debug.print would be run again, and the other processes would be waited for.
        self._may_compile = not jaxpr.effects and all(map(is_here, jaxpr.eqns))

    @property
    def is_quiet(self) -> bool:
        """Whether the next iterations are compiled."""
        return self._may_compile and (not self._bad or self._nothing_new >= WALKED)

    def walked(self, outs: Sequence[Value]) -> None:
        """An iteration was evaluated in parts."""
        found = [self._records.origins[number] for number in range(self._origins + 1, len(self._records.origins) + 1)]
        self._origins += len(found)
        equations = {id(origin.equation) for origin in found} - self._equations
        self._equations |= equations
        self._nothing_new = 0 if equations else self._nothing_new + 1
        self._bad = any(value.node is not None for value in outs)
        self.firsts = self.firsts or [{} for _ in outs]
        for value, firsts in zip(outs, self.firsts, strict=True):
            if value.node is not None:
                kinds = classes(on_host(value.array))
                for name in set(kinds.names) - set(firsts):
                    tags = np.broadcast_to(np.asarray(value.tag), kinds.nan.shape)[kinds.named(name)]
                    firsts[name] = int(tags.min()), value.node

    def expected(self) -> Array:
        """For each result, whether a compiled iteration may have NaN, inf and -inf: bool[results, 3]."""
        if not self._bad:
            return np.zeros((len(self.firsts), 3), bool)
        self._records.notes["iterations after the first non-finite ones were evaluated together"] = None
        return np.array([[name in firsts for name in ("nan", "inf", "-inf")] for firsts in self.firsts], bool)

    def attributed(self, arrays: Sequence[Any], before: Sequence[Value], equation: Any, frame: Frame) -> list[Value]:
        """The carry after compiled iterations."""
        overflow = next((value.overflow for value in before if value.overflow is not None), None)
        outs = []
        for array, firsts in zip(arrays, self.firsts, strict=False):  # the rows come after the carry
            low, high, finite = measured(array)
            value = Value(array, low, high, overflow=overflow)
            if not finite:
                _put(value, _tags(on_host(array), firsts), [node for _, node in firsts.values()], equation, frame)
            outs.append(value)
        self._bad = any(value.node is not None for value in outs)
        return outs


def _arrays(values: Sequence[Value]) -> list[Any]:
    return [value.array for value in values]


def _iteration(equation: Any, frame: Frame, iteration: LoopIteration) -> Frame:
    return frame._replace(name_stack=name_stack(equation, frame.name_stack), iterations=(*frame.iterations, iteration))


def _rows(stacked: list[Value], index: int) -> Iterator[Value]:
    """One row of each input of a scan."""
    arrays = row_of(_arrays(stacked), index) if stacked else []
    for value, array in zip(stacked, arrays, strict=True):
        row = Value(array, value.least, value.greatest, path=value.path, overflow=value.overflow)
        if value.node is not None:
            row.least, row.greatest, finite = measured(array)
            if not finite:
                row.node = value.node
                row.tag = value.tag if isinstance(value.tag, int) else value.tag[index]  # type: ignore[index]
        yield row


def _chosen(wanted: Any, new: Value, old: Value, equation: Any, frame: Frame) -> Value:
    """The new value of the members of a vmap that go on, the old one of the others."""
    (array,) = select(jnp.asarray(wanted), [new.array], [old.array])
    low, high, finite = measured(array)
    value = Value(array, low, high, overflow=new.overflow or old.overflow)
    if not finite:
        mask = np.reshape(wanted, (*np.shape(wanted), *(1,) * (np.ndim(array) - np.ndim(wanted))))
        tag = np.where(mask, 0 if new.tag is None else new.tag, 0 if old.tag is None else old.tag)
        _put(value, tag, [new.node, old.node], equation, frame)
    return value


def _stack(array: Any, parts: Sequence[tuple[int | slice, Any]], equation: Any, frame: Frame) -> Value:
    """The stacked results of a scan: of single iterations, and of compiled ones with the first origins of a result."""
    low, high, finite = measured(array)
    value = Value(array, low, high)
    rows = [(place, row) for place, row in parts if isinstance(row, Value)]
    value.overflow = next((row.overflow for _, row in rows if row.overflow is not None), None)
    if not finite:
        host = on_host(array)
        tag = np.zeros(host.shape, np.int32)
        nodes = [row.node for _, row in rows]
        for place, row in rows:
            tag[place] = 0 if row.tag is None else row.tag
        for place, firsts in parts:
            if isinstance(place, slice) and firsts:
                tag[place] = _tags(host[place], firsts)
                nodes += [node for _, node in firsts.values()]
        _put(value, tag, nodes, equation, frame)
    return value


def _tags(host: Array, firsts: Firsts) -> Array:
    kinds = classes(host)
    tag = np.zeros(host.shape, np.int32)
    for name, (number, _) in firsts.items():
        tag[kinds.named(name)] = number
    return tag


def _put(value: Value, tag: Array, nodes: Sequence[Node | None], equation: Any, frame: Frame) -> None:
    """Give a value its origins, and a record that only leads to those of its parts."""
    tag = np.where(classes(on_host(value.array)).any, tag, 0).astype(np.int32)
    numbers = frozenset(int(number) for number in np.unique(tag) if number)
    parents = tuple(dict.fromkeys(node for node in nodes if node is not None))
    value.node = node_of(value.array, "stack", equation.primitive.name, equation, frame, parents=parents, moves=True,
                         origins=frozenset().union(*(node.origins for node in parents)))  # fmt: skip
    value.tag = next(iter(numbers)) if len(numbers) == 1 else tag
