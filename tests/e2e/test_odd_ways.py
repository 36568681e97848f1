"""What programs do that nobody wrote an example for: a real Monitor and a real exporter, and the truth by counting."""

import contextlib
import os
import shutil
import subprocess
import sys
import threading
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
from optwrap._monitor.sending.schedule import Clock
from optwrap._monitor.thread import Parts
from tests.conftest import RunningExporter
from tests.polling import wait_until

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
    found: list[int] = ask(exporter, f"{run}/steps", points=20_000)["columns"]["step"]
    return found


class Trained:
    """An instrumented optimizer and its state; every seventh gradient has NaNs."""

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
        """Take steps, and observe every n-th."""
        for _ in range(steps):
            self.steps += 1
            self.state, words = self._step(self.state, np.float32(np.nan if self.steps % 7 == 0 else 1))
            if self.steps % every == 0:
                self.monitor.observe(words)


@pytest.mark.parametrize("fresh_state", [True, False])
@pytest.mark.parametrize("every", [2, 5])
def test_a_training_observed_now_and_then_is_counted_from_the_first_reading(
    shared: RunningExporter, every: int, fresh_state: bool
) -> None:
    """Steps before it are unseen: after a resume always, at the start unless the fresh state was observed."""
    run = f"every-{every}-{fresh_state}"
    unseen = 0 if fresh_state else every - 1
    with optwrap.Monitor(run, shared.url, 0, attempt="1", interval=0.05) as monitor:
        trained = Trained(monitor)
        if fresh_state:
            monitor.observe(optwrap.reading(trained.state))
        trained.train(30, every=every)
        assert monitor.flush(30)
    answer = ask(shared, run)
    assert (answer["totals"]["steps"], answer["state_totals"]["steps"], answer["unseen"]) == (30 - unseen, 30, unseen)
    assert answer["totals"]["not_finite_steps"] == 4, "the first reading is before the first of them"

    with optwrap.Monitor(run, shared.url, 0, attempt="2", interval=0.05) as monitor:
        resumed = Trained(monitor)
        resumed.state, resumed.steps = trained.state, trained.steps
        resumed.train(30, every=every)
        assert monitor.flush(30)
    answer = ask(shared, run)
    unseen += every - 1
    assert (answer["totals"]["steps"], answer["state_totals"]["steps"], answer["unseen"]) == (60 - unseen, 60, unseen)
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
    """The conflict ends when they do. In one process a second one would close the first, but for the two names."""
    with contextlib.ExitStack() as stack:
        urls = shared.url, shared.url.replace("127.0.0.1", "localhost")
        both = [Trained(stack.enter_context(optwrap.Monitor("two", url, 0, interval=0.1))) for url in urls]

        def conflict() -> bool:
            for trained in both:
                trained.train(1)
            return both[0].steps > 10 and ask(shared, "two")["health"] == "conflict"

        wait_until(conflict, pause=0.05, problem=lambda: ask(shared, "two"))
        assert all(trained.monitor.flush(30) for trained in both)
        assert ask(shared, "two")["totals"]["steps"] == sum(trained.steps for trained in both)
    assert "conflict" in [event["kind"] for event in ask(shared, "two/events")["items"]]
    assert ask(shared, "two")["health"] == "finished"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.parametrize("emit", ["reading", "callback"])
def test_a_thread_that_forks_during_steps_hurts_neither_side(shared: RunningExporter, emit: Any) -> None:
    """Whatever locks are held at that moment: each child ends by itself, and no step of the parent is lost."""
    children: list[int] = []
    over = threading.Event()

    def fork() -> None:
        while not over.wait(0.01):
            with warnings.catch_warnings(action="ignore"):  # JAX warns about forks; the children do not use it
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
        left = set(children)

        def none_left() -> bool:
            for pid in list(left):
                if (ended := os.waitpid(pid, os.WNOHANG)) != (0, 0):
                    assert ended == (pid, 0)
                    left.remove(pid)
            return not left

        wait_until(none_left, problem=lambda: f"children hang: {left}")
        assert monitor.flush(30)
    answer = ask(shared, f"forks-{emit}")
    assert answer["totals"]["steps"] == trained.steps
    assert recorded(shared, f"forks-{emit}") == list(range(1, trained.steps + 1))
    assert [row["process"] for row in answer["processes"]] == [0]


def test_after_a_loss_of_data_counting_goes_on_and_the_lost_steps_are_unseen(
    start_exporter: Callable[..., RunningExporter], tmp_path: Path
) -> None:
    """The data directory is lost, lost twice in a row, or the run is forgotten. Nothing is counted twice."""
    exporter = start_exporter(data_dir=tmp_path / "data")

    def lose() -> None:
        exporter.kill9()
        shutil.rmtree(exporter.data_dir)
        exporter.start()

    def lose_twice() -> None:
        lose()
        lose()

    def forget() -> None:
        exporter.stop()
        command = [sys.executable, "-m", "optwrap_exporter", "forget", "lost", "--data-dir", str(exporter.data_dir)]
        subprocess.run(command, check=True, capture_output=True)
        exporter.start()

    def wait_until_known() -> None:
        wait_until(lambda: httpx.get(f"{exporter.url}/v1/runs/lost", trust_env=False).status_code == 200)

    # A short backoff, to save time.
    parts = Parts(environ={}, clock=Clock(jitter=lambda: 0.02))
    with optwrap.Monitor("lost", exporter.url, 0, attempt="1", interval=0.1, _parts=parts) as monitor:
        trained = Trained(monitor)
        for loss in (lambda: None, lose, lose_twice, forget):
            loss()
            wait_until_known()
            before = trained.steps
            trained.train(10)
            assert monitor.flush(60)
            answer = ask(exporter, "lost")
            totals = answer["totals"]
            assert (totals["steps"], answer["state_totals"]["steps"]) == (10, trained.steps)
            assert totals["not_finite_steps"] == trained.steps // 7 - before // 7
            assert answer["unseen"] == before
    forget()
    with optwrap.Monitor("lost", exporter.url, 0, attempt="2", interval=0.1) as monitor:
        anew = Trained(monitor)
        anew.train(3)
        assert monitor.flush(60)
    answer = ask(exporter, "lost")
    assert (answer["totals"]["steps"], answer["state_totals"]["steps"], answer["unseen"]) == (3, 3, 0)
