"""The faults: what happens to a job, and which alerts have to follow, and no others."""

from collections.abc import Mapping
from typing import Any, Final

from tests.deploy.rehearsal.job import STOPPED
from tests.deploy.rehearsal.scene import Alert, Fault, Scene
from tests.deploy.rehearsal.trainer import PARAMETER

CLEAN: Final = 140
"""Good steps before a NaN. So many that the skipped steps are a small share, which raises no alert of its own."""


def both(name: str, severity: str) -> tuple[Alert, ...]:
    """The alert of both runs."""
    return ("sidecars", name, severity), ("shared", name, severity)


LOST: Final[tuple[Alert, ...]] = (
    ("sidecars", "OptwrapExporterDown", "warning"),  # its exporter is gone, too; others still see the run
    ("shared", "OptwrapProcessStale", "critical"),
)
"""What follows when the host of a process is not heard any more."""
STREAK: Final = both("OptwrapNotFiniteStreak", "warning")
STOP: Final = both("OptwrapStopped", "critical")
VANISHED: Final = both("OptwrapRunVanished", "critical")


def restart(scene: Scene) -> None:
    """All trainers are killed, and start again from a checkpoint ten steps before."""
    scene.train_to(50)
    scene.fault()
    scene.job.kill()
    scene.job.launch(100)
    scene.end()


def host_killed(scene: Scene) -> None:
    """A host is gone with all its processes. The others hang in the next step until the job is started again."""
    scene.train_to(50)
    scene.job.lose(scene.victim)
    scene.fault()
    scene.job.allow(100)
    scene.wait_for(*LOST)
    scene.job.kill()
    scene.job.replace(scene.victim)
    scene.job.launch(100)
    scene.end()
    scene.wait_for(*LOST, status="resolved")


def network_cut(scene: Scene) -> None:
    """The cable of a host is pulled in the middle of the training, and put in again after the alerts."""
    host = scene.job.hosts[scene.victim]
    scene.job.launch(200)
    scene.job.reach(60)
    host.cut()
    scene.fault()
    scene.wait_for(*LOST)
    host.mend()
    scene.end()
    scene.wait_for(*LOST, status="resolved")


def nan_streak(scene: Scene) -> None:
    """Six batches in a row have a NaN, more than half of what the guard rejects. The training waits at the last one."""
    scene.train_to(CLEAN)
    scene.fault()
    scene.job.allow(CLEAN + 6)
    scene.wait_for(*STREAK)
    scene.job.allow(CLEAN + 60)
    scene.end()
    scene.wait_for(*STREAK, status="resolved")


def stop_decision(scene: Scene) -> None:
    """The batches stay bad: all processes stop at the same step. The next launch leaves these batches out."""
    scene.train_to(CLEAN)
    scene.fault()
    scene.job.allow(CLEAN + 60)
    scene.end(STOPPED)
    scene.wait_for(*STOP)
    scene.job.launch(CLEAN + 60, left_out=tuple(range(CLEAN + 1, CLEAN + 31)))
    scene.end()
    scene.wait_for(*STOP, status="resolved")


def job_vanished(scene: Scene) -> None:
    """Trainers, sidecars and shared exporter are killed at once, and service discovery drops the targets."""
    scene.train_to(60)
    scene.job.vanish()
    scene.fault()
    scene.wait_for(*VANISHED)


def _stale(scene: Scene) -> Mapping[str, Mapping[str, Any]]:
    return {"stale": {"host": scene.job.hosts[scene.victim].name, "state": "closed"}}


def _skipped(_: Scene) -> Mapping[str, Mapping[str, Any]]:
    steps = {"first_step": CLEAN + 1, "last_step": CLEAN + 6, "steps": 6}
    return {"skipped": {**steps, "parameter": PARAMETER, "applied": 0}}


def _stopped(scene: Scene) -> Mapping[str, Mapping[str, Any]]:
    decided = next(iter(scene.job.truth().attempts.values()))[0].stop or {}
    return {
        "stopped": {"last_clean_step": CLEAN, "reason": decided.get("reason"), "process_count": len(scene.job.hosts)}
    }


_STREAK_SETTINGS: Final = {"steps": CLEAN + 60, "pace": 0.02}
_FAILS_ONCE: Final = {"steps": 100}

FAULTS: Final = (
    Fault("restart", "an attempt is restarted", restart, (), _FAILS_ONCE, ("lost", "finished")),
    Fault("host-killed", "a host is killed", host_killed, LOST, _FAILS_ONCE, ("lost", "finished"), _stale),
    Fault("network-cut", "the network of a host is cut", network_cut, LOST, {"steps": 200}, incidents=_stale),
    Fault(
        "nan-streak",
        "six non-finite steps in a row",
        nan_streak,
        STREAK,
        {**_STREAK_SETTINGS, "limit": 10, "bad": tuple(range(CLEAN + 1, CLEAN + 7))},
        incidents=_skipped,
    ),
    Fault(
        "stop",
        "the training stops itself",
        stop_decision,
        STOP,
        {**_STREAK_SETTINGS, "stop": 8, "bad": tuple(range(CLEAN + 1, CLEAN + 31))},
        ("stopped", "finished"),
        _stopped,
    ),
    Fault("vanished", "the whole job vanishes", job_vanished, VANISHED, _FAILS_ONCE, vanishes=True),
)
"""In the order of the rehearsal. The runs that have finished must not look vanished, so that one is the last."""
