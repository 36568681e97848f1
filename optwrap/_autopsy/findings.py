"""What `autopsy` returns, as data and as text."""

import dataclasses
import html
import textwrap
from collections.abc import Iterator
from typing import Any, Final, NamedTuple, Protocol

from optwrap._autopsy.parts import PASSED_THROUGH, Fault, FaultStep, LargestValue, Operand

_SHOWN_STEPS: Final = 5
"""Steps of one fault in the text."""
_SHOWN_FAULTS: Final = 3
_WIDTH: Final = 118
_STACK: Final = 60
"""Characters of a name stack."""


_CSS: Final = {"bold red": "font-weight:bold;color:#b00020", "bold": "font-weight:bold", "dim": "opacity:0.7"}
"""Styles of rich, as a notebook wants them."""


class Diagnosed(Protocol):
    """What takes findings: a `Monitor`."""

    def diagnose(self, cause: str, *, step: int | None = None, remedy: str | None = None) -> None:
        """Report why a step went bad."""


@dataclasses.dataclass(frozen=True)
class Findings:
    """How non-finite values reached the outputs of a function. `bool(findings)` is true if there is a fault.

    `str(findings)` reads like a traceback, the oldest cause first. `rich.print(findings)` and a notebook show the same
    in colour.
    """

    function: str
    """Name of the function."""
    faults: tuple[Fault, ...]
    """The oldest first, at most 8."""
    fault_count: int
    """Number of faults, the ones that are left out included."""
    largest: LargestValue | None
    """The largest finite value that an operation returned; None if no operation returned a number."""
    reproduced: bool
    """False if the compiled function has non-finite outputs, and the evaluation in parts has none."""
    granularity: str
    """How the function was evaluated: by `operation`, `line` or `scope`."""
    operations: int
    """Number of evaluated operations."""
    notes: tuple[str, ...]
    """Callbacks that were skipped or run once more, operations that were not evaluated one by one, and infinities that
    were passed through unchanged."""

    def __bool__(self) -> bool:
        return bool(self.faults)

    def report(self, monitor: Diagnosed, step: int | None = None) -> None:
        """Report the causes as events `diagnosed` of a run; nothing if there is no fault. It never blocks.

        For example, `findings.report(monitor, held.step)`. The page shows the events among those of the run, and with
        the incident that the step belongs to.

        Args:
          monitor: the `Monitor` of the run.
          step: the number of the step, from 1; None if it is not known.

        Raises:
          TypeError: `step` is no integer.
          ValueError: `step` is less than 1.
        """
        for fault in self.faults[:_SHOWN_FAULTS]:
            monitor.diagnose(summary(fault), step=step, remedy=fault.remedy)

    def to_dict(self) -> dict[str, Any]:
        """All fields as dicts, lists and plain values, for JSON."""
        return {name: _plain(value) for name, value in dataclasses.asdict(self).items()}

    def __str__(self) -> str:
        return "\n".join(line.text for line in _lines(self))

    def __rich__(self) -> Any:
        from rich.text import Text  # noqa: PLC0415  # rich asks for it, so it is there

        return Text("\n").join(Text(line.text, style=line.style) for line in _lines(self))

    def _repr_html_(self) -> str:
        parts = []
        for line in _lines(self):
            content = html.escape(line.text)
            parts.append(f'<span style="{_CSS[line.style]}">{content}</span>' if line.style else content)
        return '<pre style="line-height:1.3">' + "\n".join(parts) + "</pre>"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


class _Line(NamedTuple):
    text: str
    style: str = ""
    """A style of rich; empty for plain text."""


def _lines(findings: Findings) -> list[_Line]:
    return [line._replace(text=part) for line in _unbounded(findings) for part in _fitted(line.text)]


def _unbounded(findings: Findings) -> Iterator[_Line]:
    if not findings.faults:
        yield from _nothing(findings)
    else:
        yield _Line(f"Autopsy of {findings.function}, {findings.operations} operations (oldest cause first):", "bold")
    for number, fault in enumerate(findings.faults[:_SHOWN_FAULTS], 1):
        if findings.fault_count > 1:
            yield _Line(f"Fault {number} of {findings.fault_count}", "bold")
        yield from _fault(fault, _SHOWN_STEPS if number == 1 else 2)
    if findings.fault_count > _SHOWN_FAULTS:
        yield _Line(f"{findings.fault_count - _SHOWN_FAULTS} more faults are not shown", "dim")
    for note in findings.notes[:3]:
        yield _Line(f"Note: {note}", "dim")


def _nothing(findings: Findings) -> Iterator[_Line]:
    if not findings.reproduced:
        other = "scope" if findings.granularity == "line" else "line"
        yield _Line(
            f"Autopsy of {findings.function}: the compiled function has non-finite outputs, but evaluated by", "bold"
        )
        yield _Line(
            f'{findings.granularity} it has none. Look again with granularity="{other}", which compiles more together.'
        )
    else:
        passed = any(note.endswith(PASSED_THROUGH) for note in findings.notes)
        but = ", but infinities that were passed through" if passed else ""
        yield _Line(f"Autopsy of {findings.function}: nothing non-finite reached its outputs{but}.", "bold")
    if findings.largest is not None:
        yield _Line(f"The largest finite value was {findings.largest.magnitude:.4g}:")
        yield from _where(findings.largest.step)


def _fault(fault: Fault, shown: int) -> Iterator[_Line]:
    """The first steps, the cause, and the last one."""
    steps = fault.steps
    first = list(steps[: shown - 1]) if len(steps) > shown else list(steps)
    if fault.cause not in first:
        first.append(fault.cause)
    last = [] if len(steps) <= shown or steps[-1] in first else [steps[-1]]
    for step in first:
        yield from _step(step, is_cause=step is fault.cause)
    left_out = len(steps) - len(first) - len(last) + fault.omitted
    if left_out > 0:
        yield _Line(f"  ... {left_out} more operations carry it on", "dim")
    for step in last:
        yield from _step(step, is_cause=False)
    more = "" if fault.output_count <= 3 else f" and {fault.output_count - 3} more"
    yield _Line(f"It reached {', '.join(fault.outputs[:3])}{more}.")
    yield _Line(f"Cause: {summary(fault)}", "bold red")
    if fault.remedy:
        yield _Line(f"Remedy: {fault.remedy}")


def _step(step: FaultStep, *, is_cause: bool) -> Iterator[_Line]:
    yield from _where(step)
    yield _Line(f"    {_became(step)}", "bold red" if is_cause else "")
    if step.operands:
        yield _Line(f"    from {'; '.join(map(_operand, step.operands[:4]))}", "dim")


def _where(step: FaultStep) -> Iterator[_Line]:
    stack = step.name_stack
    names = f", in {stack if len(stack) <= _STACK else '...' + stack[-_STACK:]}" if stack else ""
    loops = "".join(
        f", iteration {loop.index}{'' if loop.length is None else f' of {loop.length}'} of {loop.loop}"
        for loop in step.iterations
    )
    if step.file is None:
        if step.kind != "argument":
            yield _Line(f"  no source line{names}{loops}")
        return
    library = f" ({step.library})" if step.library else ""
    yield _Line(f'  File "{step.file}", line {step.line}, in {step.function}{library}{names}{loops}')
    if step.code:
        yield _Line(f"    {step.code}")


def _became(step: FaultStep) -> str:
    what = f"{step.dtype}[{','.join(map(str, step.shape))}]"
    share = f"{step.nonfinite} of {step.size}" if step.shape else "it"
    at = f" at {', '.join(map(_index, step.indices[:2]))}{', ...' if step.nonfinite > 2 else ''}" if step.shape else ""
    if step.kind == "argument":
        return f"argument {step.path}: {what}, {share} {step.value}{at}"
    phase = {"forward": "", "derivative": " (derivative)", "backward": " (backward pass)"}[step.phase]
    detail = f"; {step.detail}" if step.detail else ""
    return f"{step.primitive}{phase} -> {what}, {share} {step.value}{at}{detail}"


def _index(index: tuple[int, ...]) -> str:
    return f"[{','.join(map(str, index))}]"


def _operand(operand: Operand) -> str:
    where = f"{operand.path}: " if operand.path else ""
    shape = f"{operand.dtype}[{','.join(map(str, operand.shape))}]"
    if operand.least is None or operand.greatest is None:
        span = ""
    elif operand.least == operand.greatest:
        span = f" {operand.least:.4g}"
    else:
        span = f" {operand.least:.4g} to {operand.greatest:.4g}"
    return f"{where}{shape}{span}{f', {operand.nonfinite} non-finite' if operand.nonfinite else ''}"


def summary(fault: Fault) -> str:
    """The cause in one line: what, and where."""
    step = fault.cause
    if step.kind == "argument":
        index = step.path + _index(step.indices[0]) if step.path and step.shape and step.indices else step.path
        return f"{index} is {step.value}"
    if step.kind == "constant":
        what = f"a constant is {step.value}"
    elif step.kind == "integer_overflow":
        what = f"{step.primitive} wrapped around in {step.dtype}"
    else:
        what = f"{step.primitive} returned {step.value}"
    where = "" if step.file is None else f" at {step.file.rpartition('/')[2]}:{step.line}"
    return what + where


def _fitted(line: str) -> list[str]:
    """The line in the text's width: prose is wrapped, and so are no paths and no code."""
    if len(line) <= _WIDTH or line.startswith("  File "):
        return [line]
    if line.startswith("    "):
        return [line[: _WIDTH - 3] + "..."]
    return textwrap.wrap(line, _WIDTH, subsequent_indent="  ", break_long_words=False)
