"""Durability: each acknowledged report survives a restart and a kill, and counts once."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optwrap_exporter.ledger.ledger import Ledger
from optwrap_exporter.ledger.plan import Plan
from optwrap_exporter.store.store import Store
from optwrap_exporter.wire.answers import ReportMessage
from optwrap_exporter.wire.vocabulary import to_json_number

from tests.exporter import crashing
from tests.exporter.histories import History, delivered, histories
from tests.exporter.stores import Kept, all_events, check_blocks, fresh, rows
from tests.exporter.trainer import Trainer, TurnedClock

ROOT = Path(__file__).parents[2]


@given(history=histories(), data=st.data())
@settings(max_examples=12)
def test_a_reopened_store_restores_the_same_ledger(
    tmp_path_factory: pytest.TempPathFactory, history: History, data: st.DataObject
) -> None:
    with fresh(tmp_path_factory) as kept:
        for report in delivered(data, history):
            kept.clock.advance(data.draw(st.sampled_from([0.0, 1.0, 30.0])))
            if kept.ledger.find(report) is None:
                kept.take(report)
            for plan in kept.ledger.pass_time():
                kept.commit(plan)
            if data.draw(st.integers(0, 9)) == 0:
                before = kept.ledger.detail("lm")
                assert before is not None
                kept = kept.reopened()  # noqa: PLW2901 the first one is closed
                after = kept.ledger.detail("lm")
                assert after is not None
                assert after.model_dump_json() == before.model_dump_json()
        for process in history.processes:
            totals = {view.process: view.totals for view in kept.ledger.views()}
            assert totals[process] == history.of_process(process)
        kept.store.close()


def test_kill_9_loses_no_acknowledged_report_and_repeats_none(tmp_path: Path) -> None:
    """The process is killed at random moments, and a new one goes on where it was."""
    last, acknowledged, killed = 400, 0, 0
    chance = random.Random(20251122)
    while acknowledged < last:
        command = [sys.executable, "-m", "tests.exporter.crashing", str(tmp_path), str(acknowledged + 1), str(last)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            if killed < 3:
                for _ in range(chance.randrange(1, 100)):
                    line = process.stdout.readline()
                    acknowledged = int(line or acknowledged)
                os.kill(process.pid, signal.SIGKILL)
                killed += 1
            for line in process.stdout:  # what it could still say before it died
                acknowledged = int(line)
        with Store(tmp_path) as store:
            ledger = Ledger(TurnedClock())
            ledger.restore(store.restore())
            (view,) = ledger.views()
            # At most one report more than it could acknowledge: committed, not answered.
            told = view.totals.steps // crashing.STEPS
            assert acknowledged <= told <= acknowledged + 1
            assert store.steps("lm", 0, points=10**9).total == told * crashing.STEPS
            check_blocks(tmp_path)
    assert killed == 3
    truth = crashing.reports(last)
    with Store(tmp_path) as store:
        ledger = Ledger(TurnedClock())
        ledger.restore(store.restore())
        answer = ledger.detail("lm")
        assert answer is not None
        assert answer.totals.steps == truth[-1].totals.steps
        assert {row.parameter: row.steps for row in answer.parameters} == dict(truth[-1].totals.parameters)
        values = sum(offender.not_finite or 0 for report in truth for offender in report.offenders)
        assert sum(row.values for row in answer.parameters) == values
        expected = [
            (step, outcome, finite, to_json_number(norm))
            for report in truth
            for step, outcome, finite, norm in zip(
                report.steps.step, report.steps.outcome, report.steps.finite, report.steps.norm, strict=True
            )
        ]
        assert rows(store.steps("lm", 0, points=10**9)) == expected
        skips = all_events(lambda cursor: store.events("lm", kind=["skipped"], limit=500, cursor=cursor))
        bad = [step for step, _, finite, _ in expected if not finite]
        assert [event.step for event in reversed(skips)] == bad
        streamed: list[ReportMessage] = []
        while messages := store.changes(streamed[-1].revision if streamed else 0).messages:
            streamed += messages
        assert [step for message in streamed for step in message.steps.step] == [row[0] for row in expected]


def test_a_failed_transaction_leaves_nothing(kept: Kept) -> None:
    trainer = Trainer(kept.clock)
    trainer.bad()
    kept.take(trainer.report())
    before = (kept.store.revision(), rows(kept.store.steps("lm", 0)), kept.store.events("lm"))
    trainer.bad()
    report = trainer.report()
    plan = kept.ledger.plan(report)
    twice = (*plan.events, object())  # the last thing to be written is what fails
    with pytest.raises(AttributeError):
        kept.store.commit(Plan(plan.time, plan.run, plan.process, twice, plan.report, plan.before))  # type: ignore[arg-type]
    assert (kept.store.revision(), rows(kept.store.steps("lm", 0)), kept.store.events("lm")) == before
    kept.take(report)
    assert kept.reopened().ledger.views()[0].totals.steps == 2
