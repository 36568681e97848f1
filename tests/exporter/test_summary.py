"""The verdict sentence of every health: cause, process, since which step, what to do."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from optwrap_exporter.ledger.shown import summary
from optwrap_exporter.wire.answers import RunDetail, RunSummary
from optwrap_exporter.wire.vocabulary import HEALTHS, Health, Scope

from tests.exporter.ledgers import Watched
from tests.exporter.trainer import Trainer, take

Story = Callable[[Watched, Trainer], None]
"""What happens to a process of a job of one."""


def _starting(watched: Watched, trainer: Trainer) -> None:
    take(watched.ledger, trainer.hello())


def _ok(watched: Watched, trainer: Trainer) -> None:
    watched.keep_saying(trainer, 1234, "applied")


def _ok_after_skips(watched: Watched, trainer: Trainer) -> None:
    watched.keep_saying(trainer, 3, "bad")
    watched.keep_saying(trainer, 7, "applied")


def _skipping(watched: Watched, trainer: Trainer) -> None:
    trainer.gauges["guard_not_finite_limit"] = 5
    watched.keep_saying(trainer, 460, "applied")
    watched.keep_saying(trainer, 3, "bad")


def _skipping_without_guard(watched: Watched, trainer: Trainer) -> None:
    watched.keep_saying(trainer, 3, "applied")
    watched.say(trainer, "bad")


def _starved_by_a_limit(watched: Watched, trainer: Trainer) -> None:
    watched.keep_saying(trainer, 801, "applied")
    trainer.gauges["gradient_norm_limit"] = 50.0
    for _ in range(987):
        trainer.step("skipped_large", norm=80.4)
    watched.say(trainer, None)


def _starved_in_a_window(watched: Watched, trainer: Trainer) -> None:
    watched.keep_saying(trainer, 4, "applied")
    watched.keep_saying(trainer, 100, "accumulated")


def _stalled(watched: Watched, trainer: Trainer) -> None:
    watched.keep_saying(trainer, 12, "applied")
    watched.keep_saying(trainer, 530)


def _stale(watched: Watched, trainer: Trainer) -> None:
    watched.keep_saying(trainer, 1201, "applied")
    watched.clock.advance(4 * 60 + 59)


def _stale_before_a_step(watched: Watched, trainer: Trainer) -> None:
    take(watched.ledger, trainer.hello())
    watched.clock.advance(3 * 86_400)


def _failed(watched: Watched, trainer: Trainer) -> None:
    watched.keep_saying(trainer, 20, "applied")
    take(watched.ledger, trainer.report("failed", reason="RuntimeError: no space left on device"))


def _failed_without_a_word(watched: Watched, trainer: Trainer) -> None:
    watched.say(trainer)
    take(watched.ledger, trainer.report("failed"))


def _stopped(watched: Watched, trainer: Trainer) -> None:
    watched.keep_saying(trainer, 20, "applied")
    take(watched.ledger, trainer.report("stopped", reason="12 non-finite steps in a row", last_clean_step=8))


def _finished(watched: Watched, trainer: Trainer) -> None:
    watched.keep_saying(trainer, 20, "applied")
    take(watched.ledger, trainer.report("finished"))


def _gave_up(watched: Watched, trainer: Trainer) -> None:
    watched.keep_saying(trainer, 20, "applied")
    trainer.bad("accepted_not_finite")
    watched.say(trainer, None)


def _diverged(watched: Watched, trainer: Trainer) -> None:
    trainer.process_count = 2
    other = Trainer(watched.clock, process=1, process_count=2)
    for one, norm in ((trainer, 1.0), (other, 8.0)):
        one.step(norm=norm)
        watched.say(one, None)


def _conflict(watched: Watched, trainer: Trainer) -> None:
    watched.keep_saying(trainer, 1, "applied")
    other = Trainer(watched.clock, attempt="second")
    watched.clock.advance(1)
    for _ in range(12):
        for each in (trainer, other):
            watched.say(each)
        watched.clock.advance(1)


TABLE: list[tuple[Health, Story, str]] = [
    ("starting", _starting, "started, no step yet"),
    ("ok", _ok, "at step 1,234"),
    ("ok", _ok_after_skips, "at step 10; 3 of the last 10 steps were skipped"),
    (
        "skipping",
        _skipping,
        "3 steps in a row since step 461 were non-finite on process 0 on node-0; the guard gives up after 5",
    ),
    ("skipping", _skipping_without_guard, "step 4 was non-finite on process 0 on node-0"),
    (
        "starved",
        _starved_by_a_limit,
        "process 0 on node-0 starved: 987 steps since step 802 were skipped, norm 80.4 at step 1,788, limit 50; "
        "raise the limit if such norms are right, else restore a checkpoint at or before 801",
    ),
    (
        "starved",
        _starved_in_a_window,
        "process 0 on node-0 starved: 100 steps since step 5 brought no gradient step, norm 1 at step 104; "
        "restore a checkpoint at or before 4",
    ),
    (
        "stalled",
        _stalled,
        "process 0 on node-0 took no step for 8 min, after step 12; "
        "it still reports, so see what it waits for: data, a lock, another process",
    ),
    (
        "stale",
        _stale,
        "process 0 on node-0 silent for 4 min, after step 1,201; "
        "see whether the training still runs, and start it again if not",
    ),
    (
        "stale",
        _stale_before_a_step,
        "process 0 on node-0 silent for 3 days, before its first step; "
        "see whether the training still runs, and start it again if not",
    ),
    (
        "failed",
        _failed,
        "process 0 on node-0 failed at step 20: RuntimeError: no space left on device; see its log, "
        "and mend the cause before it starts again",
    ),
    ("failed", _failed_without_a_word, "process 0 on node-0 failed at step 1: it gave no reason, so see its log"),
    (
        "stopped",
        _stopped,
        "process 0 on node-0 stopped at step 20: 12 non-finite steps in a row; restore a checkpoint at or before 8",
    ),
    ("finished", _finished, "finished at step 20"),
    (
        "gave_up",
        _gave_up,
        "gave up at step 21: 1 non-finite step applied, not rolled back; restore a checkpoint at or before 20",
    ),
    (
        "diverged",
        _diverged,
        "processes 0 and 1 disagree: norm 1 and 8 at step 1, the first that differs: "
        "restore a checkpoint at or before 0 on all processes",
    ),
    (
        "conflict",
        _conflict,
        "two jobs report under this name: attempt first on node-0 and attempt second on node-0; stop one of "
        "them, or give it another run name",
    ),
]


def answers(watched: Watched) -> tuple[RunSummary, RunDetail]:
    brief, detail = watched.ledger.summary("lm"), watched.ledger.detail("lm")
    assert brief is not None
    assert detail is not None
    return brief, detail


@pytest.mark.parametrize(("health", "story", "sentence"), TABLE, ids=[story.__name__[1:] for _, story, _ in TABLE])
def test_every_health_has_a_sentence(health: Health, story: Story, sentence: str) -> None:
    watched = Watched()
    story(watched, Trainer(watched.clock))
    brief, detail = answers(watched)
    assert (brief.health, brief.summary) == (health, sentence)
    assert (detail.health, detail.summary) == (health, sentence)
    assert watched.ledger.verdict("lm") == (health, sentence)
    rows = [row.summary for row in detail.processes if row.health == health]
    without_duration = re.sub(r" for \d+ (min|days),", ",", sentence)
    assert rows == [None if health in {"ok", "starting", "finished"} else without_duration] * len(rows) != []


def test_no_health_is_left_out() -> None:
    assert {health for health, _, _ in TABLE} | {"degraded"} == set(HEALTHS)


@pytest.mark.parametrize(
    ("scope", "present", "health", "sentence"),
    [
        ("host", range(8), "ok", "at step 1; 8 of 64 processes report here"),
        ("job", range(8), "degraded", "56 of 64 processes have not reported (8 to 63): see whether they were started"),
        (
            "job",
            [0, *range(2, 64)],
            "degraded",
            "1 of 64 processes has not reported (1): see whether they were started",
        ),
        (
            "job",
            range(1, 64, 8),
            "degraded",
            "56 of 64 processes have not reported (0, 2 to 8, 10 to 16, ...): see whether they were started",
        ),
        ("job", range(64), "ok", "at step 1"),
        ("host", range(64), "ok", "at step 1"),
    ],
)
def test_a_process_that_never_reported_is_missing_only_if_the_whole_job_reports_here(
    scope: Scope, present: Any, health: Health, sentence: str
) -> None:
    watched = Watched(scope)
    for process in present:
        watched.say(Trainer(watched.clock, process=process, process_count=64))
    brief, detail = answers(watched)
    assert (brief.health, brief.summary) == (health, sentence)
    missing = 64 - len(present) if scope == "job" else None
    assert (brief.process_count, brief.processes, brief.missing) == (64, len(present), missing)
    assert (detail.process_count, detail.missing) == (64, missing)


def test_it_names_the_process_that_says_most_and_counts_the_others() -> None:
    watched = Watched()
    trainers = [Trainer(watched.clock, process=process, process_count=4) for process in range(4)]
    for trainer in trainers:
        watched.say(trainer)
    take(watched.ledger, trainers[1].report("failed"))
    take(watched.ledger, trainers[2].report("failed", reason="OSError: gone"))
    assert (
        answers(watched)[0].summary == "process 2 on node-2 and 1 more failed at step 1: OSError: gone; "
        "see its log, and mend the cause before it starts again"
    )
    rows = answers(watched)[1].processes
    assert [row.summary is None for row in rows] == [True, False, False, True]


def test_all_processes_are_not_named_one_by_one() -> None:
    watched = Watched()
    for process in range(4):
        watched.say(Trainer(watched.clock, process=process, process_count=4))
    watched.clock.advance(59)
    assert (
        answers(watched)[0].summary == "all 4 processes silent for 50 s, after step 1; "
        "see whether the training still runs, and start it again if not"
    )


def test_one_silent_process_of_many_is_counted_and_its_incident_stands_first() -> None:
    watched = Watched()
    pod = [Trainer(watched.clock, process=process, process_count=8) for process in range(8)]
    for trainer in pod:
        watched.say(trainer)
    for second in range(500):
        watched.clock.advance(1)
        for trainer in pod:
            if trainer.process != 5 and second % 5 == 0:
                watched.say(trainer, None)
        watched.look()
    brief, detail = answers(watched)
    told = (
        "1 of 8 processes silent for 8 min: process 5 on node-5, after step 1; "
        "see whether the training still runs, and start it again if not"
    )
    assert (brief.health, brief.summary) == ("stale", told)
    assert [one.kind for one in detail.incidents] == ["stale", "stalled"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (9.9, "9 s"),
        (10, "10 s"),
        (59.9, "50 s"),
        (60, "1 min"),
        (299, "4 min"),
        (7199, "119 min"),
        (7200, "2 h"),
        (2 * 86_400 - 1, "47 h"),
        (2 * 86_400, "2 days"),
    ],
)
def test_durations_are_rounded_down(seconds: float, text: str) -> None:
    assert summary.duration(seconds) == text


def test_every_runbook_is_one() -> None:
    headings = (Path(__file__).parents[2] / "deploy" / "runbooks.md").read_text()
    assert [name for name in summary.RUNBOOKS.values() if f"## {name}\n" not in headings] == []
