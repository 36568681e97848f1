"""A Monitor as a training program has it: with its thread, over real sockets, with arrays of JAX's."""

import contextlib
import gc
import json
import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import ANY

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optwrap_exporter.wire import requests as wire

import optwrap
from optwrap._monitor.monitor import Monitor, Parts
from optwrap._monitor.transport import HttpTransport
from optwrap._reading.state import reading
from optwrap._reading.unpack import Layout
from optwrap._step.instrument import instrument
from tests.optwrap.monitoring import StubExporter, Training, counts, refusal, waiting


@pytest.fixture
def make(stub: StubExporter) -> Iterator[Callable[..., Monitor]]:
    """Makes Monitors that report to `stub`, to be closed after the test."""
    jax.devices()  # who reports is known once JAX has its devices
    made: list[weakref.ref[Monitor]] = []

    def monitor(**arguments: Any) -> Monitor:
        parts = Parts(environ={}, **arguments.pop("parts", {}))
        new = Monitor(**{"run": "r", "endpoint": stub.endpoint, "interval": 0.02, "_parts": parts, **arguments})
        made.append(weakref.ref(new))
        return new

    yield monitor
    for reference in made:
        if (alive := reference()) is not None:
            alive.close()


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "optwrap"]


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "optwrap-monitor"]


def test_a_training_is_reported_from_hello_to_end(stub: StubExporter, make: Callable[..., Monitor]) -> None:
    """Every report is one that the exporter's models take; each step is there once; the sum is what has run."""
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


@pytest.mark.parametrize("way", ["reading", "callback", "scan"])
def test_a_real_step_is_reported(stub: StubExporter, make: Callable[..., Monitor], way: str) -> None:
    """An instrumented optimizer in a jitted, donating step: names, norms and outcomes arrive as they were.

    Whether the loop observes what the step returned, the step itself reports, or a scan of steps is observed at once.
    """
    monitor = make()
    tx = instrument(
        optwrap.apply_if_finite(optax.sgd(0.1), 3), monitor, emit="callback" if way == "callback" else "reading"
    )

    def step(carry: Any, value: Any) -> Any:
        params, state = carry
        gradients = {"layer": {"w": jnp.full([3], value), "b": jnp.zeros([])}}
        updates, state = tx.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), reading(state)

    params = {"layer": {"w": jnp.ones([3]), "b": jnp.zeros([])}}
    carry, values = (params, tx.init(params)), jnp.array([1.0, jnp.inf, 2.0])
    if way == "scan":
        carry, words = jax.jit(lambda carry: jax.lax.scan(step, carry, values), donate_argnums=0)(carry)
        monitor.observe(words)
    else:
        jitted = jax.jit(step, donate_argnums=0)
        for value in values:
            carry, words = jitted(carry, value)
            if way == "reading":
                monitor.observe(words)
    jax.block_until_ready(carry)
    monitor.observe(reading(carry[1]))  # the last step once more, as a program does after its loop
    assert monitor.flush()
    assert stub.books.totals() == {
        "applied": 2,
        "skipped_not_finite": 1,
        "not_finite_steps": 1,
        "parameter layer/w": 1,
    }
    columns = {name: [x for r in stub.books.order for x in r["steps"][name]] for name in ("step", "finite", "norm")}
    assert columns == {
        "step": [1, 2, 3],
        "finite": [True, False, True],
        "norm": [pytest.approx(3**0.5), "Infinity", ANY],
    }
    assert [o for r in stub.books.order for o in r["offenders"]] == [
        {"step": 2, "parameter": "layer/w", "not_finite": 3}
    ]


def test_a_restored_state_observed_before_the_loop_is_where_counting_begins(
    stub: StubExporter, make: Callable[..., Monitor]
) -> None:
    """Said, or seen from its coming before any step was traced, however often init was."""
    training = Training()
    for _ in range(10):
        training.step()
    cases = [
        (None, [], 1),
        (None, [False], 1),
        (None, [False, False], 1),
        (None, [False, True], 2),
        (None, [True], 2),
        (True, [False, True], 1),
        (False, [], 2),
        (False, [False], 2),
    ]
    for said, traced, steps in cases:
        monitor, saved = make(), training.saved()
        for stepping in traced:
            monitor.describe(saved.layout, stepping=stepping)
        monitor.observe(saved.words(), restored=said)
        monitor.describe(saved.layout, stepping=True)
        monitor.observe(saved.step().words())
        assert monitor.flush()
        monitor.close()
        assert stub.books.totals() == {"applied": steps}, (said, traced)
        stub.books.__init__()  # type: ignore[misc]  # begin new books


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=100),
    st.lists(st.integers(0, 9), max_size=3),
    st.dictionaries(st.text(max_size=2), st.none(), max_size=2),
    st.builds(object),
    st.sampled_from([np.uint32, np.int32, np.float32, np.bool_, np.object_]).flatmap(
        lambda dtype: st.lists(st.integers(0, 3), max_size=3).map(lambda shape: np.zeros(shape, dtype))
    ),
    st.lists(st.integers(0, 30), min_size=1, max_size=2).map(lambda shape: jnp.zeros(shape, jnp.uint32)),
    st.lists(st.integers(0, 2**32 - 1), min_size=28, max_size=28).map(lambda words: np.array(words, np.uint32)),
)


class Nasty:
    """An object that raises whatever is asked of it."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)


def test_observe_never_raises_and_what_is_no_reading_changes_nothing(
    stub: StubExporter, make: Callable[..., Monitor], caplog: pytest.LogCaptureFixture
) -> None:
    """None, strings, arrays of other types and shapes, objects that raise: a line or two, and the count goes on."""
    training, monitor = Training(), make()
    monitor.describe(training.layout)

    @hypothesis.settings(deadline=None, max_examples=150)
    @hypothesis.given(ODD)
    def feed(odd: object) -> None:
        monitor.observe(odd)

    feed()
    monitor.observe(Nasty())
    monitor.observe(training.step().words())
    assert monitor.flush(30)
    assert stub.books.totals() == {"applied": 1}
    said = lines(caplog)
    assert 3 <= len(said) <= 8, "one of each kind"
    assert len({line.partition("; allowed")[0] for line in said}) == len(said)
    assert all("passed over" in line or "was lost" in line for line in lines(caplog))


def test_each_kind_of_mistake_is_said_once(
    stub: StubExporter, make: Callable[..., Monitor], caplog: pytest.LogCaptureFixture
) -> None:
    """Two that are both a ValueError are two kinds; the same one with other values is not."""
    monitor = make()
    for odd in (None, "x", np.zeros(3), np.zeros(4), np.zeros(28, np.uint32), np.ones(28, np.uint32)):
        monitor.observe(odd)
    assert monitor.flush()
    kinds = ("got a NoneType", "got float64[3]", "first word is 0x0")
    assert [kind for kind in kinds for line in lines(caplog) if kind in line] == list(kinds)
    assert len(lines(caplog)) == len(kinds)
    assert stub.books.totals() == {}


def test_a_value_under_trace_and_a_donated_reading_are_passed_over(
    stub: StubExporter, make: Callable[..., Monitor], caplog: pytest.LogCaptureFixture
) -> None:
    """Each with one line that says so; neither stops what comes after."""
    training, monitor = Training(), make()
    monitor.describe(training.layout)
    jax.jit(lambda x: (monitor.observe(x), x + 1)[1])(jnp.zeros([28], jnp.uint32))
    donated = training.saved().step().words()
    donated.delete()
    monitor.observe(donated)
    monitor.observe(training.step().words())
    assert monitor.flush()
    assert stub.books.totals() == {"applied": 1}
    traced, deleted = lines(caplog)
    assert "traced value" in traced
    assert "deleted" in deleted


def test_two_instrumentations_with_equal_parameters_are_told_apart(
    make: Callable[..., Monitor], caplog: pytest.LogCaptureFixture
) -> None:
    """One line, whatever they count. One traced again, or built anew when the old one is gone, is no other."""
    monitor = make()
    params = {"w": jnp.ones(3)}

    def built() -> Any:
        tx = instrument(optax.sgd(0.1), monitor)
        for _ in range(2):
            jax.eval_shape(tx.update, params, tx.init(params))
        return tx

    for _ in range(3):
        built()
    assert not lines(caplog)
    both = built(), built()
    jax.eval_shape(both[0].update, params, both[0].init(params))
    (line,) = lines(caplog)
    assert "two instrumentations with the same parameters" in line
    assert "give each instrument its own Monitor" in line


@pytest.mark.parametrize("told", [True, False])
def test_of_a_fresh_training_seen_now_and_then_only_a_look_before_it_tells_the_first_steps(
    stub: StubExporter, make: Callable[..., Monitor], told: bool
) -> None:
    """A state at its third step may be a restored one as well: only what was seen before tells."""
    monitor, training = make(), Training()
    monitor.describe(training.layout)
    if told:
        monitor.observe(training.words())
    monitor.describe(training.layout, stepping=True)
    for number in range(1, 10):
        training.step()
        if number % 3 == 0:
            monitor.observe(training.words())
    assert monitor.flush()
    assert stub.books.totals() == {"applied": 9 if told else 7}


def test_a_reading_of_another_instrumentation_is_refused(
    stub: StubExporter, make: Callable[..., Monitor], caplog: pytest.LogCaptureFixture
) -> None:
    """Two layouts for one Monitor: a line; from then on it takes the newer one's readings, and of the other none."""
    old, new, monitor = Training(), Training(("w",)), make()
    monitor.describe(old.layout)
    monitor.observe(old.step().words())
    assert monitor.flush()
    for _ in range(3):
        monitor.describe(new.layout)
    monitor.observe(old.step().words())
    monitor.observe(old.step().words())
    monitor.observe(new.step("skipped_not_finite", {"w": 1}).words())
    assert monitor.flush()
    assert stub.books.totals() == {
        "applied": 1,
        "skipped_not_finite": 1,
        "not_finite_steps": 1,
        "parameter w": 1,
    }
    second, passed = lines(caplog)
    assert "second instrumentation" in second
    assert "another instrumentation" in passed


def test_what_the_caller_does_to_its_array_afterwards_is_not_reported(
    stub: StubExporter, make: Callable[..., Monitor]
) -> None:
    """An array of the host's may be reused for the next step at once."""
    training, monitor = Training(), make()
    monitor.describe(training.layout)
    buffer = np.array(training.step().words())
    monitor.observe(buffer)
    buffer[:] = 0
    assert monitor.flush()
    assert stub.books.totals() == {"applied": 1}


def test_a_step_that_hangs_on_the_device_stops_no_report(stub: StubExporter, make: Callable[..., Monitor]) -> None:
    """The job is seen to be alive and not to step, and that is what there is to see."""

    @jax.jit
    def long(words: jax.Array) -> jax.Array:
        matrix = jax.lax.fori_loop(0, 600, lambda _, a: jnp.tanh(a @ a), jnp.full([256, 256], 0.1))
        return words + (0 * matrix[0, 0]).astype(jnp.uint32)

    training, monitor = Training(), make()
    monitor.describe(training.layout)
    words = training.step().words()
    long.lower(words).compile()
    words = long(words)
    monitor.observe(words)
    before = len(stub.requests)
    while not words.is_ready():
        seen = len(stub.requests)
        time.sleep(0.005)
    assert seen > before + 2
    assert monitor.flush()
    assert stub.books.totals() == {"applied": 1}


def test_an_exporter_that_hangs_delays_nobody(stub: StubExporter, make: Callable[..., Monitor]) -> None:
    """A thousand steps are observed while a report waits for its answer; afterwards all of them are there."""
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


def test_while_the_exporter_hangs_no_bad_step_has_to_go(stub: StubExporter, make: Callable[..., Monitor]) -> None:
    """Readings are taken in while a report waits for its answer, so that a short inbox is enough."""
    go, ok = threading.Event(), stub.answer
    stub.answer = lambda *given: (go.wait(60), ok(*given))[1]
    patient = {"queue_size": 16, "transport": lambda settings: HttpTransport(settings.endpoint, answer_timeout=60)}
    training, monitor = Training(), make(parts=patient)
    monitor.describe(training.layout)
    assert monitor._work is not None
    inbox = monitor._work.inbox
    for n in range(20):
        with waiting(lambda: not inbox.items):
            for _ in range(8):
                monitor.observe(training.step("skipped_not_finite" if n == 1 else "applied").words())
    assert not stub.books.order, "nothing was answered yet"
    go.set()
    assert monitor.flush(30)
    assert stub.books.totals() == {"applied": 152, "skipped_not_finite": 8}
    assert stub.books.dropped() == {"steps": 0, "bad_steps": 0}


def test_an_exporter_that_restarts_gets_everything_once(make: Callable[..., Monitor]) -> None:
    """What was sent and not acknowledged comes again, unchanged; the books of before and after agree."""
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
def test_an_exporter_that_refuses_is_quoted_once(
    stub: StubExporter, make: Callable[..., Monitor], caplog: pytest.LogCaptureFixture, status: int
) -> None:
    """And the training ends as it would have."""
    stub.answer = refusal(status)
    training, monitor = Training(), make()
    monitor.describe(training.layout)
    monitor.observe(training.step().words())
    assert not monitor.flush()
    stub.wait(lambda stub: len(stub.requests) > 3)
    monitor.close()
    (line,) = lines(caplog)
    assert f"{status} run: got x y, allowed: a name" in line


def test_a_report_that_is_too_large_is_sent_in_parts(stub: StubExporter, make: Callable[..., Monitor]) -> None:
    """Down to what the exporter takes; no record is lost over it."""
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


def test_flush_says_whether_everything_arrived(make: Callable[..., Monitor]) -> None:
    """With nobody there it says no after its time, and after the end too."""
    monitor = make(endpoint="http://127.0.0.1:9")
    assert not monitor.flush(0.05)
    monitor.close()
    assert not monitor.flush(0.05)


def test_many_may_flush_at_once(
    stub: StubExporter, make: Callable[..., Monitor], caplog: pytest.LogCaptureFixture
) -> None:
    """From any thread, while another one observes."""
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
    assert lines(caplog) == []


def test_flush_does_not_wait_for_names(stub: StubExporter, make: Callable[..., Monitor]) -> None:
    """Of an instrument that was not given the Monitor none will come."""
    monitor = make()
    monitor.observe(Training().step("skipped_not_finite", {"head": 1}).words())
    assert monitor.flush()
    assert stub.books.totals() == {"skipped_not_finite": 1, "not_finite_steps": 1, "parameter leaf_2": 1}


def test_closing_twice_is_closing_once(stub: StubExporter, make: Callable[..., Monitor]) -> None:
    """The first word counts."""
    monitor = make()
    monitor.close("failed")
    monitor.close("finished")
    monitor.close()
    assert [report["state"] for report in stub.books.order].count("failed") == 1
    assert stub.books.order[-1]["state"] == "failed"
    assert monitor.flush()


def test_observing_after_the_end_is_said_once_and_ignored(
    stub: StubExporter, make: Callable[..., Monitor], caplog: pytest.LogCaptureFixture
) -> None:
    """It is a mistake in the program, and none that may stop it."""
    monitor = make()
    monitor.close()
    for _ in range(3):
        monitor.observe(Training().step().words())
    (line,) = lines(caplog)
    assert "closed" in line
    assert stub.books.totals() == {}


def test_a_second_monitor_of_a_run_is_said(make: Callable[..., Monitor], caplog: pytest.LogCaptureFixture) -> None:
    """One that follows a closed one is no second, nor is one of another run, process or exporter."""

    def said() -> list[str]:
        return [line for line in lines(caplog) if "second Monitor" in line]

    make().close()
    alive = [make(), make(run="another"), make(process=1), make(endpoint="http://127.0.0.1:9")]
    assert said() == []
    alive.append(make())
    (line,) = said()
    assert "run r " in line
    assert "close the first one" in line
    for monitor in alive:
        monitor.close()


@pytest.mark.parametrize("state", ["running", "", None, "Finished"])
def test_a_state_that_is_no_end_is_refused(make: Callable[..., Monitor], state: Any) -> None:
    """By value, with what is allowed."""
    with pytest.raises(ValueError, match=r"state is .*allowed: 'finished' or 'failed'"):
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
def test_leaving_the_block_closes_as_it_was_left(
    stub: StubExporter, make: Callable[..., Monitor], error: BaseException | None, state: str
) -> None:
    """And what was raised is raised on."""
    caught = contextlib.nullcontext() if error is None else pytest.raises(type(error))
    with caught, make():
        if error is not None:
            raise error
    assert stub.books.order[-1]["state"] == state


def test_a_monitor_that_is_dropped_reports_the_end_and_leaves_no_thread(
    stub: StubExporter, make: Callable[..., Monitor]
) -> None:
    """Nothing of ours keeps it alive."""
    monitor = make()
    work = monitor._work
    assert work is not None
    reference, behind = weakref.ref(monitor), weakref.ref(work)
    assert monitor.flush()
    thread = work.thread
    with waiting(lambda: thread is not None and not thread.is_alive()):
        del monitor, work
        gc.collect()
        assert reference() is None
    assert stub.books.order[-1]["state"] == "finished"
    gc.collect()
    assert behind() is None, "nor does its thread, nor the exit of the process, keep anything"


def test_a_thread_that_cannot_be_started_stops_no_training(
    make: Callable[..., Monitor], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A process at its limit of threads trains on, unreported, and says so once."""

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    monitor = make()
    monitor.observe(Training().step().words())
    monitor.observe(Training().step().words())
    assert monitor.flush()
    monitor.close()
    (line,) = lines(caplog)
    assert "can't start new thread" in line


def test_its_words_are_for_one_logger(make: Callable[..., Monitor], caplog: pytest.LogCaptureFixture) -> None:
    """Of the name "optwrap", as warnings, without a handler of our own."""
    with caplog.at_level(logging.DEBUG):
        monitor = make(endpoint="http://127.0.0.1:9")
        monitor.flush(0.05)
        monitor.close()
    ours = [record for record in caplog.records if record.name.startswith("optwrap")]
    assert {(record.name, record.levelname) for record in ours} == {("optwrap", "WARNING")}
    assert logging.getLogger("optwrap").handlers == []
    assert len(ours) == 1
    assert "Connection refused" in ours[0].getMessage()


def test_a_layout_is_compared_by_what_it_says(make: Callable[..., Monitor], caplog: pytest.LogCaptureFixture) -> None:
    """The step may be traced any number of times, each time with a new object."""
    monitor = make()
    for _ in range(3):
        monitor.describe(Layout(("a", "b")))
    assert lines(caplog) == []
