"""Evaluates a jaxpr equation by equation."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Literal as Number
from jax.extend.core import jaxpr_as_fun

from optwrap._autopsy.parts import LoopIteration
from optwrap._autopsy.program import (
    CALLBACKS,
    CALLS,
    LOOPS,
    SILENT,
    Granularity,
    Plan,
    Region,
    bind,
    function_of,
    is_collective,
    on_one_device,
    opened,
    planned,
    scan_inputs,
)
from optwrap._autopsy.progress import Progress
from optwrap._autopsy.records import Operation, Records
from optwrap._autopsy.source import name_stack
from optwrap._autopsy.values import Frame, Value, classes, measured, node_of, on_host

_WALKED: Final = 16
"""Iterations of a loop after which it is first evaluated as a whole, and in parts only if that is not finite."""


@jax.jit
def _row(arrays: list[Any], index: Any) -> list[Any]:
    return [lax.dynamic_index_in_dim(array, index, keepdims=False) for array in arrays]


def _buffer_of(arrays: list[Any], length: int) -> list[Any]:
    return [jnp.broadcast_to(array[None], (length, *array.shape)) for array in arrays]


def _stored(buffers: list[Any], arrays: list[Any], index: Any) -> list[Any]:
    return [
        lax.dynamic_update_index_in_dim(buffer, array, index, 0) for buffer, array in zip(buffers, arrays, strict=True)
    ]


class Interpreter:
    """One evaluation."""

    def __init__(self, records: Records, granularity: Granularity, progress: Progress) -> None:
        self._records = records
        self._granularity = granularity
        self._progress = progress
        self._plans: dict[int, Plan] = {}
        self._compiled: dict[int, tuple[Any, Callable[..., Any]]] = {}
        self._buffer_of = jax.jit(_buffer_of, static_argnums=1)
        self._stored = jax.jit(_stored, donate_argnums=0)

    def block(self, function: Any, inputs: list[Value], frame: Frame) -> list[Value]:
        """Evaluate a jaxpr.

        Args:
          function: an open or closed jaxpr.
          inputs: its arguments. The list is emptied, so that each is freed when it is dead.
          frame: where it is called.
        """
        jaxpr, constants = opened(function)
        if id(jaxpr) not in self._plans:
            self._plans[id(jaxpr)] = planned(jaxpr, self._granularity, frame)
        plan = self._plans[id(jaxpr)]
        env = {
            var: self._records.given("constant", value, plan.user_of(var), frame)
            for var, value in zip(jaxpr.constvars, constants, strict=True)
        }
        env.update(zip(jaxpr.invars, inputs, strict=True))
        inputs.clear()
        for var in [var for var in env if var not in plan.used]:
            del env[var]
        for item, dead in zip(plan.items, plan.dead, strict=True):
            values = [self._read(env, atom, item, frame) for atom in item.invars]
            for var in dead:
                env.pop(var, None)
            outs = self._evaluate(item, values, frame, plan)
            env.update((var, out) for var, out in zip(item.outvars, outs, strict=True) if var in plan.used)
        return [self._read(env, atom, None, frame) for atom in jaxpr.outvars]

    def _read(self, env: dict[Any, Value], atom: Any, item: Any, frame: Frame) -> Value:
        if not isinstance(atom, Number):
            return env[atom]
        aval: Any = atom.aval
        array = atom.val if hasattr(atom.val, "dtype") else np.asarray(atom.val, aval.dtype)
        return self._records.given("constant", array, item, frame)

    def _evaluate(self, item: Any, values: list[Value], frame: Frame, plan: Plan) -> list[Value]:
        if isinstance(item, Region):
            return self._region(item, values, frame, plan)
        name = item.primitive.name
        if name in CALLS or on_one_device(item):
            calls = (*frame.calls, item) if "name" in item.params else frame.calls
            inside = frame._replace(name_stack=name_stack(item, frame.name_stack), calls=calls)
            return self.block(function_of(item), values, inside)
        if name in LOOPS:
            evaluate = {"scan": self._scan, "while": self._while, "cond": self._cond}[name]
            return evaluate(item, values, frame)
        if name in CALLBACKS:
            if name in SILENT and not any(var in plan.used for var in item.outvars):
                self._records.notes[f"{name} was skipped"] = None
                return [Value(np.zeros(var.aval.shape, var.aval.dtype)) for var in item.outvars]
            self._records.notes[f"{name} was run once more"] = None
        if is_collective(item):
            return _alone(item, values)
        self._progress.advance()
        arrays = bind(item, [value.array for value in values])
        return self._records.results(Operation(name, item, frame, plan), values, arrays)

    def _region(self, region: Region, values: list[Value], frame: Frame, plan: Plan) -> list[Value]:
        self._progress.advance()
        arrays = self._jitted(region, lambda: region.run)(*[value.array for value in values])
        first = region.equations[0]
        operation = Operation(first.primitive.name, first, frame, plan)
        if len(region.equations) > 1:
            operation = operation._replace(name="fused", region=region)
        elif len(arrays) < len(first.outvars):
            operation = operation._replace(region=region)
        return self._records.results(operation, values, arrays)

    def _jitted(self, key: Any, function: Callable[[], Callable[..., Any]]) -> Callable[..., Any]:
        if id(key) not in self._compiled:
            self._compiled[id(key)] = (key, jax.jit(function()))
        return self._compiled[id(key)][1]

    def _cond(self, equation: Any, values: list[Value], frame: Frame) -> list[Value]:
        branches = equation.params["branches"]
        branch = branches[min(max(int(values[0].array), 0), len(branches) - 1)]
        return self.block(branch, values[1:], frame._replace(name_stack=name_stack(equation, frame.name_stack)))

    def _while(self, equation: Any, values: list[Value], frame: Frame) -> list[Value]:
        params = equation.params
        split = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
        asked, constants, carry = values[: split[0]], values[split[0] : split[1]], values[split[1] :]
        values.clear()
        condition = self._jitted(params["cond_jaxpr"], lambda: jaxpr_as_fun(params["cond_jaxpr"]))
        for index in itertools.count():
            (goes_on,) = condition(*[value.array for value in (*asked, *carry)])
            if not goes_on:
                return carry
            inside = _iteration(equation, frame, LoopIteration("while", index, None))
            carry = self._body(params["body_jaxpr"], [*constants, *carry], inside, index)
        raise AssertionError  # the loop above has no end of its own

    def _scan(self, equation: Any, values: list[Value], frame: Frame) -> list[Value]:
        params = equation.params
        length, (consts, carried) = params["length"], scan_inputs(params)
        if not length:
            outs = bind(equation, [value.array for value in values])
            return [Value(array, *measured(array)[:2]) for array in outs]
        constants, carry, stacked = values[:consts], values[consts : consts + carried], values[consts + carried :]
        values.clear()
        buffers: list[Any] = []
        rows: dict[int, list[Value]] = {}
        for count, index in enumerate(reversed(range(length)) if params["reverse"] else range(length)):
            row = list(_rows(stacked, index))
            inside = _iteration(equation, frame, LoopIteration("scan", index, length))
            outs = self._body(params["jaxpr"], [*constants, *carry, *row], inside, count)
            carry, row = outs[:carried], outs[carried:]
            arrays = [jnp.asarray(value.array) for value in row]
            buffers = self._buffer_of(arrays, length) if not count else buffers
            buffers = self._stored(buffers, arrays, index)
            # What is known of them; the arrays are in the buffers.
            rows[index] = [dataclasses.replace(value, array=None) for value in row]
        return carry + [
            _stack(buffer, [rows[index][i] for index in range(length)], equation, frame)
            for i, buffer in enumerate(buffers)
        ]

    def _body(self, function: Any, values: list[Value], frame: Frame, count: int) -> list[Value]:
        """One iteration of a loop. After the first ones it is compiled, until something is non-finite."""
        if count >= _WALKED and all(value.node is None and value.overflow is None for value in values):
            self._progress.advance()
            arrays = self._jitted(function, lambda: jaxpr_as_fun(function))(*[value.array for value in values])
            ranges = [measured(array) for array in arrays]
            if all(finite for *_, finite in ranges):
                return [Value(array, low, high) for array, (low, high, _) in zip(arrays, ranges, strict=True)]
        return self.block(function, values, frame)


def _alone(equation: Any, values: list[Value]) -> list[Value]:
    """The results of a collective on a single device: its inputs, perhaps with an axis of length 1 more or less."""
    if not values:  # axis_index
        return [Value(np.zeros(var.aval.shape, var.aval.dtype)) for var in equation.outvars]
    outs = []
    for value, var in zip(values, equation.outvars, strict=True):
        tag = value.tag.reshape(var.aval.shape) if isinstance(value.tag, np.ndarray) else value.tag
        outs.append(dataclasses.replace(value, array=jnp.reshape(value.array, var.aval.shape), tag=tag))
    return outs


def _iteration(equation: Any, frame: Frame, iteration: LoopIteration) -> Frame:
    return frame._replace(name_stack=name_stack(equation, frame.name_stack), iterations=(*frame.iterations, iteration))


def _rows(stacked: list[Value], index: int) -> Iterator[Value]:
    """One row of each input of a scan."""
    arrays = _row([value.array for value in stacked], index) if stacked else []
    for value, array in zip(stacked, arrays, strict=True):
        row = Value(array, value.least, value.greatest, path=value.path, overflow=value.overflow)
        if value.node is not None:
            row.least, row.greatest, finite = measured(array)
            if not finite:
                row.node = value.node
                row.tag = value.tag if isinstance(value.tag, int) else value.tag[index]  # type: ignore[index]
        yield row


def _stack(array: Any, rows: list[Value], equation: Any, frame: Frame) -> Value:
    """The stacked results of a scan."""
    ends = [end for row in rows for end in (row.least, row.greatest) if end is not None]
    value = Value(array, min(ends, default=None), max(ends, default=None))
    value.overflow = next((row.overflow for row in rows if row.overflow is not None), None)
    parents = tuple(row.node for row in rows if row.node is not None)
    if parents:
        numbers = frozenset().union(*(node.origins for node in parents))
        value.node = node_of(array, "stack", "scan", equation, frame, parents=parents, origins=numbers, moves=True)
        if len(numbers) == 1:
            value.tag = next(iter(numbers))
        else:
            bad = classes(on_host(array)).any
            tag = np.zeros(bad.shape, np.int32)
            for index, row in enumerate(rows):
                if row.tag is not None:
                    tag[index] = np.where(bad[index], row.tag, 0)
            value.tag = tag
    return value
