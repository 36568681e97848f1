"""What programs do that nobody wrote an example for: a real Monitor and a real exporter, and the truth by counting."""

import contextlib
import os
import shutil
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optwrap
from optwrap._monitor.monitor import Parts
from optwrap._monitor.thread import Clock
from tests.conftest import RunningExporter

pytestmark = pytest.mark.thin(3)

PARAMS = {"w": np.ones(3, np.float32)}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningExporter]:
    """An exporter for runs of different names."""
    running = RunningExporter(tmp_path_factory.mktemp("odd") / "data")
    yield running
    running.stop()


def ask(exporter: RunningExporter, path: str, **query: Any) -> Any:
    answer = httpx.get(f"{exporter.url}/v1/runs/{path}", params=query, trust_env=False, timeout=30)
    assert answer.status_code == 200, answer.text
    return answer.json()


def recorded(exporter: RunningExporter, run: str) -> list[int]:
    found: list[int] = ask(exporter, f"{run}/steps", points=100_000)["columns"]["step"]
    return found


class Trained:
    """An optimizer that lets one NaN through in every seven steps, and its state."""

    def __init__(self, monitor: optwrap.Monitor, **how: Any) -> None:
        self.monitor = monitor
        self.tx = optwrap.instrument(optwrap.apply_if_finite(optax.sgd(0.1), 3), monitor, **how)
        self.state = self.tx.init(PARAMS)
        self.steps = 0
        self._step = jax.jit(self._stepped)

    def _stepped(self, state: Any, value: Any) -> Any:
        state = self.tx.update({"w": jnp.full(3, value)}, state, PARAMS)[1]
        return state, optwrap.reading(state)

    def train(self, steps: int, *, every: int = 1) -> None:
        """Steps, of which those are observed whose number `every` divides."""
        for _ in range(steps):
            self.steps += 1
            self.state, words = self._step(self.state, np.float32(np.nan if self.steps % 7 == 0 else 1))
            if self.steps % every == 0:
                self.monitor.observe(words)


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("every", [2, 5])
def test_a_training_observed_now_and_then_is_counted_whole_and_says_what_nobody_saw(
    shared: RunningExporter, every: int, told: bool
) -> None:
    """Through a resume. Told of its state before the loop no step is unseen; else those before the first look are."""
    run = f"every-{every}-{told}"
    unseen = 0 if told else every - 1
    with optwrap.Monitor(run, shared.url, 0, attempt="1", interval=0.05) as monitor:
        trained = Trained(monitor)
        if told:
            monitor.observe(optwrap.reading(trained.state))
        trained.train(30, every=every)
        assert monitor.flush(30)
    answer = ask(shared, run)
    assert (answer["totals"]["steps"], answer["state_totals"]["steps"], answer["unseen"]) == (30 - unseen, 30, unseen)
    assert answer["totals"]["not_finite_steps"] == 4, "the first look is before the first of them"

    with optwrap.Monitor(run, shared.url, 0, attempt="2", interval=0.05) as monitor:
        resumed = Trained(monitor)
        resumed.state, resumed.steps = trained.state, trained.steps
        if told:
            monitor.observe(optwrap.reading(resumed.state), restored=True)
        resumed.train(30, every=every)
        assert monitor.flush(30)
    answer = ask(shared, run)
    missing = 2 * unseen
    assert (answer["totals"]["steps"], answer["state_totals"]["steps"], answer["unseen"]) == (60 - missing, 60, missing)
    assert recorded(shared, run) == list(range(every, 61, every))
    assert not any(answer["dropped"].values())


def test_ten_thousand_steps_of_one_scan_are_each_recorded(shared: RunningExporter) -> None:
    with optwrap.Monitor("scan", shared.url, 0, interval=0.05) as monitor:
        trained = Trained(monitor)
        values = np.where(np.arange(1, 10_001) % 7 == 0, np.nan, 1).astype(np.float32)
        _, words = jax.jit(lambda state: jax.lax.scan(trained._stepped, state, values))(trained.state)
        monitor.observe(words)
        assert monitor.flush(60)
    answer = ask(shared, "scan")
    assert answer["totals"]["steps"] == 10_000
    assert answer["totals"]["skipped"]["not_finite"] == 10_000 // 7
    assert recorded(shared, "scan") == list(range(1, 10_001))
    assert not any(answer["dropped"].values())


def test_two_monitors_of_one_run_and_process_are_a_conflict_and_both_are_counted(shared: RunningExporter) -> None:
    """As long as both live."""
    with contextlib.ExitStack() as stack:
        both = [Trained(stack.enter_context(optwrap.Monitor("two", shared.url, 0, interval=0.1))) for _ in range(2)]
        deadline = time.monotonic() + 60
        while (answer := ask(shared, "two") if both[0].steps > 10 else {"health": "too early"})["health"] != "conflict":
            assert time.monotonic() < deadline, answer
            for trained in both:
                trained.train(1)
            time.sleep(0.05)
        assert all(trained.monitor.flush(30) for trained in both)
        assert ask(shared, "two")["totals"]["steps"] == sum(trained.steps for trained in both)
    assert "conflict" in [event["kind"] for event in ask(shared, "two/events")["items"]]
    assert ask(shared, "two")["health"] == "finished"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.parametrize("emit", ["reading", "callback"])
def test_a_thread_that_forks_in_the_midst_of_steps_hurts_neither_side(shared: RunningExporter, emit: Any) -> None:
    """Whatever locks are held at that moment: each child ends by itself, and of the parent's steps none is lost."""
    children: list[int] = []
    over = threading.Event()

    def fork() -> None:
        while not over.wait(0.01):
            with warnings.catch_warnings(action="ignore"):  # of JAX, which the children do not use
                pid = os.fork()
            if pid == 0:
                os._exit(0 if monitor.flush(0) else 1)
            children.append(pid)

    with optwrap.Monitor(f"forks-{emit}", shared.url, 0, interval=0.02) as monitor:
        trained = Trained(monitor, emit=emit)
        forking = threading.Thread(target=fork)
        forking.start()
        try:
            while len(children) < 10:
                trained.train(5)
                if emit == "callback":
                    jax.block_until_ready(trained.state)
        finally:
            over.set()
            forking.join()
        deadline = time.monotonic() + 60
        for pid in children:
            while (ended := os.waitpid(pid, os.WNOHANG)) == (0, 0):
                assert time.monotonic() < deadline, "a child hangs"
                time.sleep(0.01)
            assert ended == (pid, 0)
        assert monitor.flush(30)
    answer = ask(shared, f"forks-{emit}")
    assert answer["totals"]["steps"] == trained.steps
    assert recorded(shared, f"forks-{emit}") == list(range(1, trained.steps + 1))
    assert [row["process"] for row in answer["processes"]] == [0]


def test_totals_outlive_every_loss_of_the_directory_and_forgetting(
    start_exporter: Callable[..., RunningExporter], tmp_path: Path
) -> None:
    """Lost, lost again and once more before a report came, forgotten while its trainer lives; then the name anew."""
    exporter = start_exporter(data_dir=tmp_path / "data")

    def lose() -> None:
        exporter.kill9()
        shutil.rmtree(exporter.data_dir)
        exporter.start()

    def forget() -> None:
        exporter.stop()
        command = [sys.executable, "-m", "optwrap_exporter", "forget", "lost", "--data-dir", str(exporter.data_dir)]
        subprocess.run(command, check=True, capture_output=True)
        exporter.start()

    def lose_at_once() -> None:
        lose()
        lose()

    # Backoff is as it is, in small: what is waited for here is not time.
    parts = Parts(environ={}, clock=Clock(jitter=lambda: 0.02))
    with optwrap.Monitor("lost", exporter.url, 0, attempt="1", interval=0.1, _parts=parts) as monitor:
        trained = Trained(monitor)
        for happens in (lose, lose_at_once, forget, lambda: None):
            trained.train(10)
            assert monitor.flush(60)
            answer = ask(exporter, "lost")
            assert (answer["totals"]["steps"], answer["unseen"]) == (trained.steps, 0)
            assert answer["totals"]["not_finite_steps"] == trained.steps // 7
            happens()
    forget()
    with optwrap.Monitor("lost", exporter.url, 0, attempt="2", interval=0.1) as monitor:
        anew = Trained(monitor)
        anew.train(3)
        assert monitor.flush(60)
    answer = ask(exporter, "lost")
    assert (answer["totals"]["steps"], answer["state_totals"]["steps"], answer["unseen"]) == (3, 3, 0)
