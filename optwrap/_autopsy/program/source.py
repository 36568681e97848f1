"""The user's source line of an equation."""

import linecache
import os
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import jax

_JAX: Final = str(Path(jax.__file__).parent) + os.sep
_OPTWRAP: Final = Path(__file__).parents[2]
_OWN: Final = str(_OPTWRAP / "_autopsy") + os.sep
_CHECKS: Final = str(_OPTWRAP / "_core" / "finite.py")
_LIBRARIES: Final = tuple(
    {sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    | {_JAX, str(_OPTWRAP) + os.sep, "<frozen"}
)
"""Where no code of the user's is: Python's own modules, installed packages, and this package."""


class Line(NamedTuple):
    """A line in a source file."""

    file: str
    line: int
    function: str

    @property
    def code(self) -> str:
        """Its text; empty if the file cannot be read."""
        return linecache.getline(self.file, self.line).strip()

    @property
    def is_users(self) -> bool:
        """Whether it is neither in a library nor in Python itself."""
        return not self.file.startswith(_LIBRARIES)


class Place(NamedTuple):
    """Where an equation comes from."""

    line: Line | None
    """The user's innermost line; a library's, if none is the user's."""
    library: str | None
    """The innermost line in a library other than JAX, if there is one inside the user's line."""


def place(equation: Any, calls: Sequence[Any] = ()) -> Place:
    """Where an equation comes from.

    JAX traces a jitted function once, and so all its calls have the line of the first. Of the rules of its own
    functions it knows no line of the user. The lines outside of a call are taken from its equation.

    Args:
      equation: an equation of a jaxpr.
      calls: the equations of the calls of functions that it is in, the outermost first.
    """
    lines = _lines(equation)
    name = next((call.params["name"] for call in reversed(calls) if "name" in call.params), None)
    if name is not None:
        start = next((i for i in reversed(range(len(lines))) if lines[i].function == name), None)
        if start is not None:
            lines = lines[start:]
    found = _innermost(lines)
    if (found.line is None or not found.line.is_users) and calls:
        outside = place(calls[-1], calls[:-1])
        if outside.line is not None and (found.line is None or outside.line.is_users):
            return Place(outside.line, found.library or outside.library)
    return found


def is_check(equation: Any) -> bool:
    """Whether an operation belongs to optwrap's check whether gradients are finite."""
    return any(line.file == _CHECKS for line in _lines(equation))


def is_own(equation: Any) -> bool:
    """Whether an operation is in the source of optwrap itself."""
    files = [line.file for line in _lines(equation) if not line.file.startswith((_JAX, _OWN, "<frozen"))]
    return bool(files) and files[-1].startswith(str(_OPTWRAP) + os.sep)


def _innermost(lines: Sequence[Line]) -> Place:
    outside_jax = [line for line in lines if not line.file.startswith((_JAX, _OWN, "<frozen"))]
    users = next((line for line in reversed(outside_jax) if line.is_users), None)
    if not outside_jax:
        return Place(None, None)
    last = outside_jax[-1]
    if users is None:
        return Place(last, _short(last))
    return Place(users, None if last is users else _short(last))


def _short(line: Line) -> str:
    """A library's line without the path of the installation."""
    prefix = max((root for root in _LIBRARIES if line.file.startswith(root)), key=len, default="")
    return f"{line.file.removeprefix(prefix)}:{line.line}"


def _lines(equation: Any) -> list[Line]:
    """The lines of the traceback, the outermost first."""
    traceback = getattr(getattr(equation, "source_info", None), "traceback", None)
    if traceback is None:
        return []
    entry = traceback.as_python_traceback()
    lines = []
    while entry is not None:
        code = entry.tb_frame.f_code
        lines.append(Line(code.co_filename, entry.tb_lineno, code.co_name))
        entry = entry.tb_next
    return lines


def name_stack(equation: Any, outside: str) -> str:
    """The name stack of an equation in a function that is called under the name stack `outside`."""
    inside = str(getattr(getattr(equation, "source_info", None), "name_stack", ""))
    return "/".join(filter(None, (outside, inside)))
