"""From the records of an evaluation to the faults that reached the outputs."""

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

from optwrap._autopsy.parts import PASSED_THROUGH, Fault, FaultStep, LargestValue
from optwrap._autopsy.program.jaxprs import functions_in, opened
from optwrap._autopsy.program.source import is_own, name_stack, place
from optwrap._autopsy.records import Records
from optwrap._autopsy.remedies import DECOMPOSITIONS, remedy
from optwrap._autopsy.values import MAX_INDICES, Node, Value

MAX_FAULTS: Final = 8
_MAX_STEPS: Final = 16
"""Steps of a fault; of longer chains the middle is left out."""


class Sliced(NamedTuple):
    """What reached the outputs."""

    faults: tuple[Fault, ...]
    fault_count: int
    """Number of faults, the ones that are left out included."""
    notes: tuple[str, ...]


def sliced(outputs: Sequence[tuple[str, Value]], records: Records, function: Any) -> Sliced:
    """The faults that reached the outputs, the oldest first.

    Origins of one primitive in one line and one name stack are one fault, and so are those of a line and of its
    derivative. An infinite argument or constant that comes out as it is, is none, but a note.

    Args:
      outputs: paths and values.
      records: of the evaluation.
      function: the jaxpr that was evaluated.
    """
    reached: dict[Any, list[tuple[int, str]]] = collections.defaultdict(list)
    chains: dict[int, list[Node]] = {}
    notes = []
    for path, value in outputs:
        if value.node is None:
            continue
        numbers = value.origins
        # One chain is shown of each origin. Others are only needed if they may be those of infinities that pass.
        known = {number for number in numbers if number in chains and not _may_pass(number, records)}
        found = _chains(value.node, numbers - known, records)
        for number, chain in sorted([*found.items(), *((number, chains[number]) for number in known)]):
            if number in found and _passes(chain):
                notes.append(f"{path} is infinite as {chain[0].path or 'a constant'} is, which {PASSED_THROUGH}")
            else:
                chains.setdefault(number, chain)
                reached[_identity(records.origins[number])].append((number, path))
    siblings = _siblings(function)
    faults: list[Fault] = []
    fault_of: dict[Any, int] = {}
    count = 0
    for arrivals in sorted(reached.values(), key=min):
        chain = chains[min(arrivals)[0]]
        paths = tuple(dict.fromkeys(path for _, path in arrivals))
        cause = _cause(chain)
        line = place(cause.equation, cause.frame.calls).line
        alike: list[Any] = [(line[:2], cause.primitive, _stack_of(cause))] if line else []
        if line and _phase(cause, siblings) != "forward":
            alike.append(line[:2])
        first = next((fault_of[key] for key in alike if key in fault_of), None)
        if first is not None:
            faults[first] = _merged(faults[first], paths)
            continue
        count += 1
        if len(faults) < MAX_FAULTS:
            fault_of.update(dict.fromkeys([*alike, *([line[:2]] if line else [])], len(faults)))
            faults.append(_fault(chain, paths, siblings))
    return Sliced(tuple(faults), count, tuple(dict.fromkeys(notes)))


def _merged(fault: Fault, paths: tuple[str, ...]) -> Fault:
    """The fault, with more outputs that it reached."""
    new = [path for path in paths if path not in fault.outputs]
    outputs = (*fault.outputs, *new)[:MAX_INDICES]
    return dataclasses.replace(fault, outputs=outputs, output_count=fault.output_count + len(new))


def largest(found: tuple[float, Node] | None) -> LargestValue | None:
    """Where the largest finite value was."""
    return None if found is None else LargestValue(found[0], _step(found[1], None))


def _identity(origin: Node) -> Any:
    if origin.kind == "argument" or origin.equation is None:
        return origin.kind, origin.path, origin.indices, origin.shape
    return id(origin.equation), tuple(map(id, origin.frame.calls)), origin.frame.name_stack


def _may_pass(number: int, records: Records) -> bool:
    """Whether an origin may pass through to an output, or has met others on the way."""
    return records.origins[number].kind in ("argument", "constant") or number in records.joins


def _passes(chain: Sequence[Node]) -> bool:
    """Whether an infinity comes out unchanged; or shifted, if it is in the source, as by a log_softmax after a mask."""
    if chain[0].kind not in ("argument", "constant") or "nan" in chain[-1].names:
        return False
    if chain[0].kind == "constant" and is_own(chain[0].equation):  # a limit that a wrapper has not set yet
        return True
    shifts = ("add", "sub", "neg") if chain[0].kind == "constant" else ()
    return all(node.moves or node.kind in ("argument", "constant") or node.primitive in shifts for node in chain)


def _chains(node: Node, numbers: Iterable[int], records: Records) -> dict[int, list[Node]]:
    """Maps each origin of a non-finite output to the records from it to `node`, the output's record."""
    found: dict[int, list[Node]] = {}
    todo = [(number, _chain(node, number, records)) for number in sorted(numbers)]
    while todo:
        number, chain = todo.pop(0)
        if number in found:
            continue
        found[number] = chain
        for other, meeting in records.joins.get(number, {}).items():
            parent = next((parent for parent in meeting.parents if other in parent.origins), None)
            if meeting in chain and parent is not None:
                todo.append((other, [*_chain(parent, other, records), *chain[chain.index(meeting) :]]))
    return found


def _chain(node: Node, number: int, records: Records) -> list[Node]:
    """The records from the origin to `node`."""
    chain = [node]
    while records.origins[number] is not chain[-1]:
        parents = [parent for parent in chain[-1].parents if number in parent.origins]
        # A NaN comes from a NaN if there is one, and not from an infinity beside it.
        chain.append(next((parent for parent in parents if set(parent.names) >= set(chain[-1].names)), parents[0]))
    if chain[-1].parents and chain[-1].parents[0].kind == "integer_overflow":
        chain.append(chain[-1].parents[0])
    return [record for record in reversed(chain) if record.kind != "stack"] or [node]


def _fault(chain: Sequence[Node], paths: tuple[str, ...], siblings: Mapping[Any, list[str]]) -> Fault:
    shown = list(_shown(chain))
    omitted = len(chain) - len(shown)
    if len(shown) > _MAX_STEPS:
        cut = len(shown) - _MAX_STEPS
        middle = _MAX_STEPS * 2 // 3
        shown = shown[:middle] + shown[middle + cut :]
        omitted += cut
    cause = _cause(chain)
    if cause not in shown:
        shown.insert(1, cause)
        omitted -= 1
    steps = [_step(node, siblings) for node in shown]
    index = shown.index(cause)
    derivative_of = _derivative_of(cause, siblings)
    return Fault(
        steps=tuple(steps),
        omitted=omitted,
        outputs=paths[:MAX_INDICES],
        output_count=len(paths),
        cause=steps[index],
        remedy=remedy(steps[index], derivative_of, cause.feeding, discarded=_discarded(chain)),
    )


def _cause(chain: Sequence[Node]) -> Node:
    """The origin. An infinity in the source or a mask is legitimate: then it is what made it NaN."""
    first = chain[0]
    masks = first.kind == "constant" or (first.kind == "argument" and first.names == ("-inf",))
    if masks and "nan" not in first.names:
        return next((node for node in chain if "nan" in node.names), first)
    return first


def _discarded(chain: Sequence[Node]) -> bool:
    """Whether the forward pass discarded an infinity, and the backward pass multiplied it by zero."""
    nan = next((node for node in chain if "nan" in node.names), chain[0])
    return nan is not chain[0] and nan.primitive == "mul" and "transpose(" in _stack_of(nan)


def _shown(chain: Sequence[Node]) -> Iterator[Node]:
    """The records to list: each change of line, kind of value or direction."""
    before: Any = None
    for node in chain:
        line = place(node.equation, node.frame.calls).line
        key = (line and line[:2], node.names, "transpose(" in _stack_of(node))
        if key != before:
            yield node
        before = key


def _stack_of(node: Node) -> str:
    return name_stack(node.equation, node.frame.name_stack)


def _siblings(function: Any) -> dict[Any, list[str]]:
    """For each traceback the primitives of its equations: those of a function first, then those of its derivative."""
    found: dict[Any, list[str]] = collections.defaultdict(list)
    todo = [function]
    while todo:
        for equation in opened(todo.pop(0))[0].eqns:
            found[_traceback(equation)].append(equation.primitive.name)
            todo += functions_in(equation)
    return found


def _traceback(equation: Any) -> Any:
    return getattr(getattr(equation, "source_info", None), "traceback", None)


def _derivative_of(node: Node, siblings: Mapping[Any, list[str]] | None) -> str | None:
    """The primitive of the forward pass that the operation is, or may be, the derivative of."""
    if node.kind != "operation" or siblings is None or "jvp(" not in _stack_of(node):
        return None
    names = siblings.get(_traceback(node.equation), ())
    # A decomposition prepares its matrix first.
    first = next((name for name in names if name in DECOMPOSITIONS), next(iter(names), None))
    return None if first == node.primitive and "transpose(" not in _stack_of(node) else first


def _phase(node: Node, siblings: Mapping[Any, list[str]] | None) -> Literal["forward", "derivative", "backward"]:
    if "transpose(" in _stack_of(node):
        return "backward"
    return "derivative" if _derivative_of(node, siblings) else "forward"


def _step(node: Node, siblings: Mapping[Any, list[str]] | None) -> FaultStep:
    where = place(node.equation, node.frame.calls)
    kind: Any = node.kind
    return FaultStep(
        kind=kind,
        primitive=node.primitive,
        value=", ".join(node.names),
        phase=_phase(node, siblings),
        file=where.line.file if where.line else None,
        line=where.line.line if where.line else None,
        function=where.line.function if where.line else None,
        code=where.line.code if where.line else None,
        library=where.library,
        name_stack=_stack_of(node),
        dtype=node.dtype,
        shape=node.shape,
        nonfinite=node.nonfinite,
        indices=node.indices,
        operands=node.operands,
        iterations=node.frame.iterations,
        path=node.path,
        detail=node.detail,
    )
