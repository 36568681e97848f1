"""`make demo ARGS=--pod`: processes of one job stop at the same step, and go on without the bad batches."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from examples.demo.options import parse

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.timeout(400)
def test_a_pod_stops_rolls_back_and_finishes() -> None:
    """Both processes exit with 65, and then with 0; the page's last word is that the run has finished."""
    done = subprocess.run(
        [sys.executable, "-m", "examples.demo", "--pod", "--quick", "--listen", "127.0.0.1:0"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=380,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    *lines, last = done.stdout.splitlines()
    assert [line for line in lines if "exit codes" in line] == ["  exit codes: 65, 65", "  exit codes: 0, 0"]
    reason = "accepted_not_finite: non-finite values were accepted in 1 step"
    assert f"  gave_up: {reason}; roll back to step 54" in lines
    kinds = [line.split()[0] for line in lines[lines.index("Events:") + 1 :]]
    assert kinds[0] == "started"
    assert kinds[-3:] == ["stopped", "resumed", "finished"]
    answer = json.loads(last)
    assert answer["health"] == "finished"
    assert [attempt["state"] for attempt in answer["attempts"]] == ["stopped", "finished"]
    assert answer["state_totals"]["steps"] == 117
    assert [row["totals"]["steps"] for row in answer["processes"]] == [65 + 77] * 2


def test_options_of_the_training_in_one_process_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """They would have no effect."""
    assert parse(["--pod"]).processes == 4
    for arguments in (["--steps=9"], ["--seed=1"], ["--run=x"], ["--emit=callback"], ["--no-baseline"]):
        with pytest.raises(SystemExit) as exit_:
            parse(["--pod", *arguments])
        assert exit_.value.code == 2
        assert f"{arguments[0].partition('=')[0]} has no meaning with --pod" in capsys.readouterr().err
