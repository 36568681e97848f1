"""The demo, as a newcomer runs it: what the exporter answers is what was put in, whatever happens on the way.

The truth is computed from the table of faults alone, by a few lines that know neither optax nor optwrap.
"""

import collections
import contextlib
import dataclasses
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.demo.data import Corpus
from examples.demo.faults import Damage, Outcome
from examples.demo.options import parse
from examples.demo.settings import (
    EVERY_K,
    FULL,
    MAX_CONSECUTIVE_ERRORS,
    MAX_NORM,
    QUICK,
    REBASE_AFTER,
    SAVE_EVERY,
    STOP_AFTER,
    Settings,
)
from tests.conftest import RunningExporter
from tests.polling import wait_until

pytestmark = pytest.mark.timeout(240)
REPOSITORY = Path(__file__).parents[2]
MANY = 2000
"""Micro-steps of a training in which there is time to do something; short as steps are, some seconds."""
LAG = 8
"""Readings by which a decision to stop is late, as `StopPolicy` documents."""
CORPUS = Corpus(context=FULL.context, layers=FULL.layers)


# --- the truth -----------------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """A step that was taken."""

    step: int
    outcome: str
    mini_step: int
    """Mini-steps in the window after it."""
    parameter: str | None
    """The parameter that was not finite."""
    streak: int
    """Non-finite steps in a row up to this one."""


@dataclasses.dataclass(frozen=True)
class Truth:
    """What must come of a table of faults."""

    rows: list[Row]
    """Every step, in the order in which they were taken; after a rollback a number occurs again."""
    state: list[Row]
    """The steps of the state at the end."""
    rebases: int
    left_out: tuple[int, ...] = ()
    """The batches that were left out after a stop."""

    @property
    def longest_streak(self) -> int:
        return max(row.streak for row in self.state)

    @property
    def parameters(self) -> list[tuple[str, int, int, int]]:
        """Of each bad parameter: path, steps, first step, last step; in no order."""
        steps_of = collections.defaultdict(list)
        for row in self.rows:
            if row.parameter is not None:
                steps_of[row.parameter].append(row.step)
        return sorted((path, len(steps), steps[0], steps[-1]) for path, steps in steps_of.items())


def totals(rows: Sequence[Row]) -> dict[str, Any]:
    """The totals of these steps."""
    counted = collections.Counter(row.outcome for row in rows)
    names = (
        *("applied", "accumulated", "skipped_not_finite", "skipped_large", "skipped_other"),
        "accepted_not_finite",
    )
    return {
        "steps": len(rows),
        "gradient_steps": counted["applied"],
        "outcomes": {name: counted[name] for name in names},
        "skipped": {reason: counted[f"skipped_{reason}"] for reason in ("not_finite", "large", "other")},
        "not_finite_steps": sum(row.parameter is not None for row in rows),
        "accepted_not_finite": 0,
    }


def taken(table: Settings, batches: Sequence[int]) -> tuple[list[Row], int]:
    """The steps on these batches and the rebases: the guard sees each step first, the window what the guard lets in."""
    rows = []
    in_window = streak = rebases = 0
    for step, batch in enumerate(batches, 1):
        faults = [fault for fault in table.faults if fault.first <= batch < fault.first + fault.count]
        shifted = [batch - fault.first + 1 for fault in faults if fault.damage.outcome is Outcome.NEW_LEVEL]
        rebases += shifted == [REBASE_AFTER]
        overflowing = [fault.layer for fault in faults if fault.damage.outcome is Outcome.NOT_FINITE]
        parameter = f"decoder/layer_{overflowing[0]}/probe/w" if overflowing else None
        streak = streak + 1 if overflowing else 0
        assert streak <= MAX_CONSECUTIVE_ERRORS, "the guard gives up: the lines below do not hold"
        if overflowing:
            outcome = "skipped_not_finite"
        elif faults and not (shifted and shifted[0] >= REBASE_AFTER):
            outcome = "skipped_large"
        else:
            in_window = (in_window + 1) % EVERY_K
            outcome = "accumulated" if in_window else "applied"
        rows.append(Row(step, outcome, in_window, parameter, streak))
    return rows, rebases


def truth(table: Settings, steps: int | None = None, *, stops: bool = True) -> Truth:
    """What `table`'s faults come to: with a stop and a rollback at the first streak that is long enough."""
    batches = range(1, (steps or table.steps) + 1)
    rows, rebases = taken(table, batches)
    stop = next((row.step for row in rows if row.streak == STOP_AFTER), None)
    if stop is None or not stops:
        return Truth(rows, rows, rebases)
    clean = max(row.step for row in rows[:stop] if not row.outcome.startswith("skipped"))
    left_out = tuple(range(clean + 1, stop + 1))
    state, rebases = taken(table, [batch for batch in batches if batch not in left_out])
    assert all(row.streak < STOP_AFTER for row in state)
    restored = clean // SAVE_EVERY * SAVE_EVERY
    return Truth(rows[: stop + LAG] + state[restored:], state, rebases, left_out)


def assert_is(answer: Mapping[str, Any], expected: Truth) -> None:
    """The exporter's answer about a run that one process lived from its start to its end."""
    all_steps = totals(expected.rows)
    assert answer["totals"] == all_steps
    assert answer["state_totals"] == totals(expected.state)
    assert answer["gauges"]["not_finite_streak_peak"] == expected.longest_streak
    assert answer["gauges"]["not_finite_streak"] == 0
    assert answer["gauges"]["guard_rebases"] == expected.rebases == 1
    seen = [(p["parameter"], p["steps"], p["first_step"], p["last_step"]) for p in answer["parameters"]]
    assert sorted(seen) == expected.parameters
    assert [steps for _, steps, _, _ in seen] == sorted((steps for _, steps, _, _ in seen), reverse=True)
    assert all(p["values"] >= p["steps"] for p in answer["parameters"])
    assert answer["unseen"] == 0
    assert not any(answer["dropped"].values())
    assert answer["health"] == "finished"
    assert [attempt["state"] for attempt in answer["attempts"]] == ["finished"]
    of_process = {name: all_steps[name] for name in ("steps", "outcomes", "not_finite_steps")}
    of_process["outcomes"] = {name: n for name, n in all_steps["outcomes"].items() if n}
    assert [process["totals"] for process in answer["processes"]] == [of_process]


# --- running it ----------------------------------------------------------------------------------------------------


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "examples.demo", "--quick", *arguments]


def demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), cwd=REPOSITORY, capture_output=True, text=True, timeout=200, check=False)


@contextlib.contextmanager
def started(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    # A shell starts background jobs with SIGINT ignored, and children inherit that; a handler they do not inherit.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            command(*arguments), cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    finally:
        signal.signal(signal.SIGINT, before)
    try:
        yield process
    finally:
        # If the test has failed: SIGTERM, so that the demo stops its exporter.
        for number in (signal.SIGCONT, signal.SIGTERM):
            process.send_signal(number)
        try:
            process.communicate(timeout=30)
        finally:
            process.kill()
            process.wait()


def address_in(line: str) -> str:
    found = re.search(r"http://127\.0\.0\.1:\d+/", line)
    assert found is not None, line
    return found[0]


def page_of(process: subprocess.Popen[str]) -> str:
    """The address it prints first."""
    assert process.stdout is not None
    line = process.stdout.readline()
    return address_in(line)


def wait_for_steps(url: str, steps: int) -> None:
    """Until the exporter has counted that many of run `demo`."""

    def ask() -> httpx.Response:
        return httpx.get(f"{url}/v1/runs/demo", trust_env=False)

    def counted() -> bool:
        answer = ask()
        return answer.is_success and answer.json()["totals"]["steps"] >= steps

    wait_until(counted, 120, problem=lambda: ask().text)


def wait_for_line(stream: IO[str] | None, words: str) -> None:
    assert stream is not None
    assert any(words in line for line in stream), f"it ended without {words!r}"


def assert_nobody_listens(page: str) -> None:
    with pytest.raises(httpx.ConnectError):
        httpx.get(page, trust_env=False)


def assert_one_line_says(ran: subprocess.CompletedProcess[str], *words: str) -> None:
    assert ran.returncode not in {0, -signal.SIGTERM}
    assert ran.stdout == ""
    assert ran.stderr.count("\n") == 1
    assert ran.stderr.startswith("demo: ")
    for word in words:
        assert word in ran.stderr


# --- the tests -----------------------------------------------------------------------------------------------------


def test_the_last_line_is_exactly_what_was_put_in_and_only_optwrap_gets_through() -> None:
    """The run with optwrap learns, the one without ends in NaN, the exporter is gone, and no terminal was assumed."""
    ran = demo("--listen", "127.0.0.1:0")
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    expected = truth(QUICK)
    assert_is(json.loads(lines[-1]), expected)
    assert expected.left_out == tuple(range(44, 52))
    (stopped,) = (line for line in lines if "went on from step 40" in line)
    assert "at step 51: not_finite_streak: 8 steps in a row" in stopped
    assert stopped.endswith(f"without batches {', '.join(map(str, expected.left_out))}")

    course = {
        m[1]: (float(m[2]), float(m[3])) for m in re.finditer(r"(with\w*) optwrap +(\S+) -> ([\w.]+)", ran.stdout)
    }
    first, last = course["with"]
    assert last < first - 1
    assert course["without"][0] == first
    assert np.isnan(course["without"][1])

    # The autopsy of the first bad step names the damaged record, and the line where the largest of its values overflow.
    fault = QUICK.faults[0]
    assert f"Why step {fault.first} was skipped:" in lines
    assert re.search(rf"^Cause: batch\.ahead\[{fault.layer},[\d,]+\] is inf$", ran.stdout, re.MULTILINE)
    assert "Cause: div returned inf at model.py:" in ran.stdout

    assert_nobody_listens(address_in(lines[0]))
    assert all(line.isprintable() for line in (*lines, *ran.stderr.splitlines()))
    assert "batch 80/80" in ran.stderr


def test_the_callback_tells_the_same_without_a_stop_and_hold_leaves_the_page_up_until_ctrl_c() -> None:
    with started("--emit", "callback", "--no-baseline", "--hold", "--listen", "127.0.0.1:0") as process:
        page = page_of(process)
        assert process.stdout is not None
        line = next(line for line in process.stdout if line.startswith("{"))
        assert_is(json.loads(line), truth(QUICK, stops=False))
        assert httpx.get(page, trust_env=False).is_success
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        assert rest == ""
        assert "Traceback" not in errors
    assert_nobody_listens(page)


def test_killing_the_exporter_midway_loses_nothing_and_counts_nothing_twice(
    start_exporter: Callable[..., RunningExporter],
) -> None:
    """Each step's record and each event is there once, and the totals are those of an undisturbed run."""
    steps = 800
    exporter = start_exporter()
    with started("--endpoint", exporter.url, "--no-baseline", "--steps", str(steps)) as process:
        for before in (100, 400):
            wait_for_steps(exporter.url, before)
            exporter.kill9()
            wait_for_line(process.stderr, "cannot report run demo")
            # The training must not be over before the exporter is back, however slowly that starts.
            process.send_signal(signal.SIGSTOP)
            exporter.start()
            process.send_signal(signal.SIGCONT)
        output, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    expected = truth(QUICK, steps)
    answer = json.loads(output.splitlines()[-1])
    assert_is(answer, expected)

    with httpx.Client(base_url=exporter.url, trust_env=False) as http:
        rows = sorted(expected.rows, key=lambda row: row.step)  # a step that was taken again after the one before it
        found = http.get("/v1/runs/demo/steps", params={"points": len(rows)}).json()
        columns = found["columns"]
        assert (found["total"], found["sampled"]) == (len(rows), False)
        assert columns["step"] == [row.step for row in rows]
        assert columns["outcome"] == [row.outcome for row in rows]
        assert columns["mini_step"] == [row.mini_step for row in rows]
        assert columns["finite"] == [row.parameter is None for row in rows]
        assert http.get("/v1/runs/demo").json()["totals"] == totals(rows)

        events = []
        cursor = None
        while True:
            page = http.get("/v1/runs/demo/events", params={"limit": 7} | ({"cursor": cursor} if cursor else {})).json()
            events += page["items"]
            if (cursor := page["cursor"]) is None:
                break
    assert len({event["id"] for event in events}) == len(events)
    skipped = [event["step"] for event in events if event["kind"] == "skipped"]
    assert sorted(skipped) == [row.step for row in rows if row.outcome.startswith("skipped")]
    kinds = collections.Counter(event["kind"] for event in events)
    assert kinds["streak_started"] == kinds["streak_ended"]
    assert (kinds["started"], kinds["finished"], kinds["resumed"]) == (1, 1, 1), "after the rollback it resumes"
    assert kinds["rebased"] == 1
    spike = next(event for event in events if event["kind"] == "skipped" and event["step"] == 32)
    assert spike["detail"]["norm_shares"][0]["parameter"] == "decoder/layer_1/probe/w"


@pytest.mark.thin(3)
@pytest.mark.parametrize("there", ["absent", "hanging"])
def test_a_job_without_an_exporter_trains_on_and_says_so_once(there: str) -> None:
    """Then the demo has no answer to show, and its exit code says so."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if there == "hanging":
            silent.listen()  # connections are taken by the kernel, and no one ever reads
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        ran = demo("--endpoint", endpoint, "--no-baseline", "--run", "alone")
    assert ran.returncode == 1
    assert "Traceback" not in ran.stderr
    assert "batch 80/80" in ran.stderr
    assert re.search(r"with optwrap +\d\.\d\d -> \d\.\d\d$", ran.stdout, re.MULTILINE)
    log, last = (line for line in ran.stderr.splitlines() if endpoint in line)
    assert log.startswith("optwrap: ")
    assert "run alone" in log
    assert last.startswith("demo: ")
    assert "'alone'" in last
    assert last == ran.stderr.splitlines()[-1]


def test_ctrl_c_stops_training_and_exporter_without_a_traceback() -> None:
    with started("--steps", str(MANY), "--listen", "127.0.0.1:0") as process:
        page = page_of(process)
        wait_for_steps(page.rstrip("/"), 1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "Traceback" not in errors
        assert errors.splitlines()[-1] == "demo: interrupted"
    assert_nobody_listens(page)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--bogus"], ["--bogus"]),
        (["--steps", "0"], ["--steps", "'0'"]),
        (["--seed", "-1"], ["--seed"]),
        (["--emit", "smoke"], ["--emit", "'smoke'", "callback"]),
        (["--listen", "0.0.0.0:10425"], ["--listen", "'0.0.0.0:10425'", "loopback"]),
        (["--listen", "127.0.0.1:99999"], ["--listen", "'127.0.0.1:99999'"]),
        (["--endpoint", "http://127.0.0.1:1", "--data-dir", "x"], ["--data-dir", "--endpoint"]),
        (["--endpoint", "http://127.0.0.1:1", "--hold"], ["--hold", "--endpoint"]),
    ],
)
def test_a_wrong_argument_is_one_line_that_names_it(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        parse(arguments)
    output, errors = capsys.readouterr()
    assert_one_line_says(subprocess.CompletedProcess(arguments, int(exit_.value.code or 0), output, errors), *words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--endpoint", "gopher://hole"], ["gopher://hole", "http://HOST:PORT"]),
        (["--endpoint", "http://127.0.0.1:1", "--run", "a b"], ["run", "'a b'"]),
    ],
)
def test_what_the_monitor_refuses_is_one_line(arguments: list[str], words: list[str]) -> None:
    assert_one_line_says(demo(*arguments), *words)


def test_a_port_in_use_is_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        assert_one_line_says(demo("--listen", listen), listen, "in use", "--listen")


def test_a_data_directory_that_cannot_be_one_is_one_line(tmp_path: Path) -> None:
    """A file in its place: the super-user, too, is refused there."""
    place = tmp_path / "file"
    place.write_text("")
    assert_one_line_says(demo("--listen", "127.0.0.1:0", "--data-dir", str(place)), "--data-dir", str(place))


def test_without_jax_it_says_what_lacks() -> None:
    without = "import runpy, sys; sys.modules['jax'] = None; runpy.run_module('examples.demo', run_name='__main__')"
    ran = subprocess.run(
        [sys.executable, "-c", without], cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False
    )
    assert_one_line_says(ran, "jax", "make setup")


@pytest.mark.parametrize("table", [FULL, QUICK], ids=["full", "quick"])
def test_the_table_of_faults_is_one_that_the_guard_survives(table: Settings) -> None:
    """In order, apart, on layers there are, and with every kind of damage: a single one, a streak, a norm spike."""
    for fault, following in zip(table.faults, table.faults[1:], strict=False):
        assert fault.first + fault.count < following.first
    assert all(0 <= fault.layer < table.layers and fault.count >= 1 for fault in table.faults)
    happening = [fault for fault in table.faults if fault.first + fault.count <= table.steps]
    assert {fault.damage for fault in happening} == set(Damage)
    assert {fault.count == 1 for fault in happening if fault.damage.outcome is Outcome.NOT_FINITE} == {True, False}
    assert truth(table).longest_streak > 1
    assert truth(table).rebases == 1
    assert len(truth(table).left_out) == STOP_AFTER <= MAX_CONSECUTIVE_ERRORS
    assert STOP_AFTER + LAG < SAVE_EVERY, "one of two checkpoints is always clean"


@given(seed=st.integers(0, 2**32 - 1), layer=st.integers(0, FULL.layers - 1))
@settings(max_examples=20, deadline=None)
def test_damage_does_to_any_batch_what_the_table_says(seed: int, layer: int) -> None:
    """A stuck bit overflows in float32 only once it is standardised; the others stay finite, and are huge or large."""
    stored = next(CORPUS.batches(FULL.batch, seed))
    sound = CORPUS.decode(stored)
    assert np.array_equal(stored.text, CORPUS.vocabulary[sound.tokens])
    assert np.allclose(sound.ahead.sum(axis=-1), 1)
    for damage in Damage:
        read = damage.damage(stored.ahead[layer]).view("<f4").reshape(sound.ahead[layer].shape)
        with np.errstate(over="ignore"):
            standardised = (read - CORPUS.scale.mean[layer]) / CORPUS.scale.std[layer]
        assert np.isfinite(standardised).all() == (damage.outcome is not Outcome.NOT_FINITE)
        if damage.outcome is Outcome.NEW_LEVEL:
            assert 100 < np.abs(standardised).max() < 1e4
        else:
            assert np.abs(standardised).max() > 1e6 * MAX_NORM
        assert not np.shares_memory(read, stored.ahead[layer])
