"""`shard_map` over any mesh as a function for one device: each axis of the mesh becomes an axis of the arrays."""

from collections.abc import Callable, Sequence
from typing import Any, Final

import jax
import numpy as np
from jax.extend import core
from jax.extend.core import Literal, Var, jaxpr_as_fun, primitives
from jax.sharding import AxisType, Mesh, NamedSharding

from optwrap._autopsy.program.jaxprs import opened

_CORE: Final[Any] = core
"""Where `ClosedJaxpr` is; newer versions of JAX have one class for both, and do not declare this name."""
_PLACED: Final = frozenset({"pvary", "pcast", "sharding_constraint"})
"""Primitives that only say where a value is, or along which axes it varies."""


def on_one_device(equation: Any, arrays: Sequence[Any]) -> Any:
    """The jaxpr of a `shard_map` with the same results, without devices.

    Its collectives become operations on arrays, and its equations keep their source lines.

    Raises:
      Exception: `jax.vmap` cannot map over one of its operations, or the version of JAX has another `shard_map`.
    """
    params = equation.params
    mesh = params["mesh"]
    manual = params["newly_manual_axes"] if "newly_manual_axes" in params else params["manual_axes"]
    axes = {name: mesh.shape[name] for name in mesh.axis_names if name in manual}
    context = jax.make_jaxpr(jax.lax.neg)(0.0).eqns[0].ctx
    jaxpr = _untyped(params["jaxpr"], context)
    body: Callable[..., Any] = jaxpr_as_fun(jaxpr if hasattr(jaxpr, "consts") else _CORE.ClosedJaxpr(jaxpr, ()))
    ins = [_dimensions(spec, array.ndim, axes) for spec, array in zip(params["in_specs"], arrays, strict=True)]
    outs = [
        _dimensions(spec, var.aval.ndim, axes) for spec, var in zip(params["out_specs"], equation.outvars, strict=True)
    ]
    for name in reversed(axes):
        body = jax.vmap(
            body, in_axes=[0 if name in sum(of, ()) else None for of in ins], axis_name=name, axis_size=axes[name]
        )

    def whole(*arrays: Any) -> list[Any]:
        blocks = [_split(array, of, axes) for array, of in zip(arrays, ins, strict=True)]
        return [_joined(result, of, axes) for result, of in zip(body(*blocks), outs, strict=True)]

    return jax.jit(whole).trace(*arrays).jaxpr


def without_mesh() -> Any:
    """A context without a mesh, in which arrays on one device are computed with."""
    return jax.set_mesh(None)


def gathered(equation: Any, arrays: Sequence[Any]) -> list[Any]:
    """The inputs of a `shard_map`: on one device, if the axes of its mesh are explicit."""
    if AxisType.Explicit not in equation.params["mesh"].axis_types:
        return list(arrays)
    return [_copied(array) for array in arrays]


def _copied(array: Any) -> Any:
    # Through the host: an array that device_put moves keeps the sharding in its type.
    if jax.numpy.issubdtype(array.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_copied(jax.random.key_data(array)), impl=jax.random.key_impl(array))
    return jax.numpy.asarray(np.asarray(array))


def placed(equation: Any, arrays: Sequence[Any]) -> list[Any]:
    """The results of a `shard_map`, sharded as the rest of the program expects them."""
    mesh = equation.params["mesh"]
    if AxisType.Explicit not in mesh.axis_types:
        return list(arrays)
    mesh = mesh if isinstance(mesh, Mesh) else jax.sharding.get_mesh()
    specs = equation.params["out_specs"]
    return [jax.device_put(array, NamedSharding(mesh, spec)) for array, spec in zip(arrays, specs, strict=True)]


Dimensions = list[tuple[str, ...]]
"""For each dimension of an array the axes of the mesh over which it is sharded."""


def _dimensions(spec: Any, ndim: int, axes: dict[str, int]) -> Dimensions:
    parts = [*spec, *[None] * (ndim - len(spec))]
    named = [() if part is None else (part,) if isinstance(part, str) else tuple(part) for part in parts]
    return [tuple(name for name in names if name in axes) for names in named]


def _split(array: Any, dimensions: Dimensions, axes: dict[str, int]) -> Any:
    """The blocks of the devices: the axes of the mesh that occur come first, in the mesh's order."""
    shape: list[int] = []
    dimension_of: dict[str, int] = {}
    for length, names in zip(array.shape, dimensions, strict=True):
        for name in names:
            dimension_of[name] = len(shape)
            shape.append(axes[name])
            length //= axes[name]  # noqa: PLW2901  # what is left of it
        shape.append(length)
    first = [dimension_of[name] for name in axes if name in dimension_of]
    return array.reshape(shape).transpose(*first, *(i for i in range(len(shape)) if i not in first))


def _joined(blocks: Any, dimensions: Dimensions, axes: dict[str, int]) -> Any:
    """The array of the devices' blocks. Along an axis that does not occur all blocks are equal."""
    occurring = [name for name in axes if name in sum(dimensions, ())]
    blocks = blocks[tuple(slice(None) if name in occurring else 0 for name in axes)]
    order: list[int] = []
    shape: list[int] = []
    for i, names in enumerate(dimensions, len(occurring)):
        order += [*(occurring.index(name) for name in names), i]
        length = blocks.shape[i]
        for name in names:
            length *= axes[name]
        shape.append(length)
    return blocks.transpose(order).reshape(shape)


def _untyped(function: Any, context: Any) -> Any:
    """A jaxpr, and those in it, in a context without a mesh, and without what only a `shard_map` needs."""
    jaxpr, constants = opened(function)
    if jaxpr is not function:
        return _CORE.ClosedJaxpr(_untyped(jaxpr, context), constants)
    plain: dict[Any, Any] = {}

    def of(atoms: Sequence[Any]) -> list[Any]:
        """The same atoms, of types that do not tell along which axes they vary."""
        for atom in atoms:
            if not isinstance(atom, Literal) and atom not in plain:
                plain[atom] = Var(_plain(atom.aval))
        return [_number(atom) if isinstance(atom, Literal) else plain[atom] for atom in atoms]

    equations = []
    for original in function.eqns:
        name = original.primitive.name
        equation = original.replace(ctx=context, invars=of(original.invars), outvars=of(original.outvars))
        if name in _PLACED:
            equations += [
                equation.replace(primitive=primitives.copy_p, params={}, invars=[before], outvars=[after])
                for before, after in zip(equation.invars, equation.outvars, strict=True)
            ]
        elif name == "psum_invariant":
            params = {"axes": equation.params["axes"], "axis_index_groups": None}
            equations.append(equation.replace(primitive=primitives.psum_p, params=params))
        else:
            params = {name: _untyped_in(value, context) for name, value in equation.params.items()}
            equations.append(equation.replace(params=params))
    ends = {"constvars": of(function.constvars), "invars": of(function.invars), "outvars": of(function.outvars)}
    return function.replace(eqns=equations, **ends)


def _number(literal: Any) -> Any:
    value = np.asarray(literal.val) if hasattr(literal.val, "dtype") else literal.val
    return Literal(value, _plain(literal.aval))  # type: ignore[no-untyped-call]  # JAX gives it no types


def _plain(aval: Any) -> Any:
    is_array = isinstance(aval, jax.core.ShapedArray)
    return jax.core.ShapedArray(aval.shape, aval.dtype, weak_type=aval.weak_type) if is_array else aval


def _untyped_in(value: Any, context: Any) -> Any:
    if type(value) is tuple:
        return tuple(_untyped_in(item, context) for item in value)
    if isinstance(value, NamedSharding):
        return None
    return _untyped(value, context) if hasattr(value, "eqns") else value
