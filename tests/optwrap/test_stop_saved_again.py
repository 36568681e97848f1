"""`Stop.save` of a stop that the file has already, whatever was saved since."""

import json
from pathlib import Path

from optwrap import BadStep, Stop


def a_stop(step: int) -> Stop:
    return Stop("skipped: 1 of the last 9 steps were skipped", step, step, step - 1, (BadStep(step, "skipped_large"),))


def test_an_older_stop_is_in_the_file_once(tmp_path: Path) -> None:
    file = tmp_path / "skip_batches.json"
    for step in (7, 20, 7):
        a_stop(step).save(file)
    found = json.loads(file.read_text())
    assert [stop["step"] for stop in found["stops"]] == [7, 20]
    assert found["batches"] == [7, 20]
