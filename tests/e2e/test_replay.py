"""`python -m optwrap.replay` on the stored steps of a real exporter."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest

import optwrap
from optwrap import replay
from tests.conftest import RunningExporter

STEPS = 260
SPIKES = {100: 30.0, 101: 40.0, 150: np.nan, 200: 4.0}
"""Norms of single steps; all others are near 1."""


def trained(exporter: RunningExporter, run: str) -> None:
    """A run without a guard that has these norms."""
    with optwrap.Monitor(run=run, endpoint=exporter.url) as monitor:
        tx = optwrap.instrument(optwrap.skip_spikes(optax.sgd(0.1), shadow=True), monitor)
        params = np.zeros(2, np.float32)
        state = tx.init(params)

        @jax.jit
        def step(grads: Any, state: Any) -> Any:
            _, state = tx.update(grads, state, params)
            return state, optwrap.reading(state)

        for number in range(1, STEPS + 1):
            norm = np.float32(SPIKES.get(number, 1.0 + 0.01 * (number % 5)))
            state, reading = step(np.array([0.6, 0.8], np.float32) * norm, state)
            monitor.observe(reading)
        assert monitor.flush(timeout=60)


@pytest.fixture(scope="module")
def exporter(tmp_path_factory: pytest.TempPathFactory) -> Any:
    running = RunningExporter(tmp_path_factory.mktemp("replay") / "data")
    trained(running, "lm")
    yield running
    running.stop()


def called(exporter: RunningExporter, *options: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert replay.main(["lm", "--endpoint", exporter.url, "--json", *options]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_it_prints_what_would_have_been_skipped(exporter: RunningExporter, capsys: pytest.CaptureFixture[str]) -> None:
    """The same steps that the guard in shadow mode counted."""
    result = called(exporter, capsys=capsys)
    assert (result["steps"], result["missing"], result["left_out"], result["first_step"]) == (STEPS, 0, 0, 1)
    assert [(one["step"], round(one["norm"], 3)) for one in result["large"]] == [(100, 30.0), (101, 40.0), (200, 4.0)]
    assert (result["would_skip_large"], result["would_skip_not_finite"], result["rebases"]) == (3, 1, [])
    assert all(2.9 < one["limit"] < 3.2 for one in result["large"])


def test_other_settings_give_another_answer(exporter: RunningExporter, capsys: pytest.CaptureFixture[str]) -> None:
    result = called(exporter, "--min-ratio", "5", capsys=capsys)
    assert [one["step"] for one in result["large"]] == [100, 101]
    assert result["settings"] == {"spreads": 7.5, "min_ratio": 5.0, "rebase_after": 32, "max_norm": None}
    result = called(exporter, "--rebase-after", "2", capsys=capsys)
    assert ([one["step"] for one in result["large"]][:1], result["rebases"]) == ([100], [101])
    result = called(exporter, "--max-norm", "1.03", "--since", "11", "--until", "20", capsys=capsys)
    assert (result["first_step"], result["last_step"], result["steps"]) == (11, 20, 10)
    assert [one["step"] for one in result["large"]] == [13, 14, 18, 19]


def test_pages_give_the_same_as_one_answer(
    exporter: RunningExporter, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where an answer is too large and has to be asked for in pieces."""
    whole = called(exporter, capsys=capsys)
    monkeypatch.setattr(replay, "_WINDOW", 64)
    monkeypatch.setattr(replay, "_SMALLEST", 8)
    assert called(exporter, capsys=capsys) == whole

    ask = replay.Client._steps

    def with_few_points(self: replay.Client, since: Any, until: Any, *, points: int) -> Any:
        return ask(self, since, until, points=min(points, 20))

    monkeypatch.setattr(replay.Client, "_steps", with_few_points)
    assert called(exporter, capsys=capsys) == whole


def test_steps_that_the_exporter_leaves_out_are_named(
    exporter: RunningExporter, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = replay.Client._steps

    def with_few_points(self: replay.Client, since: Any, until: Any, *, points: int) -> Any:
        return ask(self, since, until, points=min(points, 20))

    monkeypatch.setattr(replay.Client, "_steps", with_few_points)
    assert replay.main(["lm", "--endpoint", exporter.url]) == 0
    said = capsys.readouterr().out
    assert "steps are stored, but thinned out in the answers" in said
    assert "take the figures as an estimate" in said


def test_it_is_a_command(exporter: RunningExporter, tmp_path: Path) -> None:
    """With a token file, and text for a terminal."""
    token = tmp_path / "token"
    token.write_text("secret\n")
    command = [sys.executable, "-m", "optwrap.replay", "lm", "--endpoint", exporter.url, "--token-file", str(token)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    lines = done.stdout.splitlines()
    assert lines[0] == "lm, process 0: 260 steps, 1 to 260"
    assert "would skip 3 steps as large (1.15 %), 1 as not finite (0.38 %)" in lines
    assert lines[-1].startswith("large: step 100 (norm 30, limit 3.")
    assert "note" not in done.stdout
    assert not done.stderr


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["none"], 1, r"run: got none, allowed: a run that GET /v1/runs lists"),
        (["lm", "--process", "7"], 1, r"refuses the steps of run 'lm': process: got 7"),
        (["lm", "--since", "1000"], 1, "no step is stored in that range: leave out --since"),
        (["lm", "--min-ratio", "0.5"], 2, "min_ratio must be a number from 1, got 0.5"),
        (["lm", "--since", "5", "--until", "2"], 2, "--until: got 2; allowed: at least --since, 5"),
        (["lm", "--since", "0"], 2, "must be a step's number, from 1, got 0"),
        (["a b"], 2, r"run (or OPTWRAP_RUN): got 'a b'; allowed: a name of 1 to 128"),
        (
            ["lm", "--endpoint", "ftp://x"],
            2,
            "endpoint (or OPTWRAP_ENDPOINT): got 'ftp://x'; allowed: http://HOST:PORT",
        ),
        (["lm", "--endpoint", "http://127.0.0.1:9"], 1, "no exporter answers at http://127.0.0.1:9: "),
        (["lm", "--token-file", "/nowhere/token"], 2, "/nowhere/token"),
    ],
)
def test_errors_say_what_to_do(
    exporter: RunningExporter,
    options: list[str],
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exit code 1 if the norms cannot be had, 2 if an option is wrong."""
    given = options if "--endpoint" in options else [*options, "--endpoint", exporter.url]
    try:
        returned = replay.main(given)
    except SystemExit as end:
        returned = int(end.code or 0)
    assert returned == code
    assert message in capsys.readouterr().err


def test_the_first_stored_step_is_found_by_bisection() -> None:
    for first in (1, 2, 3, 37, 64, 1_000_001):
        assert replay._smallest(first.__le__) == first


def test_a_unix_socket_is_an_endpoint(
    start_exporter: Callable[..., RunningExporter], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "optwrap.sock"
    trained(start_exporter("--ingest-socket", str(path)), "lm")
    assert replay.main(["lm", "--endpoint", f"unix://{path}"]) == 0
    assert "would skip 3 steps as large" in capsys.readouterr().out
