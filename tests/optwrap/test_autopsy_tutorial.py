"""The program of docs/guides/autopsy.md prints what the page says."""

import re
from pathlib import Path

import pytest

from benchmarks.autopsy_faults import FAULTS
from benchmarks.autopsy_healthy import HEALTHY

PAGE = (Path(__file__).parents[2] / "docs" / "guides" / "autopsy.md").read_text("utf-8")


def test_the_program_names_the_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (program,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.M | re.S)
    (printed,) = re.findall(r"^```text\n(.*?)^```$", PAGE, re.M | re.S)
    script = tmp_path / "train.py"
    script.write_text(program, "utf-8")  # the source lines are read from it
    exec(compile(program, script, "exec"), {"__name__": "train"})
    assert capsys.readouterr().out.replace(f"{tmp_path}/", "") == printed


def test_the_comparison_has_every_fault_and_all_are_found() -> None:
    """`benchmarks/bench_autopsy.py --write` makes it; the faults themselves are tested in test_autopsy_faults.py."""
    rows = re.findall(r"^\| ([^|]+) \| `([^`]+)` \| (\w+) \|", PAGE, re.M)
    assert [(name.removesuffix(" (gradient)"), blame) for name, blame, _ in rows] == [
        (fault.name, fault.path or fault.primitive) for fault in FAULTS
    ]
    assert {verdict for *_, verdict in rows} == {"right"}
    assert f"| right, of {len(FAULTS)} faults | {len(FAULTS)} |" in PAGE
    assert f"| false alarms, of {len(HEALTHY)} healthy functions | 0 |" in PAGE
