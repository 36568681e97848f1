"""The program of docs/autopsy.md prints what the page says."""

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "autopsy.md").read_text("utf-8")


def test_the_program_names_the_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (program,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.M | re.S)
    (printed,) = re.findall(r"^```text\n(.*?)^```$", PAGE, re.M | re.S)
    script = tmp_path / "train.py"
    script.write_text(program, "utf-8")  # the source lines are read from it
    exec(compile(program, script, "exec"), {"__name__": "train"})
    assert capsys.readouterr().out.replace(f"{tmp_path}/", "") == printed
