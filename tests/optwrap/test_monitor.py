"""A Monitor with its thread, over real sockets: reports, flush, close and the end."""

import contextlib
import gc
import json
import logging
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from optwrap_exporter.wire import requests as wire

from optwrap._monitor.monitor import Monitor
from optwrap._monitor.sending.schedule import Clock
from optwrap._monitor.sending.transport import HttpTransport
from tests.optwrap.monitoring import StubExporter, Training, counts, log_lines, refusal
from tests.polling import wait_until


def test_a_training_is_reported_from_hello_to_end(stub: StubExporter, make: Callable[..., Monitor]) -> None:
    """Every report is valid for the exporter; each step is there once; the sum is what ran."""
    training, monitor = Training(mini_step=2), make()
    monitor.describe(training.layout)
    stub.wait(lambda stub: stub.books.order)
    for n in range(50):
        if n % 10 == 9:
            monitor.observe(training.step("skipped_not_finite", {"head": n}).words())
        else:
            monitor.observe(training.step("accumulated").words())
    assert monitor.flush()
    monitor.close()

    books = stub.books
    for body in books.reports.values():
        wire.Report.model_validate_json(body)
    hello, last = books.order[0], books.order[-1]
    assert (hello["state"], counts(hello["totals"])) == ("starting", {})
    assert last["state"] == "finished"
    assert books.totals() == counts(training)
    assert sorted(step for _, step in books.steps()) == list(range(1, 51))
    assert [o["not_finite"] for r in books.order for o in r["offenders"]] == [9, 19, 29, 39, 49]
    assert {m for r in books.order for m in r["steps"]["mini_step"]} == {2}
    assert last["process"] == jax.process_index()
    assert last["source"] == {
        **last["source"],
        "platform": "cpu",
        "device_count": jax.device_count(),
        "process_count": 1,
        "jax_version": jax.__version__,
    }


def test_reports_go_on_while_a_step_runs_on_the_device(stub: StubExporter, make: Callable[..., Monitor]) -> None:
    """They show that the job is alive and takes no step."""

    @jax.jit
    def slow(words: Any, rounds: int) -> Any:
        matrix = jax.lax.fori_loop(0, rounds, lambda _, a: jnp.tanh(a @ a), jnp.full([256, 256], 0.1))
        return words + (0 * matrix[0, 0]).astype(jnp.uint32)

    training, monitor = Training(), make()
    monitor.describe(training.layout)
    for rounds in (0, *(500 * 2**n for n in range(10))):  # until the device is slow enough, on whatever machine
        before = len(stub.requests)
        words = slow(training.step().words(), rounds)
        monitor.observe(words)
        reports = 0
        while not words.is_ready():
            reports = len(stub.requests) - before
            time.sleep(0.005)
        if reports > 2:
            break
    assert reports > 2
    assert monitor.flush()
    assert stub.books.totals() == {"applied": training.steps}


def test_a_hanging_exporter_delays_no_step(stub: StubExporter, make: Callable[..., Monitor]) -> None:
    """A thousand steps are observed while a report waits for its answer. Afterwards all of them arrive."""
    go, ok = threading.Event(), stub.answer
    stub.answer = lambda *given: (go.wait(4), ok(*given))[1]
    training, monitor = Training(), make()
    monitor.describe(training.layout)
    for _ in range(1000):
        monitor.observe(training.step().words())
    assert not stub.books.order
    go.set()
    assert monitor.flush(30)
    assert stub.books.totals() == {"applied": 1000}


def test_no_bad_step_is_dropped_while_the_exporter_hangs(stub: StubExporter, make: Callable[..., Monitor]) -> None:
    """The inbox is read while a report waits for its answer, so a short inbox is enough."""
    go, ok = threading.Event(), stub.answer
    stub.answer = lambda *given: (go.wait(60), ok(*given))[1]
    patient = {"queue_size": 16, "transport": lambda settings: HttpTransport(settings.endpoint, answer_timeout=60)}
    training, monitor = Training(), make(parts=patient)
    monitor.describe(training.layout)
    assert monitor._lifecycle.worker is not None
    inbox = monitor._lifecycle.worker.inbox
    for n in range(20):
        for _ in range(8):
            monitor.observe(training.step("skipped_not_finite" if n == 1 else "applied").words())
        wait_until(lambda: not inbox.items, pause=0.005)
    assert not stub.books.order, "nothing was answered yet"
    go.set()
    assert monitor.flush(30)
    assert stub.books.totals() == {"applied": 152, "skipped_not_finite": 8}
    assert stub.books.dropped() == {"steps": 0, "bad_steps": 0}


def test_a_restarted_exporter_gets_everything_once(make: Callable[..., Monitor]) -> None:
    """Reports that were not acknowledged are sent again, unchanged."""
    first = StubExporter()
    training, monitor = Training(), make(endpoint=first.endpoint)
    monitor.describe(training.layout)
    for _ in range(5):
        monitor.observe(training.step().words())
    assert monitor.flush()
    first.close()
    for _ in range(5):
        monitor.observe(training.step().words())
    assert not monitor.flush(0.2)
    second = StubExporter(port=first.port)
    second.books = first.books
    try:
        assert monitor.flush(30)
        assert second.books.totals() == {"applied": 10}
        assert sorted(step for _, step in second.books.steps()) == list(range(1, 11))
    finally:
        monitor.close()
        second.close()


@pytest.mark.parametrize("status", [401, 404, 409, 415, 422])
def test_a_refusal_is_quoted_once(
    stub: StubExporter, make: Callable[..., Monitor], caplog: pytest.LogCaptureFixture, status: int
) -> None:
    """Training goes on as if there was no exporter."""
    stub.answer = refusal(status)
    training, monitor = Training(), make()
    monitor.describe(training.layout)
    monitor.observe(training.step().words())
    assert not monitor.flush()
    stub.wait(lambda stub: len(stub.requests) > 3)
    monitor.close()
    (line,) = log_lines(caplog)
    assert f"{status} run: got x y, allowed: a name" in line


def test_a_report_that_is_too_large_is_sent_in_parts(stub: StubExporter, make: Callable[..., Monitor]) -> None:
    """As small as the exporter wants them; no record is lost."""
    ok = stub.answer

    def answer(body: bytes, connection: Any) -> Any:
        return ok(body, connection) if len(json.loads(body)["steps"]["step"]) <= 7 else (413, {}, b"")

    stub.answer = answer
    training, monitor = Training(), make()
    monitor.describe(training.layout)
    for _ in range(100):
        monitor.observe(training.step().words())
    assert monitor.flush(30)
    assert stub.books.totals() == {"applied": 100}
    assert sorted(step for _, step in stub.books.steps()) == list(range(1, 101))
    assert stub.books.dropped() == {"steps": 0, "bad_steps": 0}


def test_flush_returns_whether_everything_arrived(make: Callable[..., Monitor]) -> None:
    """Without an exporter it returns False after its timeout, and also after `close`."""
    monitor = make(endpoint="http://127.0.0.1:9")
    assert not monitor.flush(0.05)
    monitor.close()
    assert not monitor.flush(0.05)


def test_threads_may_flush_at_the_same_time(
    stub: StubExporter, make: Callable[..., Monitor], caplog: pytest.LogCaptureFixture
) -> None:
    """While another thread observes."""
    training, monitor = Training(), make()
    monitor.describe(training.layout)
    answers: list[bool] = []
    threads = [threading.Thread(target=lambda: answers.append(monitor.flush(30))) for _ in range(16)]
    for thread in threads:
        monitor.observe(training.step().words())
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [True] * 16
    assert monitor.flush()
    assert stub.books.totals() == {"applied": 16}
    assert log_lines(caplog) == []


def test_a_second_close_is_ignored(stub: StubExporter, make: Callable[..., Monitor]) -> None:
    """The first state counts."""
    monitor = make()
    monitor.close("failed")
    monitor.close("finished")
    monitor.close()
    assert [report["state"] for report in stub.books.order].count("failed") == 1
    assert stub.books.order[-1]["state"] == "failed"
    assert monitor.flush()


def test_observing_after_close_is_logged_once_and_ignored(
    stub: StubExporter, make: Callable[..., Monitor], caplog: pytest.LogCaptureFixture
) -> None:
    """It must not stop the program."""
    monitor = make()
    monitor.close()
    for _ in range(3):
        monitor.observe(Training().step().words())
    (line,) = log_lines(caplog)
    assert "closed" in line
    assert stub.books.totals() == {}


def test_a_second_monitor_of_a_run_closes_the_first(
    stub: StubExporter, make: Callable[..., Monitor], caplog: pytest.LogCaptureFixture
) -> None:
    """Not one of another run, process or exporter. The first says so when it observes."""
    first, others = make(), [make(run="another"), make(process=1), make(endpoint="http://127.0.0.1:9")]
    training = Training()
    for monitor in (first, *others):
        monitor.describe(training.layout)
    first.observe(training.step().words())
    second = make()
    assert [r["state"] for r in stub.books.order if (r["run"], r["process"]) == ("r", 0)][-1] == "finished"
    second.describe(training.layout)
    second.observe(training.step().words())
    assert second.flush()
    assert stub.books.totals() == {"applied": 2}
    assert not [line for line in log_lines(caplog) if "closed" in line]
    first.observe(training.step().words())
    others[0].observe(training.words())
    (line,) = [line for line in log_lines(caplog) if "closed" in line]
    assert "a newer Monitor of run r" in line
    assert others[0].flush()


@pytest.mark.parametrize("state", ["running", "", 0, "Finished"])
def test_close_refuses_a_state_that_is_not_final(make: Callable[..., Monitor], state: Any) -> None:
    """The message has the value and what is allowed."""
    with pytest.raises(ValueError, match=r"state is .*allowed: 'finished', 'failed', 'stopped', or None"):
        make().close(state)


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (None, "finished"),
        (SystemExit(), "finished"),
        (SystemExit(0), "finished"),
        (SystemExit(1), "failed"),
        (SystemExit("no data"), "failed"),
        (KeyboardInterrupt(), "failed"),
        (ValueError("no"), "failed"),
    ],
)
def test_the_with_block_closes_as_finished_or_failed(
    stub: StubExporter, make: Callable[..., Monitor], error: BaseException | None, state: str
) -> None:
    """The exception propagates."""
    caught = contextlib.nullcontext() if error is None else pytest.raises(type(error))
    with caught, make():
        if error is not None:
            raise error
    assert stub.books.order[-1]["state"] == state


def test_a_monitor_that_is_collected_reports_the_end_and_leaves_no_thread(
    stub: StubExporter, make: Callable[..., Monitor]
) -> None:
    """Neither its thread nor the exit handlers keep it or its worker alive."""
    # Slowed down, so that a busy machine has 40 s and not 2 s for the last report.
    monitor = make(parts={"clock": Clock(monotonic=lambda: time.monotonic() / 20)})
    worker = monitor._lifecycle.worker
    assert worker is not None
    reference, behind = weakref.ref(monitor), weakref.ref(worker)
    assert monitor.flush(30)
    thread = worker.thread
    del monitor, worker
    gc.collect()
    assert reference() is None
    assert thread is not None
    thread.join(60)
    assert not thread.is_alive()
    (reports,) = stub.books.incarnations().values()
    assert reports[-1]["state"] == "finished"
    gc.collect()
    assert behind() is None


def test_training_goes_on_if_no_thread_can_be_started(
    make: Callable[..., Monitor], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """At the process's limit of threads there is one line in the log, and no report."""

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    monitor = make()
    monitor.observe(Training().step().words())
    monitor.observe(Training().step().words())
    assert monitor.flush()
    monitor.close()
    (line,) = log_lines(caplog)
    assert "can't start new thread" in line


def test_everything_is_logged_to_one_logger(make: Callable[..., Monitor], caplog: pytest.LogCaptureFixture) -> None:
    """Its name is "optwrap"; the lines are warnings, and the library installs no handler."""
    with caplog.at_level(logging.DEBUG):
        monitor = make(endpoint="http://127.0.0.1:9")
        monitor.flush(0.05)
        monitor.close()
    ours = [record for record in caplog.records if record.name.startswith("optwrap")]
    assert {(record.name, record.levelname) for record in ours} == {("optwrap", "WARNING")}
    assert logging.getLogger("optwrap").handlers == []
    assert len(ours) == 1
    assert "Connection refused" in ours[0].getMessage()
