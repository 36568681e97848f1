"""The demo, as a newcomer runs it: what the exporter answers is what was put in."""

import json
import re
import signal

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.demo.faults import Damage, Outcome
from examples.demo.settings import (
    FULL,
    MAX_CONSECUTIVE_ERRORS,
    MAX_NORM,
    QUICK,
    SAVE_EVERY,
    STOP_AFTER,
    Settings,
)
from tests.e2e.demos import CORPUS, LAG, address_in, assert_is, assert_nobody_listens, demo, page_of, started, truth

pytestmark = pytest.mark.timeout(240)


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
