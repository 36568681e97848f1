"""What `optwrap.autopsy` finds, beside jax_debug_nans and checkify, and what it costs.

    python benchmarks/bench_autopsy.py [--write] [--cost]

The table has every fault of autopsy_faults.py; `--write` puts it into docs/guides/autopsy.md. A tool is right if it
names the line that is to blame, or the argument. `--cost` measures one autopsy of a bad step of the demo's transformer
against the jitted step: CPU time of the whole process, the first time and again, and the arrays that are alive at once.
"""

import argparse
import contextlib
import io
import linecache
import re
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax.experimental import checkify

import optwrap
from benchmarks import autopsy_faults
from benchmarks.autopsy_faults import FAULTS, ONES, Fault
from benchmarks.autopsy_healthy import HEALTHY
from benchmarks.timing import MIB, Times, machine, temporary_bytes, wait
from examples.demo import model
from examples.demo.data import Batch, Corpus
from examples.demo.settings import FULL
from optwrap._autopsy.progress import Progress

PAGE: Final = Path(__file__).parents[1] / "docs" / "guides" / "autopsy.md"
SOURCE: Final = autopsy_faults.__file__
RIGHT: Final = "right"
ELSEWHERE: Final = "another line"
NO_LINE: Final = "no line"
SILENT: Final = "nothing"
NOWHERE: Final = -1
"""Instead of a line: something is found, and no line is named."""
REFUSED: Final = -2
"""Instead of a line: the tool cannot compile the function."""
VERDICTS: Final = {None: SILENT, NOWHERE: NO_LINE, REFUSED: "refused"}


def target(fault: Fault) -> Callable[..., Any]:
    """The function that is looked into: of the fault, or its value and gradient."""

    def loss(w: jax.Array, x: jax.Array) -> Any:
        return jnp.sum(fault.function(w, x))

    return loss if fault.direction == "forward" else jax.value_and_grad(loss)


def judged(line: int | None) -> str:
    """What a tool that names this line of the faults' file has achieved."""
    if line in VERDICTS:
        return VERDICTS[line]
    assert line is not None
    return RIGHT if "# here" in linecache.getline(SOURCE, line) else ELSEWHERE


def by_autopsy(function: Callable[..., Any], *arguments: Any) -> tuple[bool, int | None, str | None]:
    """Whether it finds something, and the line and the argument that it names."""
    findings = optwrap.autopsy(function, *arguments)
    if not findings:
        return False, None, None
    cause = findings.faults[0].cause
    index = "" if not cause.indices else str(list(cause.indices[0]))
    return True, cause.line, None if cause.path is None else cause.path + index


def by_debug_nans(function: Callable[..., Any], *arguments: Any) -> tuple[bool, int | None]:
    """Whether jax_debug_nans raises, and the innermost line of the faults' file."""
    try:
        # JAX prints that it looks again.
        with jax.debug_nans(True), contextlib.redirect_stdout(io.StringIO()):
            wait(jax.jit(function)(*arguments))
    except Exception as error:
        # A FloatingPointError; in a remat JAX's internal error gets through.
        if not isinstance(error, FloatingPointError) and "FloatingPoint" not in type(error).__name__:
            raise
        return True, _line(error) or NOWHERE
    return False, None


def by_checkify(function: Callable[..., Any], *arguments: Any) -> tuple[bool, int | None]:
    """Whether checkify reports an error, and the line that its message names."""
    checked = checkify.checkify(function, errors=checkify.float_checks | checkify.index_checks)
    try:
        error, _ = jax.jit(checked)(*arguments)
    except ValueError:  # of a while loop under vmap
        return False, REFUSED
    raised = error.get_exception()
    if raised is None:
        return False, None
    # It keeps the line beside the exception.
    found: Any = raised
    return True, _line(raised.with_traceback(found.traceback_info.as_python_traceback())) or NOWHERE


def _line(raised: BaseException) -> int | None:
    """The innermost line of the faults' file in an exception, or in its cause: the line before differentiation."""
    for error in filter(None, (raised.__cause__, raised)):
        frames = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == SOURCE]
        if frames:
            return frames[-1]
    return None


def rows() -> Iterator[tuple[Fault, str, str, str]]:
    """Each fault, and what autopsy, jax_debug_nans and checkify say."""
    for fault in FAULTS:
        function, arguments = target(fault), (jnp.asarray(fault.w), jnp.asarray(fault.x))
        _, line, path = by_autopsy(function, *arguments)
        ours = judged(line) if not fault.path else (RIGHT if path == fault.path else ELSEWHERE)
        yield (
            fault,
            ours,
            judged(by_debug_nans(function, *arguments)[1]),
            judged(by_checkify(function, *arguments)[1]),
        )


def table() -> str:
    """The faults in Markdown, with the totals and the false alarms above."""
    found = list(rows())
    alarms = [
        sum(tool(healthy, jnp.asarray(ONES), jnp.asarray(ONES))[0] for healthy in HEALTHY)
        for tool in (by_autopsy, by_debug_nans, by_checkify)
    ]
    right = [sum(row[column] == RIGHT for row in found) for column in (1, 2, 3)]
    lines = [
        "| | autopsy | jax_debug_nans | checkify |",
        "|---|---|---|---|",
        f"| right, of {len(found)} faults | {' | '.join(map(str, right))} |",
        f"| false alarms, of {len(HEALTHY)} healthy functions | {' | '.join(map(str, alarms))} |",
        "",
        "| fault | to blame | autopsy | jax_debug_nans | checkify |",
        "|---|---|---|---|---|",
    ]
    for fault, *verdicts in found:
        blame = fault.path or fault.primitive
        name = fault.name + ("" if fault.direction == "forward" else " (gradient)")
        lines.append(f"| {name} | `{blame}` | {' | '.join(verdicts)} |")
    return "\n".join(lines) + "\n"


def write(text: str) -> None:
    """Put the table into the page, between its marks."""
    page = PAGE.read_text("utf-8")
    changed = re.sub(r"(<!-- faults -->\n).*?(<!-- end -->\n)", lambda mark: mark[1] + text + mark[2], page, flags=re.S)
    PAGE.write_text(changed, "utf-8")


def costs() -> None:
    """Print what one autopsy of a bad step of the demo's transformer costs."""
    corpus = Corpus(context=FULL.context, layers=FULL.layers)
    shape = model.Shape(len(corpus.vocabulary), FULL.context, FULL.layers, FULL.heads, FULL.width)
    params = model.init(0, shape)
    batch: Batch = corpus.decode(next(corpus.batches(FULL.batch, 0)))
    bad = batch._replace(ahead=batch.ahead * 3e38)

    def loss(params: Any, batch: Batch) -> Any:
        return model.loss(params, shape, batch, corpus.scale)[0]

    step = jax.value_and_grad(loss)
    compiling, jitted, first, again = Times(), Times(), Times(), Times()
    with compiling.round():
        compiled = jax.jit(step).lower(params, bad).compile()
    for _ in range(30):
        with jitted.round():
            wait(compiled(params, bad))
    before = alive()
    peak = Peak()
    with peak.watched(), first.round():
        findings = optwrap.autopsy(step, params, bad)
    for _ in range(5):
        with again.round():
            optwrap.autopsy(step, params, bad)
    figures: Any = compiled.memory_analysis()
    whole = temporary_bytes(compiled) + figures.output_size_in_bytes + figures.argument_size_in_bytes
    print(findings)
    print(f"{machine()}; {findings.operations} operations; CPU time")
    print(f"jitted step {jitted.cpu_ms:.1f} ms; autopsy again {again.cpu_ms / jitted.cpu_ms:.0f} times that")
    print(f"first autopsy {first.cpu_ms / compiling.cpu_ms:.2f} of compiling the step")
    held = peak.bytes - before
    print(f"arrays alive {held / MIB:.1f} MiB, {held / whole:.2f} of the step's {whole / MIB:.1f} MiB")


def alive() -> int:
    """Bytes of all arrays of this process."""
    return sum(array.nbytes for array in jax.live_arrays())  # type: ignore[no-untyped-call]  # jax gives it no types


class Peak:
    """The most bytes of arrays that were alive at once, looked at after each operation."""

    def __init__(self) -> None:
        self.bytes = 0

    def watched(self) -> Any:
        """A context in which it looks."""
        import unittest.mock  # noqa: PLC0415

        advance = Progress.advance

        def look(progress: Progress) -> None:
            advance(progress)
            self.bytes = max(self.bytes, alive())

        return unittest.mock.patch.object(Progress, "advance", look)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the table into docs/guides/autopsy.md")
    parser.add_argument("--cost", action="store_true", help="measure the cost, not the table")
    arguments = parser.parse_args()
    if arguments.cost:
        costs()
        return
    began = time.perf_counter()
    text = table()
    print(text)
    print(f"{machine()}; {time.perf_counter() - began:.0f} s")
    if arguments.write:
        write(text)


if __name__ == "__main__":
    main()
