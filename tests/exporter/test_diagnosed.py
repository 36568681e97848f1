"""The event `diagnosed`: what the training's autopsy found."""

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
