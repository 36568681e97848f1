"""`Monitor(stop=...)`, `should_stop`, and how a run that stopped is reported."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optwrap_exporter.wire.consistency import parse_report

import optwrap
from optwrap import BadStep, Monitor, Replica, Stop, StopPolicy
from optwrap._monitor.queue import Ending
from tests.optwrap.monitoring import StubExporter, Training
from tests.optwrap.test_monitor_processes import begin, run

POLICY = StopPolicy(not_finite_streak=2, lag=1)


def ending(stub: StubExporter) -> tuple[str, str | None, int | None]:
    """State, reason and rollback hint in the last report, which has to be valid for the exporter."""
    last = stub.books.order[-1]
    report = parse_report(json.dumps(last))
    assert (report.state, report.reason, report.last_clean_step) == (
        last["state"], last.get("reason"), last.get("last_clean_step"),
    )  # fmt: skip
    return last["state"], last.get("reason"), last.get("last_clean_step")


def stopped(monitor: Monitor) -> Stop:
    """Observe three good steps and three bad ones; returns the decision."""
    training = Training()
    monitor.describe(training.layout, stepping=True)
    found = None
    for step in range(6):
        assert found is None
        monitor.observe((training.step("skipped_not_finite", {"head": 1}) if step > 2 else training.step()).words())
        found = monitor.should_stop()
    assert found is not None
    assert (found.step, found.last_clean_step) == (5, 3)
    return found


REASON = "not_finite_streak: 2 steps in a row had non-finite gradients"


def test_a_jitted_training_stops_without_an_exporter_or_a_thread() -> None:
    """Eight batches a step by scan; the guard gives up at the third NaN in a row."""
    monitor = Monitor(endpoint="off", stop=StopPolicy(accepted_not_finite=1, lag=1))
    tx = optwrap.instrument(optwrap.apply_if_finite(optax.sgd(0.1), max_consecutive_errors=2), monitor)

    @jax.jit
    def steps(params: Any, state: Any, batches: Any) -> Any:
        def step(carry: Any, batch: Any) -> Any:
            params, state = carry
            params, state = optwrap.apply_gradients(tx, {"w": batch * params["w"]}, state, params)
            return (params, state), optwrap.reading(state)

        return jax.lax.scan(step, (params, state), batches)

    params: Any = {"w": jnp.ones(2)}
    carry = params, tx.init(params)
    asked = []
    for block in range(4):
        batches = np.ones((8, 2), np.float32)
        if block == 1:
            batches[3:] = np.nan  # steps 12 to 16
        carry, readings = steps(*carry, batches)
        monitor.observe(readings)
        asked.append(monitor.should_stop())
    assert asked[:2] == [None, None]
    assert asked[2] is asked[3]
    stop = asked[2]
    assert stop is not None
    assert (stop.step, stop.first_bad_step, stop.last_clean_step) == (14, 12, 11)
    assert [(bad.step, bad.outcome, bad.parameter) for bad in stop.bad_steps] == [
        (12, "skipped_not_finite", "w"), (13, "skipped_not_finite", "w"), (14, "accepted_not_finite", "w"),
    ]  # fmt: skip
    monitor.close()


def test_leaving_the_block_after_a_stop_reports_it_with_the_hint(
    stub: StubExporter, make: Callable[..., Monitor]
) -> None:
    """No argument of `close` is needed."""
    with make(stop=POLICY) as monitor:
        stopped(monitor)
    assert ending(stub) == ("stopped", REASON, 3)


def test_sys_exit_in_the_block_after_a_stop_is_no_failure(stub: StubExporter, make: Callable[..., Monitor]) -> None:
    """The program ends with the exit code of the stop."""
    with pytest.raises(SystemExit) as exit_, make(stop=POLICY) as monitor:
        raise SystemExit(stopped(monitor).exit_code)
    assert exit_.value.code == 65
    assert ending(stub) == ("stopped", REASON, 3)


def test_a_program_that_exits_after_a_stop_without_closing_has_stopped(stub: StubExporter) -> None:
    """The interpreter's exit closes the Monitor."""
    process = begin(
        stub,
        """
        import optwrap
        monitor = start(process=0, stop=optwrap.StopPolicy(not_finite_streak=1, lag=0))
        monitor.observe(training.step().words())
        monitor.observe(training.step("skipped_not_finite", {"head": 1}).words())
        sys.exit(monitor.should_stop().exit_code)
        """,
    )
    _, error = process.communicate(timeout=120)
    assert process.returncode == 65, error
    assert ending(stub)[::2] == ("stopped", 1)


def test_an_exception_after_a_stop_is_a_failure_with_type_and_message(
    stub: StubExporter, make: Callable[..., Monitor]
) -> None:
    """The rollback itself may fail. The reason is one line that the wire allows."""

    def train() -> None:
        with make(stop=POLICY) as monitor:
            stopped(monitor)
            raise OSError("no space\n\tleft \x1b[31m" + 300 * "!")

    with pytest.raises(OSError, match="no space"):
        train()
    state, reason, clean = ending(stub)
    assert (state, clean) == ("failed", None)
    assert reason is not None
    assert reason.startswith("OSError: no space left ?[31m!!!")
    assert len(reason) == 256


def test_an_uncaught_exception_outside_a_block_is_the_reason(stub: StubExporter) -> None:
    """The Monitor sees it at exit."""
    process = begin(stub, "monitor = start(process=0); raise ValueError('no more data')")
    process.communicate(timeout=120)
    assert ending(stub) == ("failed", "ValueError: no more data", None)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (("stopped", None), ("stopped", REASON, 3)),
        (("stopped", "by hand"), ("stopped", "by hand", 3)),
        (("finished", "good enough"), ("finished", "good enough", None)),
        ((None, None), ("stopped", REASON, 3)),
    ],
)
def test_close_takes_state_and_reason(
    given: Any, expected: Any, stub: StubExporter, make: Callable[..., Monitor]
) -> None:
    """By default those of the stop."""
    monitor = make(stop=POLICY)
    stopped(monitor)
    monitor.close(*given)
    assert ending(stub) == expected


def test_a_stop_by_hand_needs_no_policy(stub: StubExporter, make: Callable[..., Monitor]) -> None:
    """Then there is no hint."""
    monitor = make()
    monitor.observe(Training().step().words())
    assert monitor.should_stop() is None
    monitor.close("stopped", "time is up")
    assert ending(stub) == ("stopped", "time is up", None)


def test_after_a_rollback_in_the_same_process_the_run_finishes(
    stub: StubExporter, make: Callable[..., Monitor]
) -> None:
    """The stop is forgotten as soon as the reading of an older step is old enough to be decided from."""
    training = Training().step()
    clean = training.saved()
    with make(stop=StopPolicy(not_finite_streak=1, lag=0)) as monitor:
        monitor.describe(training.layout, stepping=True)
        monitor.observe(training.words())
        monitor.observe(training.step("skipped_not_finite", {"head": 1}).words())
        assert monitor.should_stop()
        monitor.observe(clean.step().words())
        assert monitor.should_stop() is None
    assert ending(stub) == ("finished", None, None)


def test_a_resumed_training_does_not_stop_because_of_old_counts(make: Callable[..., Monitor]) -> None:
    """Its counters have a streak, accepted steps and skipped steps in them already."""
    training = Training()
    for _ in range(5):
        training.step("accepted_not_finite", {"head": 1}).step("skipped_large")
    for _ in range(3):
        training.step("skipped_not_finite", {"head": 1})
    monitor = make(stop=StopPolicy(not_finite_streak=4, accepted_not_finite=2, skipped=(4, 1000), lag=0))
    for outcome in ["skipped_not_finite"] * 3 + ["applied", "accepted_not_finite"]:
        monitor.observe(training.step(outcome, {"head": 1} if outcome != "applied" else {}).words())
        assert monitor.should_stop() is None
    monitor.observe(training.step("accepted_not_finite", {"head": 1}).words())
    stop = monitor.should_stop()
    assert stop is not None
    assert stop.reason == "accepted_not_finite: non-finite values were accepted in 2 steps"


def test_without_a_policy_observe_does_what_it_did(make: Callable[..., Monitor]) -> None:
    """What it calls is the queue itself, so it costs nothing."""
    monitor = make()
    assert monitor._lifecycle.worker is not None
    assert monitor._lifecycle.put == monitor._lifecycle.worker.inbox.put
    assert Monitor(endpoint="off")._lifecycle.put is None


def test_observe_does_not_raise_and_should_stop_does(make: Callable[..., Monitor]) -> None:
    """A policy that could never hold must not pass unseen, even if the loop asks seldom."""
    monitor = make(stop=StopPolicy(not_finite_streak=1, lag=0))
    monitor.observe(jnp.zeros(3))
    with pytest.raises(ValueError, match=r"observe: got float32\[3\]; allowed"):
        monitor.should_stop()
    assert monitor.should_stop() is None
    monitor.observe(jnp.zeros(4))
    for _ in range(3):
        monitor.observe(Training().step().words())
    with pytest.raises(ValueError, match=r"observe: got float32\[4\]; allowed"):
        monitor.should_stop()
    assert monitor.should_stop() is None


def test_a_forked_child_decides_from_its_own_readings(stub: StubExporter) -> None:
    """Also if it does not report."""
    out = run(
        stub,
        """
        import optwrap
        monitor = start(process=0, endpoint="off", stop=optwrap.StopPolicy(not_finite_streak=1, lag=0))
        words = [np.asarray(training.step("skipped_not_finite", {"head": 1}).words()) for _ in range(2)]
        if not (child := os.fork()):
            monitor.observe(words[0])
            os._exit(monitor.should_stop().step)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), monitor.should_stop())
        """,
    )
    assert out.split() == ["1", "None"]


def test_the_callback_is_refused_with_a_policy() -> None:
    """Callbacks arrive at another time on each host."""
    monitor = Monitor(endpoint="off", stop=POLICY)
    with pytest.raises(ValueError, match=r'no stop policy with emit="callback".*use emit="reading"'):
        optwrap.instrument(optax.sgd(0.1), monitor, emit="callback")
    optwrap.instrument(optax.sgd(0.1), monitor)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "got no condition; allowed: at least one of"),
        ({"not_finite_streak": 0}, ValueError, "not_finite_streak is 0; allowed: an integer from 1"),
        ({"not_finite_streak": True}, TypeError, "not_finite_streak is True; allowed"),
        ({"accepted_not_finite": 1.0}, TypeError, r"accepted_not_finite is 1\.0; allowed"),
        ({"skipped": 5}, TypeError, r"skipped is 5; allowed: \(n, window\)"),
        ({"skipped": (5, 4)}, ValueError, "skipped's n is 5; allowed: an integer from 1 to 4"),
        ({"skipped": (1, 2**31)}, ValueError, "skipped's window is 2147483648; allowed"),
        ({"not_finite_streak": 1, "lag": -1}, ValueError, "lag is -1; allowed: an integer from 0 to 1024"),
        ({"not_finite_streak": 1, "lag": 1025}, ValueError, "lag is 1025"),
    ],
)
def test_a_wrong_policy_says_what_is_allowed(arguments: Any, error: type[Exception], message: str) -> None:
    """The message names the field and the value."""
    with pytest.raises(error, match=message):
        StopPolicy(**arguments)


def test_a_policy_takes_numpy_integers_and_lists() -> None:
    """Settings often come from a file."""
    policy = StopPolicy(not_finite_streak=np.int64(3), skipped=[np.int32(2), 9])  # type: ignore[arg-type]
    assert policy == StopPolicy(not_finite_streak=3, skipped=(2, 9), lag=8)
    assert Monitor(endpoint="off", stop=policy).stop_policy is policy
    assert Monitor(endpoint="off").stop_policy is None
    with pytest.raises(TypeError, match=r"stop: got 5; allowed: an optwrap\.StopPolicy"):
        Monitor(endpoint="off", stop=5)  # type: ignore[arg-type]


def a_stop(*steps: int) -> Stop:
    bad = tuple(BadStep(n, "skipped_not_finite", "head", 2, Replica(5, 1, "tpu:5"), 1) for n in steps)
    return Stop("skipped: 2 of the last 9 steps were skipped", steps[-1], steps[0], steps[0] - 1, bad)


def test_saved_stops_add_up_in_one_file(tmp_path: Path) -> None:
    """So every launch leaves out the bad batches of all launches before it."""
    file = tmp_path / "skip_batches.json"
    for _ in range(2):  # as two processes
        a_stop(7, 9).save(file)
    a_stop(20).save(str(file), batch_of=lambda step: step + 2)
    found = json.loads(file.read_text())
    assert found["version"] == 1
    assert found["batches"] == [7, 9, 22]
    first, second = found["stops"]
    assert first == {
        "reason": "skipped: 2 of the last 9 steps were skipped",
        "step": 9,
        "first_bad_step": 7,
        "last_clean_step": 6,
        "bad_steps": [
            {
                "step": step,
                "batch": step,
                "outcome": "skipped_not_finite",
                "parameter": "head",
                "parameter_count": 2,
                "replica": {"number": 5, "process": 1, "device": "tpu:5"},
                "replica_count": 1,
            }
            for step in (7, 9)
        ],
        "unlisted": 0,
    }
    assert [bad["batch"] for bad in second["bad_steps"]] == [22]
    assert [path.name for path in tmp_path.iterdir()] == ["skip_batches.json"]


@pytest.mark.parametrize("content", ["", "[]", '{"version": 2, "stops": []}', '{"version": 1, "stops": [{}]}'])
def test_a_file_of_something_else_is_not_overwritten(content: str, tmp_path: Path) -> None:
    """It is left as it is."""
    file = tmp_path / "data.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=r"data\.json was not written by Stop\.save"):
        a_stop(7).save(file)
    assert file.read_text() == content


def test_an_ending_without_a_stop_is_finished() -> None:
    """What `close` says by default."""
    assert Ending.of(None, None, None) == Ending("finished")
