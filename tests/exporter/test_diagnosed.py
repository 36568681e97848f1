"""The event `diagnosed`: what the training's autopsy found."""

import pytest
from optwrap_exporter.cli import main as cli
from optwrap_exporter.ledger.ledger import Ledger

from tests.exporter.running import Served
from tests.exporter.trainer import Job, Trainer, TurnedClock, sent, take

WHY = {"step": 2, "cause": "div returned inf at train.py:12", "remedy": "the divisor is 0"}


def test_each_diagnosis_makes_an_event() -> None:
    clock = TurnedClock()
    ledger, trainer = Ledger(clock), Trainer(clock)
    trainer.step()
    trainer.bad()
    take(ledger, trainer.report())
    found = take(ledger, sent(trainer.json(diagnoses=[WHY, {"cause": "x[1] is nan"}]))).events
    assert [(event.kind, event.step, event.detail) for event in found] == [
        ("diagnosed", 2, {"cause": WHY["cause"], "remedy": WHY["remedy"]}),
        ("diagnosed", None, {"cause": "x[1] is nan"}),
    ]
    assert not take(ledger, trainer.report()).events


def test_the_same_diagnosis_twice_is_one_event(site: Served) -> None:
    job = Job(clock=site.clock)
    job.step("skipped_not_finite", 1.0)
    for _ in range(2):
        site.send(job.report(diagnoses=[WHY]))
    (event,) = site.get("/v1/runs/lm/events", kind="diagnosed")["items"]
    assert event["step"] == 2
    assert event["detail"]["cause"] == WHY["cause"]


def test_status_shows_the_cause_below_the_sentence_about_the_run(
    site: Served, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    job = Job(clock=site.clock)
    job.step("applied", 1.0)
    job.step("skipped_not_finite", "NaN", w=1)
    site.send(job.report(diagnoses=[WHY]))
    cli.run(["status", site.url])
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    (place,) = [index for index, line in enumerate(lines) if line.startswith("lm: ")]
    assert lines[place + 1 : place + 3] == [f"cause of step 2: {WHY['cause']}", f"remedy: {WHY['remedy']}"]


def test_status_shows_no_cause_of_an_earlier_trouble(site: Served, capsys: pytest.CaptureFixture[str]) -> None:
    job = Job(clock=site.clock)
    job.step("skipped_not_finite", "NaN", w=1)
    site.send(job.report(diagnoses=[WHY]))
    site.clock.advance(3600)
    for _ in range(2000):
        job.step("applied", 1.0)
    site.send(job.report())
    job.step("skipped_not_finite", "NaN", w=1)
    site.send(job.report())
    cli.run(["status", site.url])
    assert "cause of step" not in capsys.readouterr().out
