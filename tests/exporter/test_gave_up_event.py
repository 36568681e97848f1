"""The event `gave_up`: when the optimizer first took non-finite values, once for each incident."""

from tests.exporter.stores import Kept
from tests.exporter.trainer import Trainer


def test_a_guard_that_gives_up_is_one_event_of_the_run(kept: Kept) -> None:
    """However many processes report it, for however many steps, and over a restart of the exporter."""
    trainers = [Trainer(kept.clock, process=process, process_count=2) for process in range(2)]

    def all_take(outcome: str) -> None:
        for trainer in trainers:
            trainer.bad(outcome, **{"a/w": 1})
            kept.take(trainer.report())

    for trainer in trainers:
        trainer.step()
    all_take("skipped_not_finite")
    assert kept.events("gave_up") == []
    all_take("accepted_not_finite")
    all_take("accepted_not_finite")
    (event,) = kept.events("gave_up")
    (incident,) = kept.store.incidents("lm").items
    assert (event.step, event.time, event.process) == (3, kept.clock(), 0)
    assert event.detail == {"incident": incident.id, "parameter": "a/w", "last_clean_step": 1}
    kept = kept.reopened()
    all_take("accepted_not_finite")
    assert len(kept.events("gave_up")) == 1
    for trainer in trainers:
        for _ in range(200):
            trainer.step()
    all_take("accepted_not_finite")
    assert [one.step for one in kept.events("gave_up")] == [206, 3], "another trouble"
    kept.store.close()


def test_steps_without_records_are_an_event_too(kept: Kept) -> None:
    trainer = Trainer(kept.clock)
    trainer.step()
    kept.take(trainer.report())
    trainer.step("accepted_not_finite", "NaN", finite=False)
    kept.take(trainer.report(steps={name: [] for name in trainer.columns}))
    assert [one.step for one in kept.events("gave_up")] == [2]
