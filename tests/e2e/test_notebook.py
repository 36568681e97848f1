"""What notebooks and hidden loops do, against a real exporter."""

import os
import subprocess
import sys
from typing import Any

import httpx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import optwrap
from tests.conftest import RunningExporter


def ask(exporter: RunningExporter, path: str) -> Any:
    return httpx.get(f"{exporter.url}/v1/runs/{path}", trust_env=False).raise_for_status().json()


def train(monitor: optwrap.Monitor, values: Any) -> Any:
    """Steps in one scan; returns their readings."""
    tx = optwrap.instrument(optwrap.apply_if_finite(optax.sgd(0.1), 99), monitor)
    params = {"w": jnp.ones(2)}

    def step(state: Any, value: Any) -> Any:
        _, state = tx.update({"w": jnp.full(2, value)}, state, params)
        return state, optwrap.reading(state)

    return jax.jit(lambda state: jax.lax.scan(step, state, values))(tx.init(params))[1]


def test_a_cell_that_is_run_again_is_an_attempt_and_no_conflict(exporter: RunningExporter) -> None:
    """The Monitor of the cell's last run is open when the cell is run again, and has reported several times."""
    for _ in range(3):
        monitor = optwrap.Monitor("cell", exporter.url, 0, interval=0.02)
        for row in train(monitor, np.ones(12, np.float32)):
            monitor.observe(row)
            monitor.flush(10)
    monitor.close()
    answer = ask(exporter, "cell")
    assert (answer["totals"]["steps"], answer["health"], answer["unseen"]) == (36, "finished", 0)
    assert [attempt["state"] for attempt in answer["attempts"]] == ["finished"] * 3
    assert "conflict" not in {event["kind"] for event in ask(exporter, "cell/events")["items"]}


def test_a_hidden_loop_is_counted_from_zero_or_shown_as_unseen(exporter: RunningExporter) -> None:
    """Forty steps with thirteen NaNs, of which the last reading alone is observed."""
    values = np.where(np.arange(1, 41) % 3 == 0, np.nan, 1).astype(np.float32)
    counted: dict[str, Any] = {"zero": 40, "first_reading": 1}
    for counts_from in ("zero", "first_reading"):
        with optwrap.Monitor(counts_from, exporter.url, 0, interval=0.05, counts_from=counts_from) as monitor:
            monitor.observe(train(monitor, values)[-1])
            assert monitor.flush(30)
        answer = ask(exporter, counts_from)
        assert (answer["totals"]["steps"], answer["state_totals"]["steps"]) == (counted[counts_from], 40)
        hidden = (0, 0) if counts_from == "zero" else (39, 13)
        assert (answer["unseen"], answer["unseen_not_finite"]) == hidden
    command = [sys.executable, "-m", "optwrap_exporter", "status", exporter.url]
    environment = {**os.environ, "COLUMNS": "200"}
    shown = subprocess.run(command, check=False, capture_output=True, text=True, env=environment).stdout
    assert "+39 unseen, 13 non-finite" in shown
