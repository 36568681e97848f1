"""Values of the evaluation, and the record of the non-finite ones."""

import dataclasses
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optwrap._autopsy.parts import LoopIteration, Operand

MAX_INDICES: Final = 8
"""Indices of non-finite values that a record keeps."""

Array = np.ndarray[Any, Any]


class Frame(NamedTuple):
    """Where in the program an equation is evaluated."""

    name_stack: str = ""
    """The name stack of the calls around it."""
    calls: tuple[Any, ...] = ()
    """Equations of the calls of jitted functions around it, the outermost first."""
    iterations: tuple[LoopIteration, ...] = ()


class Classes(NamedTuple):
    """Which elements of an array are non-finite, and how: bool arrays of its shape."""

    nan: Array
    positive: Array
    negative: Array

    @property
    def any(self) -> Array:
        """Which are non-finite."""
        result: Array = self.nan | self.positive | self.negative
        return result

    def named(self, name: str) -> Array:
        """Which elements are `nan`, `inf` or `-inf`."""
        return {"nan": self.nan, "inf": self.positive, "-inf": self.negative}[name]

    @property
    def names(self) -> tuple[str, ...]:
        """The kinds that occur, of `nan`, `inf` and `-inf`."""
        return tuple(name for name, mask in zip(("nan", "inf", "-inf"), self, strict=True) if mask.any())


@dataclasses.dataclass(slots=True, eq=False)
class Node:
    """The record of a non-finite value, or of an integer overflow. It holds no array."""

    kind: str
    """`operation`, `argument`, `constant`, `integer_overflow`; `stack` for the outputs of a scan."""
    primitive: str
    equation: Any
    """Its equation; None for an argument."""
    frame: Frame
    parents: "tuple[Node, ...]"
    """The records of the inputs that were non-finite; for a value that is born from an integer overflow, of that."""
    origins: frozenset[int]
    """Numbers of the origins of its elements."""
    names: tuple[str, ...]
    """Kinds of non-finite values in it: `nan`, `inf`, `-inf`."""
    dtype: str
    shape: tuple[int, ...]
    nonfinite: int
    indices: tuple[tuple[int, ...], ...]
    operands: tuple[Operand, ...] = ()
    feeding: tuple[str, ...] = ()
    """Names of the primitives that computed its inputs, the nearest first."""
    path: str | None = None
    detail: str | None = None
    moves: bool = False
    """Whether the operation only moves elements."""


@dataclasses.dataclass(slots=True, eq=False)
class Value:
    """One value of the evaluation, with what is known of it."""

    array: Any
    least: float | None = None
    greatest: float | None = None
    """Range of its finite elements; None if there are none or they are no numbers."""
    node: Node | None = None
    """Its record; None if it is finite."""
    tag: int | Array | None = None
    """The origin of its non-finite elements: one number for all, or int32 of its shape. None if it is finite."""
    path: str | None = None
    """The argument that it is, or a part of."""
    overflow: Node | None = None
    """An integer overflow that it depends on."""

    @property
    def origins(self) -> frozenset[int]:
        """The origins of its non-finite elements. Its record may have more: a row has the record of the whole array."""
        tags = np.unique(np.asarray(0 if self.tag is None else self.tag))
        return frozenset(int(number) for number in tags if number)

    @property
    def operand(self) -> Operand:
        """What a `FaultStep` shows of it."""
        return Operand(
            dtype=str(self.array.dtype),
            shape=tuple(np.shape(self.array)),
            least=self.least,
            greatest=self.greatest,
            nonfinite=self.node.nonfinite if self.node else 0,
            path=self.path,
        )


@jax.jit
def _range(array: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.min(array), jnp.max(array)


def is_inexact(array: Any) -> bool:
    """Whether its elements can be non-finite."""
    return bool(jnp.issubdtype(array.dtype, jnp.inexact))


def on_host(array: Any) -> Array:
    """A numpy array; a short float becomes float32, with which numpy is faster."""
    host = np.asarray(jax.device_get(array))
    if jnp.issubdtype(host.dtype, jnp.floating) and host.dtype.itemsize < 4:
        host = host.astype(np.float32)
    return host


def classes(host: Array) -> Classes:
    """Which elements are non-finite. A complex infinity counts as positive."""
    nan = np.isnan(host)
    if np.iscomplexobj(host):
        return Classes(nan, np.isinf(host) & ~nan, np.zeros_like(nan))
    return Classes(nan, host == np.inf, host == -np.inf)


class Measured(NamedTuple):
    """The range of an array's finite elements; for complex arrays of their magnitudes."""

    least: float | None
    """None for keys, bools and arrays without finite elements."""
    greatest: float | None
    finite: bool
    """Whether all elements are finite."""


def measured(array: Any) -> Measured:
    """The range of the finite elements."""
    dtype = array.dtype
    number = jnp.issubdtype(dtype, jnp.inexact) or jnp.issubdtype(dtype, jnp.signedinteger)
    if not number or not np.size(array):
        return Measured(None, None, True)
    complex_ = jnp.issubdtype(dtype, jnp.complexfloating)
    if isinstance(array, jax.Array) and not complex_ and next(iter(array.devices())).platform != "cpu":
        # Only two numbers travel, unless something is non-finite.
        low, high = map(float, jax.device_get(_range(array)))
        if np.isfinite(low) and np.isfinite(high):
            return Measured(low, high, True)
    host = on_host(array)
    if complex_:
        host = np.abs(host)
    with np.errstate(all="ignore"):
        low, high = float(host.min()), float(host.max())
        if np.isfinite(low) and np.isfinite(high):
            return Measured(low, high, True)
        finite = host[np.isfinite(host)]
    if not finite.size:
        return Measured(None, None, False)
    return Measured(float(finite.min()), float(finite.max()), False)


def first_indices(mask: Array) -> tuple[tuple[int, ...], ...]:
    """Indices of the first elements for which it holds."""
    flat = np.flatnonzero(mask)[:MAX_INDICES]
    return tuple(tuple(int(i) for i in np.unravel_index(index, mask.shape)) for index in flat)


def node_of(
    array: Any, kind: str, primitive: str, equation: Any, frame: Frame, *, mask: Array | None = None,
    parents: tuple[Node, ...] = (), origins: frozenset[int] = frozenset(), **more: Any,
) -> Node:  # fmt: skip
    """The record of a non-finite array, or of one whose elements at `mask` wrapped around."""
    names: tuple[str, ...] = ("wrapped",)
    if mask is None:
        kinds = classes(on_host(array))
        mask, names = kinds.any, kinds.names
    return Node(
        kind=kind, primitive=primitive, equation=equation, frame=frame, parents=parents, origins=origins, names=names,
        dtype=str(array.dtype), shape=tuple(np.shape(array)), nonfinite=int(mask.sum()), indices=first_indices(mask),
        **more,
    )  # fmt: skip
