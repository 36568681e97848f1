"""The interval that the exporter asks for, and the staleness that follows from it."""

import pytest
from optwrap_exporter.load import LONGEST_INTERVAL, TARGET, Load

from tests.exporter.ledgers import Watched
from tests.exporter.running import Job, Served
from tests.exporter.trainer import Trainer


class Machine:
    """Simulated time and CPU time."""

    def __init__(self) -> None:
        self.now = self.cpu = 0.0
        self.load = Load(cpu=lambda: self.cpu, monotonic=lambda: self.now, random=lambda: 0.999)

    def second(self, reports: int, *, cost: float, processes: int, refused: int = 0, busy: float = 0.0) -> None:
        """One second in which so many reports were committed at so many CPU seconds each."""
        self.now += 1
        self.cpu += reports * cost
        self.load.committed(reports, busy)
        for _ in range(refused):
            self.load.refused()
        self.load.measure(processes)


def test_a_pod_is_asked_for_half_of_what_the_exporter_can_take() -> None:
    """4,096 processes, 0.5 ms a report: 2,000 reports/s at most, so 1,000/s are asked for."""
    machine = Machine()
    for _ in range(60):
        machine.second(1000, cost=0.0005, processes=4096)
    assert machine.load.capacity == pytest.approx(2000, rel=0.02)
    assert machine.load.interval == pytest.approx(4.096, rel=0.02)
    assert machine.load.used_ratio == pytest.approx(TARGET, rel=0.02)


def test_a_slow_disk_limits_the_capacity_like_a_slow_processor() -> None:
    machine = Machine()
    for _ in range(60):
        machine.second(100, cost=0.0001, processes=500, busy=0.8)
    assert machine.load.capacity == pytest.approx(125, rel=0.1)


def test_few_processes_are_asked_for_nothing() -> None:
    machine = Machine()
    for _ in range(60):
        machine.second(8, cost=0.002, processes=8)
    assert machine.load.interval < 0.1


def test_the_interval_follows_the_number_of_processes_at_once() -> None:
    """A pod that starts is told before the next measurement."""
    machine = Machine()
    for _ in range(1000):
        machine.load.joined()
    assert machine.load.interval == pytest.approx(1000 / (TARGET * 1000))
    machine.second(1000, cost=0.001, processes=10)
    assert machine.load.interval < 0.1


def test_the_interval_and_retry_after_are_bounded() -> None:
    machine = Machine()
    machine.second(1, cost=100.0, processes=65_000)
    assert machine.load.interval == LONGEST_INTERVAL
    assert machine.load.retry_after() == 4
    assert Machine().load.retry_after() == 1


def test_more_reports_than_the_exporter_can_take_are_above_one() -> None:
    machine = Machine()
    for _ in range(60):
        machine.second(1000, cost=0.001, processes=4096, refused=2000)
    assert machine.load.used_ratio == pytest.approx(3, rel=0.05)


def test_an_idle_exporter_uses_nothing(site: Served) -> None:
    assert Machine().load.used_ratio == 0
    assert "optwrap_exporter_capacity_used_ratio 0.0" in site.scrape()


def test_the_answer_asks_for_the_longer_of_both_intervals(site: Served) -> None:
    job = Job()
    assert site.send(job.report()).json()["interval"] == 1.0
    site.ingest.load.interval = 7.5
    assert site.send(job.report()).json()["interval"] == 7.5
    assert site.send(job.report() | {"interval": 60.0}).json()["interval"] == 60.0


def test_a_repeated_report_is_told_the_same_interval(site: Served) -> None:
    report = Job().report()
    site.ingest.load.interval = 7.5
    assert site.send(report).json() == site.send(report).json()


def test_a_process_is_stale_after_three_of_the_intervals_that_it_was_asked_for() -> None:
    watched = Watched()
    trainer = Trainer(watched.clock)
    plan = watched.ledger.plan(trainer.report(), 20.0)
    watched.ledger.apply(plan)
    watched.clock.advance(59)
    assert watched.ledger.health("lm") == "starting"
    watched.clock.advance(2)
    assert watched.ledger.health("lm") == "stale"


def test_the_interval_that_was_asked_for_survives_a_restart(site: Served) -> None:
    site.ingest.load.interval = 20.0
    site.send(Job().report())
    (run,) = site.store.restore()
    assert run.processes[0].stale_after == 60


def test_the_load_counts_the_processes_that_report(site: Served) -> None:
    """Neither those that have ended nor those that are stale."""
    for process in range(3):
        site.send(Job(process=process).report("finished" if process == 0 else "running"))
    assert site.ledger.reporting() == 2
    site.clock.advance(60)
    site.ingest.tick()
    assert site.ledger.reporting() == 0
    site.send(Job(process=5).report())
    assert site.ledger.reporting() == 1


def test_no_process_turns_stale_while_the_exporter_refuses_reports(site: Served) -> None:
    """The exporter is overloaded, the job is well."""
    site.send(Job().report())
    site.clock.advance(9)
    site.ingest.load.refused()
    site.ingest.tick()
    site.clock.advance(9)
    site.ingest.tick()
    assert site.ledger.health("lm") == "starting"
    site.clock.advance(2)
    site.ingest.tick()
    assert site.ledger.health("lm") == "stale"
