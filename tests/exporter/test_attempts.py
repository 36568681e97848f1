"""The launches of a run: how many, where each began, and why it ended."""

import re
from pathlib import Path

import pytest
from optwrap_exporter.ledger.ledger import Ledger
from optwrap_exporter.wire.answers import AttemptRow
from optwrap_exporter.wire.vocabulary import own_attempt

from tests.exporter.ledgers import Watched
from tests.exporter.running import Job, served
from tests.exporter.stores import Kept
from tests.exporter.trainer import State, Trainer, TurnedClock, take

REASON = "RuntimeError: out of memory"


def attempts(ledger: Ledger) -> list[AttemptRow]:
    detail = ledger.detail("lm")
    assert detail is not None
    assert detail.attempts_total >= len(detail.attempts)
    return detail.attempts


def total(ledger: Ledger) -> int:
    brief = ledger.summary("lm")
    assert brief is not None
    (view,) = ledger.run_views()
    assert view.attempts == brief.attempts_total
    return view.attempts


def test_a_crash_loop_is_counted_and_every_attempt_says_where_it_began_and_why_it_failed(tmp_path: Path) -> None:
    """29 launches, each 15 s long, each from the same checkpoint; the exporter restarts in between."""
    clock = TurnedClock()
    checkpoint = State()
    checkpoint.outcomes["applied"] = 100

    def launch(number: int, state: str, reason: str | None) -> Job:
        said = {} if reason is None else {"reason": reason}
        hello = Job(incarnation=f"hello{number}", attempt=f"a{number}", clock=clock)
        job = Job(incarnation=f"e{number}", attempt=f"a{number}", clock=clock, state=checkpoint.copy())
        exporter.send(hello.report("starting"))
        exporter.send(job.report())
        for _ in range(15):
            clock.advance(1)
            job.step()
        exporter.send(job.report(state, **said))
        return job

    for first, last in ((0, 10), (10, 20), (20, 28)):
        with served(tmp_path, clock) as exporter:
            for number in range(first, last):
                launch(number, "failed", f"{REASON} {number}")
    with served(tmp_path, clock) as exporter:
        launch(28, "running", None)
        run = exporter.get("/v1/runs/lm")
        assert (run["health"], run["reason"], run["attempts_total"]) == ("failed", None, 29)
        assert re.fullmatch(
            rf"at step 115 of attempt 29; the \d\d? before failed, last at step 115: {REASON} 27", run["summary"]
        )
        assert [row["attempt"] for row in run["attempts"]] == [f"a{number}" for number in range(29)]
        assert [row["reason"] for row in run["attempts"]] == [f"{REASON} {number}" for number in range(28)] + [None]
        assert {row["start_step"] for row in run["attempts"]} == {100}
        assert run["lost_steps"] == {"skipped": 0, "redone": 28 * 15, "starved": 0}
        assert exporter.get("/v1/runs")["items"][0]["attempts_total"] == 29
        assert 'optwrap_attempts_total{run="lm"} 29.0' in exporter.scrape()


def test_the_start_of_an_attempt_is_unknown_until_a_reading_says_it() -> None:
    """A hello comes before the optimizer's state is restored. A rollback within the attempt does not move its start."""
    watched = Watched()
    restored = State()
    restored.outcomes["applied"] = 40
    take(watched.ledger, Trainer(watched.clock).hello())
    assert attempts(watched.ledger)[0].start_step is None
    watched.clock.advance(1)
    trainer = Trainer(watched.clock, state=restored.copy())
    watched.keep_saying(trainer, 10, "applied")
    assert attempts(watched.ledger)[0].start_step == 40
    rolled_back = Trainer(watched.clock, state=State())
    watched.keep_saying(rolled_back, 2, "applied")
    assert attempts(watched.ledger)[0].start_step == 40
    assert total(watched.ledger) == 1


def test_the_reason_of_an_attempt_is_that_of_a_process_that_failed() -> None:
    watched = Watched()
    trainers = [Trainer(watched.clock, process=process, process_count=3) for process in range(3)]
    for trainer in trainers:
        watched.say(trainer)
    take(watched.ledger, trainers[0].report("finished"))
    take(watched.ledger, trainers[1].report("failed"))
    take(watched.ledger, trainers[2].report("failed", reason=REASON))
    (row,) = attempts(watched.ledger)
    assert (row.state, row.reason) == ("failed", REASON)


@pytest.mark.parametrize("processes", [1, 4])
@pytest.mark.parametrize("launches", [1, 3, 40])
def test_processes_whose_launch_is_unknown_are_not_launches_of_their_own(
    tmp_path: Path, processes: int, launches: int
) -> None:
    """Each has an attempt named after its first incarnation."""
    kept = Kept(tmp_path)
    for number in range(launches):
        kept.clock.advance(4000)
        for process in range(processes):
            first = f"i{number}-{process}"
            for incarnation in (first, f"{first}-rolled-back"):
                kept.clock.advance(1)
                trainer = Trainer(
                    kept.clock,
                    process=process,
                    incarnation=incarnation,
                    attempt=own_attempt(first),
                    process_count=processes,
                )
                trainer.step()
                kept.take(trainer.report())
    for reopened in (False, True):
        kept = kept.reopened() if reopened else kept
        assert total(kept.ledger) == launches
        if launches == 1:  # of launches that its processes have left, each process has a row
            assert len(attempts(kept.ledger)) == launches
    kept.store.close()


def test_the_number_of_launches_never_falls_while_old_ones_are_compacted() -> None:
    watched = Watched()
    before = 0
    for number in range(60):
        for process in range(2):
            watched.clock.advance(3000)
            trainer = Trainer(watched.clock, process=process, attempt=f"a{number}", process_count=2)
            watched.say(trainer)
            now = total(watched.ledger)
            assert now in {before, before + 1}
            before = now
    assert before == 60
