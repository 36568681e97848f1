"""`autopsy`: evaluates a function once more, and explains how a non-finite value reached its outputs."""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import jax
import numpy as np
from jax.extend.core import jaxpr_as_fun
from jax.sharding import AxisType, Mesh, NamedSharding

from optwrap._autopsy.findings import Findings
from optwrap._autopsy.interpreter import Interpreter
from optwrap._autopsy.program.jaxprs import Granularity, is_here, size
from optwrap._autopsy.progress import Progress
from optwrap._autopsy.records import Records
from optwrap._autopsy.slice import largest, sliced
from optwrap._autopsy.values import Frame, measured
from optwrap._core import checks

_CHECKED: Final = "the gradients that optwrap checks"
_ELSEWHERE: Final = "the compiled function was not run, because it needs the devices of other processes"
_REMEDY: Final = "pass the function that you would pass to jax.jit, and the arguments of the step that went bad"


def autopsy(
    fn: Callable[..., Any], /, *args: Any, granularity: Granularity = "operation", progress: bool | None = None,
    **kwargs: Any,
) -> Findings:  # fmt: skip
    """Explain how a non-finite value reached the outputs of a function.

    It traces the function, evaluates its operations one by one on these arguments, and follows each non-finite value in
    the outputs back to the operation that made it from finite inputs. Infinities that do not reach an output, as in an
    attention mask, are no fault. What the function writes into its arguments, as flax.nnx does, is an output, too. For
    example::

        findings = optwrap.autopsy(jax.value_and_grad(loss), params, batch)
        print(findings)

    Python side effects of the function happen once more. Callbacks whose results are used run once more; others are
    skipped.

    Args:
      fn: anything that `jax.jit` takes, jitted or not: a loss, its gradient, a whole train step.
      *args: its arguments, pytrees. Arrays and non-finite numbers are traced; everything else is static. Nothing is
        donated.
      granularity: what is evaluated as one compiled piece: each `operation`, the operations of each source `line`, or
        those of each `jax.named_scope` ("scope"). A fault that only occurs when operations are compiled together is not
        seen one by one; the findings then say so.
      progress: whether to show a line of progress on stderr if it takes more than 2 s. Default: only on a terminal.
      **kwargs: its keyword arguments. If `fn` itself has an argument `granularity` or `progress`, pass a
        `functools.partial`.

    Returns:
      The `Findings`: its `faults` are the oldest first. It is false if there is no fault.

    Raises:
      TypeError: `fn` is not callable, or cannot be traced.
      ValueError: an argument was donated or deleted, is traced, or is not wholly on this process's devices; or
        `granularity` is none of the three.
    """
    if not callable(fn):
        raise TypeError(f"autopsy: fn must be callable, got {checks.shown(fn)} ({type(fn).__name__}): {_REMEDY}")
    if isinstance(fn, jax.stages.Compiled):
        raise TypeError(f"autopsy: fn is compiled and cannot be traced: {_REMEDY}")
    checks.one_of("autopsy: granularity", granularity, ("operation", "line", "scope"), "choose one of these")
    name = getattr(fn, "__name__", None) or type(fn).__name__
    flat, structure = jax.tree_util.tree_flatten_with_path((args, kwargs))
    names = _names(fn, args)
    paths = [_path(key, names) for key, _ in flat]
    leaves = [leaf for _, leaf in flat]
    for path, leaf in zip(paths, leaves, strict=True):
        _check(path, leaf)
    outputs: list[str] = []
    traced = [i for i, leaf in enumerate(leaves) if _is_traced(leaf)]

    def call(*arrays: Any) -> Any:
        filled = list(leaves)
        for i, array in zip(traced, arrays, strict=True):
            filled[i] = array
        args, kwargs = jax.tree_util.tree_unflatten(structure, filled)
        returned = _returned(fn(*args, **kwargs), name)
        new = _written(args, kwargs, filled)
        outputs[:] = [f"output{jax.tree_util.keystr(key)}" for key, _ in returned]
        outputs.extend(f"{_path(key, names)} after the call" for key, _ in new)
        return [leaf for _, leaf in (*returned, *new)]

    with _undisturbed(), _in_mesh(leaves):
        try:
            closed = _jaxpr(call, [_array(leaves[i]) for i in traced], name)
        except (TypeError, ValueError):
            arrays = [i for i in traced if _is_array(leaves[i])]
            if arrays == traced:
                raise
            traced = arrays  # an infinite number is a static argument, as in clip=float("inf")
            closed = _jaxpr(call, [_array(leaves[i]) for i in traced], name)
        for constant in closed.consts:
            _check(f"an array that {name} captured", constant, replicated=False)
        shown = Progress(name, size(closed), shown=progress)
        records = Records()
        values = [records.given("argument", _array(leaves[i]), None, Frame(), path=paths[i]) for i in traced]
        try:
            results = Interpreter(records, granularity, shown).block(closed, values, Frame())
        finally:
            shown.close()
        ends = [*zip(outputs, results, strict=True), *((_CHECKED, value) for value in records.checked)]
        found = sliced(ends, records, closed)
        reproduced = True
        elsewhere = not all(map(is_here, closed.eqns))
        if not found.faults and not elsewhere:
            finite = [value.node is None for value in results]
            del ends, results
            whole = jax.jit(jaxpr_as_fun(closed))(*[_array(leaves[i]) for i in traced])
            reproduced = all(
                measured(array).finite for array, is_finite in zip(whole, finite, strict=True) if is_finite
            )
        return Findings(
            function=name,
            faults=found.faults,
            fault_count=found.fault_count,
            largest=largest(records.largest),
            reproduced=reproduced,
            granularity=granularity,
            operations=shown.count,
            notes=(*records.notes, *found.notes, *(() if found.faults or not elsewhere else (_ELSEWHERE,))),
        )


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """JAX's own checks would stop at the first NaN, and its guard forbids the values to be looked at."""
    with jax.debug_nans(False), jax.debug_infs(False), jax.transfer_guard("allow"), jax.disable_jit(False):
        yield


@contextlib.contextmanager
def _in_mesh(leaves: Sequence[Any]) -> Iterator[None]:
    """The mesh of the arguments, if its axes are explicit. Compiled functions find it; single operations do not."""
    shardings = [leaf.sharding for leaf in leaves if isinstance(leaf, jax.Array)]
    meshes = [of.mesh for of in shardings if isinstance(of, NamedSharding) and isinstance(of.mesh, Mesh)]
    mesh = next((mesh for mesh in meshes if AxisType.Explicit in mesh.axis_types), None)
    if mesh is None or not jax.sharding.get_abstract_mesh().empty:
        yield
        return
    with jax.set_mesh(mesh):
        yield


def _jaxpr(call: Callable[..., Any], arrays: list[Any], name: str) -> Any:
    try:
        return jax.jit(call).trace(*arrays).jaxpr
    except (jax.errors.JAXTypeError, jax.errors.JAXIndexError) as error:
        raise TypeError(
            f"autopsy: {name} cannot be traced ({type(error).__name__}: {str(error).splitlines()[0]}): {_REMEDY}; bind "
            "arguments that decide about Python's control flow with functools.partial"
        ) from error


def _is_traced(leaf: Any) -> bool:
    """Whether a leaf becomes an array. Finite numbers are static: they may be static arguments of a jitted function."""
    return _is_array(leaf) or (isinstance(leaf, float | complex) and not np.isfinite(leaf))


def _returned(result: Any, name: str) -> list[tuple[Any, Any]]:
    """The arrays and numbers that a function returns, and where. Modules of Equinox hold functions, too."""
    leaves = jax.tree_util.tree_leaves_with_path(result)
    returned = [(key, leaf) for key, leaf in leaves if isinstance(leaf, int | float | complex) or _is_array(leaf)]
    if leaves and not returned:
        raise TypeError(f"autopsy: {name} returns no arrays, but {type(leaves[0][1]).__name__}: {_REMEDY}")
    return returned


def _is_array(leaf: Any) -> bool:
    if isinstance(leaf, np.ndarray | np.generic):
        return leaf.dtype.kind in "biufc" or hasattr(jax.numpy, leaf.dtype.name)
    return isinstance(leaf, jax.Array)


def _array(leaf: Any) -> Any:
    if not isinstance(leaf, jax.Array):
        return jax.numpy.asarray(leaf)
    return leaf if leaf.is_fully_addressable else leaf.addressable_data(0)


def _check(path: str, leaf: Any, *, replicated: bool = True) -> None:
    if isinstance(leaf, jax.core.Tracer):
        raise ValueError(
            f"autopsy: {path} is a traced value; allowed: arrays: call autopsy outside of jit, grad and vmap"
        )
    if isinstance(leaf, jax.ShapeDtypeStruct):
        raise ValueError(f"autopsy: {path} is a shape without values; allowed: arrays: pass those of the bad step")
    if not isinstance(leaf, jax.Array):
        return
    if leaf.is_deleted():
        raise ValueError(
            f"autopsy: {path} was donated or deleted; allowed: arrays that still exist: pass copies made before the "
            "step, as optwrap.Recorder(copy=...) keeps them"
        )
    if not leaf.is_fully_addressable and not (replicated and leaf.is_fully_replicated):
        raise ValueError(
            f"autopsy: {path} is on devices of other processes; allowed: arguments that are replicated, or on this "
            "process's devices: pass one process's part, array.addressable_data(0), or a gathered copy, "
            "jax.experimental.multihost_utils.process_allgather(array, tiled=True)"
        )


def _written(args: Any, kwargs: Any, given: Sequence[Any]) -> list[tuple[Any, Any]]:
    """The leaves that the function has put into its arguments, as a step of flax.nnx updates its model, and where."""
    known = {id(leaf) for leaf in given}
    leaves = jax.tree_util.tree_leaves_with_path((args, kwargs))
    return [(key, leaf) for key, leaf in leaves if isinstance(leaf, jax.Array) and id(leaf) not in known]


def _names(fn: Any, args: Sequence[Any]) -> list[str]:
    """What messages call the positional arguments."""
    try:
        parameters = list(inspect.signature(fn).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [parameter.name for parameter in parameters if parameter.kind in plain]
    return [names[i] if i < len(names) else f"args[{i}]" for i in range(len(args))]


def _path(key: tuple[Any, ...], names: Sequence[str]) -> str:
    """The path of a leaf of (args, kwargs)."""
    first = names[key[1].idx] if key[0].idx == 0 else key[1].key
    return f"{first}{jax.tree_util.keystr(key[2:])}"
