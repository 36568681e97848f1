"""The parts of `Findings`: frozen dataclasses with plain Python values."""

import dataclasses
from typing import Final, Literal

PASSED_THROUGH: Final = "was passed through"
"""How a note about an infinity ends that is no fault."""


@dataclasses.dataclass(frozen=True)
class Operand:
    """An input of an operation."""

    dtype: str
    shape: tuple[int, ...]
    least: float | None
    """The least finite value; None if it has none or is no number. For complex values the least magnitude."""
    greatest: float | None
    """The greatest finite value; None likewise."""
    nonfinite: int
    """Number of non-finite values."""
    path: str | None
    """The argument that it is, or a part or copy of: `params['dense']['kernel']`. None for a computed value."""


@dataclasses.dataclass(frozen=True)
class LoopIteration:
    """One iteration of a loop."""

    loop: Literal["scan", "while"]
    index: int
    """From 0. For a reversed scan the index into its inputs."""
    length: int | None
    """Iterations of the scan; None for a while loop."""


@dataclasses.dataclass(frozen=True)
class FaultStep:
    """One operation on the way of a non-finite value, or the argument or constant that brought it."""

    kind: Literal["operation", "argument", "constant", "integer_overflow"]
    primitive: str
    """JAX's name of the operation, such as `log`; `argument` or `constant`; `fused` for a compiled region."""
    value: str
    """What came out: `nan`, `inf`, `-inf`, several of them as in `nan, inf`, or `wrapped` for an integer overflow."""
    phase: Literal["forward", "derivative", "backward"]
    """`derivative` if differentiation added the operation to the forward pass, or may have; `backward` if it is in the
    backward pass."""
    file: str | None
    """The user's source file; a library's, if no frame is the user's. None if JAX knows no line."""
    line: int | None
    """The line's number in it."""
    function: str | None
    """The function that the line is in."""
    code: str | None
    """The text of the line."""
    library: str | None
    """Where in a library the operation is, as `flax/nnx/nn/normalization.py:120`; None if it is in the user's file."""
    name_stack: str
    """Names of `jax.named_scope` and transformations, as in `transpose(jvp(decoder/layer_3))`."""
    dtype: str
    shape: tuple[int, ...]
    nonfinite: int
    """Number of non-finite values (of wrapped ones, for an integer overflow)."""
    indices: tuple[tuple[int, ...], ...]
    """Indices of the first of them, at most 8."""
    operands: tuple[Operand, ...]
    """The inputs. Empty for steps that only carry a value on."""
    iterations: tuple[LoopIteration, ...]
    """The loops that it is in, the outermost first."""
    path: str | None
    """For an argument its path: `batch['image']`."""
    detail: str | None
    """More about what happened, such as the index that is out of range."""

    @property
    def size(self) -> int:
        """Number of values."""
        product = 1
        for length in self.shape:
            product *= length
        return product


@dataclasses.dataclass(frozen=True)
class Fault:
    """One origin of non-finite values that reached an output."""

    steps: tuple[FaultStep, ...]
    """From the origin to the output, the oldest first. Of several operations of one source line only the first is
    listed, unless the kind of value changes."""
    omitted: int
    """Operations on the way that are not listed."""
    outputs: tuple[str, ...]
    """Paths of the outputs that it reached, at most 8: `output[1]['w']`."""
    output_count: int
    """Number of outputs that it reached."""
    cause: FaultStep
    """The step to look at: the first one; or, if that is an infinite constant or argument, the one that made NaN of
    it."""
    remedy: str | None
    """What usually helps; None if nothing is known."""


@dataclasses.dataclass(frozen=True)
class LargestValue:
    """Where the finite value of the largest magnitude was."""

    magnitude: float
    """Its absolute value."""
    step: FaultStep
    """The operation that returned it."""
