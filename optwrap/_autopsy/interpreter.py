"""Evaluates a jaxpr equation by equation."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.extend.core import Literal as Number

from optwrap._autopsy.loops import Loops
from optwrap._autopsy.program.jaxprs import (
    CALLBACKS,
    CALLS,
    LOOPS,
    SILENT,
    Granularity,
    Plan,
    Region,
    bind,
    function_of,
    is_here,
    opened,
    operands_of,
    planned,
)
from optwrap._autopsy.program.mapped import gathered, on_one_device, placed, without_mesh
from optwrap._autopsy.program.source import name_stack
from optwrap._autopsy.progress import Progress
from optwrap._autopsy.records import Operation, Records
from optwrap._autopsy.values import Frame, Value


class Interpreter:
    """One evaluation."""

    def __init__(self, records: Records, granularity: Granularity, progress: Progress) -> None:
        self._records = records
        self._granularity = granularity
        self._progress = progress
        self._plans: dict[int, Plan] = {}
        self._compiled: dict[int, tuple[Any, Callable[..., Any]]] = {}
        self._loops = Loops(records, progress, self.block, self._jitted)

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

    def _evaluate(  # noqa: PLR0911  # one for each kind of primitive
        self, item: Any, values: list[Value], frame: Frame, plan: Plan
    ) -> list[Value]:
        if isinstance(item, Region):
            return self._region(item, values, frame, plan)
        name = item.primitive.name
        inside = frame._replace(name_stack=name_stack(item, frame.name_stack), calls=(*frame.calls, item))
        if name in CALLS:
            return self.block(function_of(item), operands_of(item, values), inside)
        if name == "sharding_constraint" and not is_here(item):
            return [dataclasses.replace(value) for value in values]
        if name == "shard_map" and (mapped := self._mapped(item, values)) is not None:
            return self._without_devices(item, mapped, values, inside)
        if name in LOOPS:
            evaluate = {"scan": self._loops.scan, "while": self._loops.while_, "cond": self._cond}[name]
            return evaluate(item, values, frame)
        if name in CALLBACKS:
            if name in SILENT and not any(var in plan.used for var in item.outvars):
                self._records.notes[f"{name} was skipped"] = None
                return [Value(np.zeros(var.aval.shape, var.aval.dtype)) for var in item.outvars]
            self._records.notes[f"{name} was run once more"] = None
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

    def _mapped(self, equation: Any, values: list[Value]) -> Any:
        """A `shard_map` as a jaxpr for one device; None if it cannot be."""
        if id(equation) not in self._compiled:
            try:
                arrays = gathered(equation, [value.array for value in values])
                with without_mesh():
                    mapped = on_one_device(equation, arrays)
            except Exception as error:  # whatever vmap cannot do
                self._records.notes[
                    f"shard_map was evaluated as one operation ({type(error).__name__} when it was mapped on one "
                    "device): to look inside, pass the function that it maps, with the arguments of one device"
                ] = None
                mapped = None
            self._compiled[id(equation)] = equation, mapped
        return self._compiled[id(equation)][1]

    def _without_devices(self, equation: Any, mapped: Any, values: list[Value], inside: Frame) -> list[Value]:
        """The results of a `shard_map` on one device, placed as the program expects them."""
        arrays = gathered(equation, [value.array for value in values])
        inputs = [dataclasses.replace(value, array=array) for value, array in zip(values, arrays, strict=True)]
        values.clear()
        del arrays
        with without_mesh():
            outs = self.block(mapped, inputs, inside)
        arrays = placed(equation, [out.array for out in outs])
        return [dataclasses.replace(out, array=array) for out, array in zip(outs, arrays, strict=True)]

    def _cond(self, equation: Any, values: list[Value], frame: Frame) -> list[Value]:
        branches = equation.params["branches"]
        branch = branches[min(max(int(values[0].array), 0), len(branches) - 1)]
        return self.block(branch, values[1:], frame._replace(name_stack=name_stack(equation, frame.name_stack)))
