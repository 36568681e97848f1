"""The event `rebased`: derived from the gauge `guard_rebases`, once for each rise."""

from typing import Any

from optwrap_exporter.ledger.ledger import Ledger

from tests.exporter.running import Served
from tests.exporter.trainer import Job, Trainer, TurnedClock, take


def rebased(ledger: Ledger, trainer: Trainer, rebases: int | None) -> list[tuple[int | None, dict[str, Any]]]:
    """The step and detail of each event that a report with this gauge gives."""
    trainer.gauges = {} if rebases is None else {"guard_rebases": rebases, "gradient_norm_limit": 5.0}
    trainer.step()
    return [(event.step, event.detail) for event in take(ledger, trainer.report()).events if event.kind == "rebased"]


def test_each_rise_of_the_gauge_is_one_event() -> None:
    """Its step is the report's last one; a fall (a rollback) and a gauge that appears are no events."""
    clock = TurnedClock()
    ledger, trainer = Ledger(clock), Trainer(clock)
    found = [rebased(ledger, trainer, rebases) for rebases in (None, 3, 3, 4, 4, 1, 3)]
    assert found == [
        [],
        [],
        [],
        [(4, {"rebases": 4, "limit": 5.0})],
        [],
        [],
        [(7, {"rebases": 3, "limit": 5.0})],
    ]


def test_a_rebase_in_the_first_report_after_a_rollback_is_an_event() -> None:
    """The incarnation before had none. A later launch whose state has that rebase has none of its own."""
    clock = TurnedClock()
    ledger, trainer = Ledger(clock), Trainer(clock)
    assert rebased(ledger, trainer, 0) == []
    start = trainer.state.copy()
    clock.advance(1)
    after = Trainer(clock, state=start)
    assert rebased(ledger, after, 1) == [(2, {"rebases": 1, "limit": 5.0})]
    clock.advance(1)
    assert rebased(ledger, Trainer(clock, state=start.copy(), attempt="second"), 1) == []


def test_a_run_lists_a_rebase_of_all_its_processes_once(site: Served) -> None:
    """Although the processes report it at different steps."""
    for process, steps in ((0, 2), (1, 3)):
        job = Job(process=process, process_count=2, clock=site.clock)
        job.gauges |= {"guard_rebases": 0, "gradient_norm_limit": 5.0}
        site.send(job.report())
        for _ in range(steps):
            job.step("applied", 1.0)
        job.gauges["guard_rebases"] = 1
        site.send(job.report())
    (event,) = site.get("/v1/runs/lm/events", kind="rebased")["items"]
    assert event["detail"] == {"rebases": 1, "limit": 5.0}
