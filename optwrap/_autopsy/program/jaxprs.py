"""The program to be evaluated: jaxprs, their equations, and which of them are evaluated together."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Final, Literal, NamedTuple

import jax
from jax.extend.core import Literal as Number
from jax.sharding import Mesh

from optwrap._autopsy.program.source import name_stack, place
from optwrap._autopsy.values import Frame

Granularity = Literal["operation", "line", "scope"]

CALLS: Final = frozenset(
    {
        "jit",
        "pjit",
        "closed_call",
        "core_call",
        "checkpoint",
        "remat",
        "remat2",
        "custom_jvp_call",
        "custom_vjp_call",
        "custom_vjp_call_jaxpr",
        "custom_linear_solve",
    }
)
"""Primitives that call a function with their operands, in all supported versions of JAX."""
LOOPS: Final = frozenset({"scan", "while", "cond"})
WALKED: Final = 16
"""Iterations of a loop that are evaluated in parts: the first ones, and after a fault those without another fault."""
SILENT: Final = frozenset({"debug_callback", "debug_print", "io_callback"})
"""Callbacks that are skipped if nothing uses their results."""
CALLBACKS: Final = SILENT | {"pure_callback"}
_FUNCTIONS: Final = ("jaxpr", "call_jaxpr", "fun_jaxpr")


class Region(NamedTuple):
    """Equations that are compiled together."""

    equations: tuple[Any, ...]
    invars: tuple[Any, ...]
    outvars: tuple[Any, ...]

    def run(self, *arrays: Any) -> list[Any]:
        """Evaluate the equations; called under jit."""
        env = dict(zip(self.invars, arrays, strict=True))
        for equation in self.equations:
            read = [atom.val if isinstance(atom, Number) else env[atom] for atom in equation.invars]
            env.update(zip(equation.outvars, bind(equation, read), strict=True))
        return [env[var] for var in self.outvars]


class Plan(NamedTuple):
    """How a jaxpr is evaluated."""

    jaxpr: Any
    """Kept, because plans are looked up by identity."""
    items: tuple[Any, ...]
    """Equations and regions."""
    dead: tuple[tuple[Any, ...], ...]
    """For each item the variables that nothing after it uses."""
    used: frozenset[Any]
    """The variables that something uses."""
    producers: dict[Any, Any]
    """The equation of each variable."""

    def user_of(self, var: Any) -> Any:
        """The first equation that uses a variable; None if there is none."""
        return next((equation for equation in self.jaxpr.eqns if var in variables(equation)), None)

    def feeding(self, equation: Any) -> tuple[str, ...]:
        """Names of the primitives that computed an equation's inputs, the nearest first, up to four back."""
        names: dict[str, None] = {}
        front = [equation]
        for _ in range(4):
            atoms = [atom for reached in front for atom in variables(reached)]
            front = [self.producers[atom] for atom in atoms if atom in self.producers]
            names.update(dict.fromkeys(_result_of(reached) for reached in front))
        return tuple(names)


def scan_inputs(params: dict[str, Any]) -> tuple[int, int]:
    """How many of a scan's operands are constants, and how many are the carry. The others are stacked."""
    if "num_carry" in params:
        return params["num_consts"], params["num_carry"]
    constants, carry, _ = params["ft_in"].unpack()  # from jax 0.12 on
    return len(constants), len(carry)


def opened(function: Any) -> tuple[Any, tuple[Any, ...]]:
    """A jaxpr and its constants. Newer versions of JAX have one class for open and closed jaxprs."""
    return getattr(function, "jaxpr", function), tuple(getattr(function, "consts", ()))


def function_of(equation: Any) -> Any:
    """The jaxpr that an equation of `CALLS` calls."""
    params = equation.params
    if "jaxprs" in params:  # of a custom_linear_solve
        return params["jaxprs"].solve
    return next(params[name] for name in _FUNCTIONS if name in params)


def operands_of(equation: Any, values: list[Any]) -> list[Any]:
    """Those of an equation's inputs with which its jaxpr is called."""
    if "jaxprs" not in equation.params:
        return values
    lengths = equation.params["const_lengths"]
    before = lengths.matvec + lengths.vecmat
    return values[before : before + lengths.solve] + values[sum(lengths) :]


def functions_in(equation: Any) -> list[Any]:
    """The jaxprs among an equation's parameters."""
    values = [value for value in equation.params.values() if not isinstance(value, tuple)]
    values += [item for value in equation.params.values() if isinstance(value, tuple) for item in value]
    return [value for value in values if hasattr(value, "eqns")]


def is_here(equation: Any) -> bool:
    """Whether an equation, with all in it, needs this process's devices alone."""
    if jax.process_count() == 1:
        return True
    params = equation.params
    mesh = params["mesh"] if "mesh" in params else getattr(params.get("sharding"), "mesh", None)
    devices = mesh.devices.flat if isinstance(mesh, Mesh) else ()
    if any(device.process_index != jax.process_index() for device in devices):
        return False
    return all(is_here(inside) for function in functions_in(equation) for inside in opened(function)[0].eqns)


def variables(item: Any) -> list[Any]:
    """The inputs of an equation or a region that are no literals."""
    return [atom for atom in item.invars if not isinstance(atom, Number)]


def bind(equation: Any, arrays: Sequence[Any], changed: dict[str, Any] | None = None) -> list[Any]:
    """Evaluate one equation on arrays, with some of its parameters changed."""
    primitive = equation.primitive
    bound = primitive.get_bind_params({**equation.params, **(changed or {})})
    functions, params = bound if isinstance(bound, tuple) else ((), bound)
    with equation.ctx.manager:
        out = primitive.bind(*functions, *arrays, **params)
    return list(out) if primitive.multiple_results else [out]


def _result_of(equation: Any) -> str:
    """Name of the primitive that computes an equation's result: of a call, the last one inside."""
    while equation.primitive.name in CALLS and (inside := opened(function_of(equation))[0].eqns):
        equation = inside[-1]
    name: str = equation.primitive.name
    return name


def planned(jaxpr: Any, granularity: Granularity, frame: Frame) -> Plan:
    """How a jaxpr that is called in `frame` is evaluated.

    Raises:
      TypeError: it has mutable references, whose values cannot be followed.
    """
    for equation in jaxpr.eqns:
        if any(type(atom.aval).__name__ == "AbstractRef" for atom in (*equation.invars, *equation.outvars)):
            raise TypeError(
                f"autopsy: the function has mutable references ({equation.primitive.name}); allowed: functions of "
                "arrays: pass one that takes and returns the arrays instead of writing to a jax.new_ref"
            )
    kept = {atom for atom in jaxpr.outvars if not isinstance(atom, Number)}
    used = kept.union(*map(variables, jaxpr.eqns))
    items = tuple(jaxpr.eqns if granularity == "operation" else _regions(jaxpr, granularity, frame))
    dead = []
    for item in reversed(items):
        last = set(variables(item)) - kept
        kept |= last
        dead.append(tuple(last))
    producers = {var: equation for equation in jaxpr.eqns for var in equation.outvars}
    return Plan(jaxpr, items, tuple(reversed(dead)), frozenset(used), producers)


def _is_alone(equation: Any) -> bool:
    """Whether it is never compiled together with others."""
    name = equation.primitive.name
    return name in LOOPS or name in CALLBACKS or name == "shard_map"


def _regions(jaxpr: Any, granularity: Granularity, frame: Frame) -> Iterator[Any]:
    """The equations; those next to each other that have one source line or one name stack, together."""

    def key(equation: Any) -> Any:
        if _is_alone(equation):
            return id(equation)
        if granularity == "scope":
            return name_stack(equation, frame.name_stack)
        line = place(equation, frame.calls).line
        return line and line[:2]

    later = [{atom for atom in jaxpr.outvars if not isinstance(atom, Number)}]
    for equation in reversed(jaxpr.eqns):
        later.append(later[-1].union(variables(equation)))
    later.reverse()
    index = 0
    for _, group in itertools.groupby(jaxpr.eqns, key):
        equations = tuple(group)
        index += len(equations)
        if _is_alone(equations[0]):
            yield from equations
            continue
        made = dict.fromkeys(var for equation in equations for var in equation.outvars)
        read = dict.fromkeys(atom for equation in equations for atom in variables(equation))
        yield Region(
            equations,
            tuple(atom for atom in read if atom not in made),
            tuple(var for var in made if var in later[index]),
        )


def size(function: Any) -> int:
    """About how many operations the evaluation of a jaxpr has."""
    total = 0
    for equation in opened(function)[0].eqns:
        params, name = equation.params, equation.primitive.name
        if name in CALLS:
            total += size(function_of(equation))
        elif name == "scan":
            total += min(params["length"], WALKED + 1) * size(params["jaxpr"])
        elif name == "while":
            total += size(params["body_jaxpr"])
        elif name == "cond":
            total += max(map(size, params["branches"]), default=0)
        else:
            total += 1
    return total
