"""The collectives of a compiled program, and whether they run in every step or only in a branch."""

import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (.*)$")
_OPCODE = re.compile(r"\b([a-z][a-z0-9\-]*)\(")
_ARRAY = re.compile(r"\b[a-z]\w*\[([\d,]*)\]")
_CALLED = re.compile(r"(\w+)=(?:\{([^}]*)\}|%?([\w.\-]+))")
_COLLECTIVE = re.compile(
    r"(all-reduce|all-gather|all-to-all|ragged-all-to-all|reduce-scatter|collective-permute|collective-broadcast)"
    r"(-start)?"
)


class Collective(NamedTuple):
    """One collective of a compiled program."""

    kind: str
    """`all-reduce`, `all-gather`, ..."""
    values: int
    """How many values each device sends."""
    in_branch: bool
    """Whether it is in a branch of a conditional, so that most steps do without."""


class _Instruction(NamedTuple):
    opcode: str
    result: str
    attributes: str


def collectives(compiled: Any) -> list[Collective]:
    """The collectives of `jax.jit(f).lower(...).compile()`; those of a loop's body once."""
    computations, entry = _parsed(compiled.as_text())
    found = []
    for name, in_branch in _reached(computations, entry):
        for instruction in computations[name]:
            if match := _COLLECTIVE.fullmatch(instruction.opcode):
                found.append(Collective(match[1], _values(instruction.result), in_branch))
    return found


def _parsed(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    """The instructions of each computation, and the name of the one that the program begins with."""
    computations: dict[str, list[_Instruction]] = {}
    current, entry = "", ""
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            current = match[1]
            computations[current] = []
            entry = current if line.startswith("ENTRY") else entry
        elif current and (match := _INSTRUCTION.match(line)):
            opcode = _OPCODE.search(match[1])
            assert opcode, line
            computations[current].append(_Instruction(opcode[1], match[1][: opcode.start()], match[1][opcode.end() :]))
    assert entry, text[:200]
    return computations, entry


def _reached(computations: dict[str, list[_Instruction]], entry: str) -> Iterator[tuple[str, bool]]:
    """The computations that run, and whether only in a branch of a conditional."""
    seen: dict[str, bool] = {}
    waiting = [(entry, False)]
    while waiting:
        name, in_branch = waiting.pop()
        if seen.get(name, True) <= in_branch and name in seen:
            continue
        seen[name] = in_branch
        for instruction in computations[name]:
            inside = in_branch or instruction.opcode == "conditional"
            waiting.extend((called, inside) for called in _called(instruction, computations))
    yield from seen.items()


def _called(instruction: _Instruction, computations: dict[str, Any]) -> Iterator[str]:
    for _, several, one in _CALLED.findall(instruction.attributes):
        for name in re.split(r",\s*", several) if several else [one]:
            if name.lstrip("%") in computations:
                yield name.lstrip("%")


def _values(result: str) -> int:
    """How many values an instruction's result has, over all arrays of a tuple."""
    return sum(math.prod(int(size) for size in sizes.split(",") if size) for sizes in _ARRAY.findall(result))
