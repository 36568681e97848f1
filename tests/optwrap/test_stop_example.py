"""The example and the guide's code: stop, roll back, leave the bad batches out, go on."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import yaml

REPOSITORY = Path(__file__).parents[2]
GUIDE = REPOSITORY / "docs" / "guides" / "stop-and-roll-back.md"


def run(command: list[str], directory: Path, endpoint: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        cwd=directory,
        env={**os.environ, "OPTWRAP_ENDPOINT": endpoint, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_the_example_stops_and_reaches_a_finite_loss(start_exporter: Callable[..., Any]) -> None:
    """All batches but three are 117 steps by the optimizer's count. The exporter also counts what was redone."""
    exporter = start_exporter()
    done = run(["-m", "examples.stop_and_roll_back"], REPOSITORY, exporter.url)
    assert done.returncode == 0, done.stderr
    stopped, back, end = done.stdout.splitlines()
    assert stopped == "stopped at step 57: accepted_not_finite: non-finite values were accepted in 1 step"
    assert back == "back to step 54 or earlier, without batches [55, 56, 57]"
    assert re.fullmatch(r"reached the end with a loss of 0\.\d+", end)

    url = f"{exporter.url}/v1/runs/stop-and-roll-back"
    answer = httpx.get(url, trust_env=False).json()
    assert (answer["health"], answer["reason"]) == ("finished", None)
    assert answer["state_totals"]["outcomes"] == {**answer["state_totals"]["outcomes"], "applied": 117}
    assert answer["state_totals"]["steps"] == 117
    # Up to step 65, which is the lag after step 57; then from step 40, the last checkpoint before step 55.
    outcomes = {outcome: n for outcome, n in answer["totals"]["outcomes"].items() if n}
    assert outcomes == {"applied": 54 + 77, "skipped_not_finite": 2, "accepted_not_finite": 9}
    assert [attempt["state"] for attempt in answer["attempts"]] == ["stopped", "finished"]
    events = httpx.get(f"{url}/events?kind=stopped", trust_env=False).json()["items"]
    assert [event["detail"]["last_clean_step"] for event in events] == [54]


def test_the_guides_code_stops_with_its_exit_code(tmp_path: Path) -> None:
    """As it stands, without an exporter."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    (tmp_path / "train.py").write_text(code)
    done = run(["train.py"], tmp_path, "off")
    assert done.returncode == 65, done.stderr
    found = json.loads((tmp_path / "skip_batches.json").read_text())
    assert found["batches"] == list(range(31, 51))
    assert [stop["last_clean_step"] for stop in found["stops"]] == [30]


def test_the_guides_exit_codes_are_those_of_a_stop() -> None:
    """In both schedulers' snippets."""
    text = GUIDE.read_text("utf-8")
    (snippet,) = re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    rules = yaml.safe_load(snippet)["spec"]["podFailurePolicy"]["rules"]
    assert [rule["onExitCodes"] for rule in rules] == [
        {"operator": "In", "values": [65]},
        {"operator": "NotIn", "values": [65]},
    ]
    assert "[ $code -eq 65 ] || exit $code" in text
