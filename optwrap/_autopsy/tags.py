"""Origin of each non-finite element of an operation's output, from the origins in its inputs.

An input element can only be the origin of an output element that depends on it. The rules below say which do, by kind
of primitive. For a primitive without a rule every output element depends on every input element.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Final

import jax.numpy as jnp
import numpy as np

from optwrap._autopsy.values import Array, Classes, Value, classes, on_host

NONE: Final = np.int32(2**31 - 1)
"""The tag of an element without an origin. It is the largest, so that the minimum of two tags is the earlier origin."""

ELEMENTWISE: Final = frozenset({
    "abs", "acos", "acosh", "add", "add_any", "asin", "asinh", "atan", "atan2", "atanh", "bessel_i0e", "bessel_i1e",
    "cbrt", "ceil", "clamp", "complex", "conj", "copy", "cos", "cosh", "convert_element_type", "digamma", "div",
    "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "floor", "imag", "integer_pow", "is_finite", "lgamma", "log",
    "log1p", "logistic", "max", "min", "mul", "neg", "nextafter", "polygamma", "pow", "real", "reduce_precision",
    "regularized_incomplete_beta", "igamma", "igammac", "rem", "round", "rsqrt", "sign", "sin", "sinh", "sqrt",
    "square", "stop_gradient", "sub", "tan", "tanh",
})  # fmt: skip
MOVES: Final = frozenset({
    "broadcast_in_dim", "concatenate", "copy", "dynamic_slice", "dynamic_update_slice", "expand_dims", "gather",
    "pad", "reshape", "rev", "scatter", "select_n", "slice", "split", "squeeze", "stop_gradient", "transpose",
})  # fmt: skip
"""Primitives that move elements and compute nothing. Their origins are found by moving the tags in the same way."""
REDUCTIONS: Final = frozenset(["reduce_sum", "reduce_max", "reduce_min", "reduce_prod"])
CUMULATIVE: Final = frozenset(["cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"])

FILLS: Final = frozenset({"gather", "pad"})
"""Of `MOVES`, those whose output may have non-finite elements that are in no input."""

Tags = Sequence[Array | None]
"""int32 of the shape of each input; None for an input without non-finite elements."""


def origins(equation: Any, inputs: Sequence[Value], outputs: Sequence[Array], bind: Callable[..., Any]) -> list[Array]:
    """For each output int32 of its shape: the origin of each non-finite element.

    It is 0 where the element is finite, and NONE where it is non-finite and no input element that it depends on is.

    Args:
      equation: of the operation; None for several operations that are compiled together.
      inputs: its inputs, of which one at least is non-finite.
      outputs: on the host.
      bind: evaluates the equation on other inputs and with other parameters, for primitives that only move elements.
    """
    single = _single(inputs)
    name = _name(equation)
    kinds = [classes(out) if out.dtype.kind in "fc" else None for out in outputs]
    if single is not None and name in MOVES - FILLS:
        return [
            np.zeros(out.shape, np.int32) if kind is None else np.where(kind.any, np.int32(single), np.int32(0))
            for out, kind in zip(outputs, kinds, strict=True)
        ]
    masks = [None if value.node is None else classes(on_host(value.array)) for value in inputs]
    by_class: list[list[Array]] = []
    for which in range(3):
        tags: list[Array | None] = []
        for value, mask in zip(inputs, masks, strict=True):
            held = mask is not None and mask[which].any()
            tags.append(
                np.where(mask[which], np.asarray(value.tag), NONE).astype(np.int32)
                if held and mask is not None
                else None
            )
        if all(tag is None for tag in tags):
            by_class.append([np.full(out.shape, NONE) for out in outputs])
        else:
            by_class.append(_spread(equation, inputs, tags, outputs, bind))
    return [_chosen(kind, *tags) for kind, *tags in zip(kinds, *by_class, strict=True)]


def _name(equation: Any) -> str:
    return "" if equation is None else equation.primitive.name


def _single(inputs: Sequence[Value]) -> int | None:
    """The origin of all non-finite elements of all inputs, if there is only one."""
    tags = [value.tag for value in inputs if value.node is not None]
    first = tags[0]
    return first if isinstance(first, int) and all(isinstance(tag, int) and tag == first for tag in tags) else None


def _chosen(kind: Classes | None, nan: Array, positive: Array, negative: Array) -> Array:
    """The tag of each output element: of an input element of the same kind, if there is one; else NaN comes first."""
    if kind is None:
        return np.zeros(nan.shape, np.int32)
    infinite = np.minimum(positive, negative)

    def first(*choices: Array) -> Array:
        return functools.reduce(lambda chosen, other: np.where(chosen == NONE, other, chosen), choices)

    result: Array = np.where(kind.nan, first(nan, infinite), np.int32(0))
    result = np.where(kind.positive, first(positive, negative, nan), result)
    return np.where(kind.negative, first(negative, positive, nan), result)


def _spread(
    equation: Any, inputs: Sequence[Value], tags: Tags, outputs: Sequence[Array], bind: Callable[..., Any]
) -> list[Array]:
    """The earliest origin on which each output element depends."""
    name = _name(equation)
    if name in MOVES:
        return _moved(equation, inputs, tags, bind)
    if name in ELEMENTWISE:
        return [_earliest([np.broadcast_to(tag, outputs[0].shape) for tag in tags if tag is not None])]
    if name in REDUCTIONS and tags[0] is not None:
        return [tags[0].min(axis=tuple(equation.params["axes"]), initial=NONE)]
    if name in CUMULATIVE and tags[0] is not None:
        axis, reverse = equation.params["axis"], equation.params["reverse"]
        turned = np.flip(tags[0], axis) if reverse else tags[0]
        seen = np.minimum.accumulate(turned, axis=axis)
        return [np.flip(seen, axis) if reverse else seen]
    if name == "dot_general":
        return [_product(equation.params["dimension_numbers"], tags, outputs[0].shape)]
    earliest = min(int(tag.min()) for tag in tags if tag is not None)
    return [np.full(out.shape, earliest, np.int32) for out in outputs]


def _earliest(tags: Sequence[Array]) -> Array:
    return functools.reduce(np.minimum, tags)


def _moved(equation: Any, inputs: Sequence[Value], tags: Tags, bind: Callable[..., Any]) -> list[Array]:
    """The tags, moved by the primitive itself. Operands that are no data, such as indices, are used as they are."""
    moved: list[Any] = []
    for value, tag in zip(inputs, tags, strict=True):
        if tag is not None:
            moved.append(jnp.asarray(tag))
        elif jnp.issubdtype(value.array.dtype, jnp.inexact):
            moved.append(jnp.full(np.shape(value.array), NONE))
        else:
            moved.append(on_host(value.array))  # wherever the array is, the tags are on the default device
    changed: dict[str, Any] = {"fill_value": int(NONE)} if "fill_value" in equation.params else {}
    return [np.asarray(out) for out in bind(equation, moved, changed)]


def _product(dimension_numbers: Any, tags: Tags, shape: tuple[int, ...]) -> Array:
    """A row and a column give each element of a product of matrices."""
    contracting, batch = dimension_numbers
    sides = []
    for side in range(2):
        tag = tags[side]
        if tag is None:
            continue
        reduced = tag.min(axis=tuple(contracting[side]), keepdims=True, initial=NONE)
        free = [axis for axis in range(tag.ndim) if axis not in (*contracting[side], *batch[side])]
        ordered = reduced.transpose((*batch[side], *free, *contracting[side]))
        ordered = ordered.reshape(ordered.shape[: len(batch[side]) + len(free)])
        batches, frees = ordered.shape[: len(batch[side])], ordered.shape[len(batch[side]) :]
        others = len(shape) - len(batches) - len(frees)
        expanded = (*batches, *frees, *(1,) * others) if side == 0 else (*batches, *(1,) * others, *frees)
        sides.append(np.broadcast_to(ordered.reshape(expanded), shape))
    return _earliest(sides)
