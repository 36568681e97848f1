"""A crash loop as the operator sees it: real programs that end by exceptions, and what the exporter says of them."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import RunningExporter

PROGRAM = """
import sys
import jax, optax, optwrap

def train():
    tx = optwrap.instrument(optwrap.apply_if_finite(optax.sgd(0.1), 3), monitor)
    params = {{"w": jax.numpy.ones(3)}}
    state = tx.init(params)
    for _ in range(5):
        _, state = jax.jit(tx.update)(params, state, params)
        monitor.observe(optwrap.reading(state))
    {end}

monitor = optwrap.Monitor(run="loop")
{block}
"""
WITH = "with monitor:\n    train()"
WITHOUT = "train()"


@pytest.fixture(scope="module")
def exporter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningExporter]:
    running = RunningExporter(tmp_path_factory.mktemp("failed") / "data")
    yield running
    running.stop()


def launch(exporter: RunningExporter, number: int, end: str, block: str) -> int:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPTWRAP_")}
    environment |= {"OPTWRAP_ENDPOINT": exporter.url, "OPTWRAP_ATTEMPT": f"a{number:02}", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM).format(end=end, block=block)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode


def ask(exporter: RunningExporter, path: str) -> Any:
    answer = httpx.get(f"{exporter.url}{path}", trust_env=False, timeout=30)
    assert answer.status_code == 200, answer.text
    return answer.json()


ENDS: list[tuple[str, str, str, str | None]] = [
    ("raise RuntimeError('out of memory')", WITH, "failed", "RuntimeError: out of memory"),
    ("raise ValueError('two\\nlines\\t' + 'x' * 400)", WITHOUT, "failed", f"ValueError: two lines {'x' * 400}"),
    ("sys.exit('no data')", WITH, "failed", "SystemExit: no data"),
    ("sys.exit()", WITH, "finished", None),
]
"""How a program ends, and the state and the reason of its attempt."""


def test_every_attempt_says_by_which_exception_it_ended(exporter: RunningExporter) -> None:
    for number, (end, block, state, _) in enumerate(ENDS):
        status = launch(exporter, number, end, block)
        assert (status == 0) == (state == "finished"), end
    run = ask(exporter, "/v1/runs/loop")
    assert run["attempts_total"] == len(ENDS)
    for attempt, (end, _, state, reason) in zip(run["attempts"], ENDS, strict=True):
        assert attempt["state"] == state, end
        assert (attempt["reason"] or "")[:250] == (reason or "")[:250], end
        assert attempt["start_step"] == 0, end
    assert launch(exporter, len(ENDS), "raise OSError(28, 'No space left on device')", WITH) != 0
    run = ask(exporter, "/v1/runs/loop")
    assert (run["health"], run["reason"]) == ("failed", "OSError: [Errno 28] No space left on device")
    assert "failed at step 5: OSError: [Errno 28] No space left on device" in run["summary"]
    metrics = httpx.get(f"{exporter.url}/metrics", trust_env=False, timeout=30).text
    assert f'optwrap_attempts_total{{run="loop"}} {len(ENDS) + 1}.0' in metrics


def test_ctrl_c_is_seen_as_such(exporter: RunningExporter, tmp_path: Path) -> None:
    """A person who ends a program by hand sees that on the page."""
    ready = tmp_path / "ready"
    # A shell starts background jobs with SIGINT ignored, and children inherit that.
    heed = "signal.signal(signal.SIGINT, signal.default_int_handler)"
    end = f"import pathlib, signal, time; {heed}; pathlib.Path({str(ready)!r}).touch(); time.sleep(60)"
    environment = dict(os.environ) | {"OPTWRAP_ENDPOINT": exporter.url, "JAX_PLATFORMS": "cpu"}
    program = textwrap.dedent(PROGRAM).replace('"loop"', '"by-hand"').format(end=end, block=WITH)
    with subprocess.Popen([sys.executable, "-c", program], env=environment, stderr=subprocess.DEVNULL) as process:
        try:
            for _ in range(600):
                if ready.exists():
                    break
                with pytest.raises(subprocess.TimeoutExpired):
                    process.wait(0.1)
            process.send_signal(signal.SIGINT)
            process.wait(30)
        finally:
            process.kill()
    run = ask(exporter, "/v1/runs/by-hand")
    assert (run["health"], run["reason"]) == ("failed", "KeyboardInterrupt")
