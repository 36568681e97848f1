"""Runs a schedule: a run of training from its first launch to its last, with all its interruptions."""

import dataclasses
import random
import signal
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from tests.e2e.chaos.job import INTERVAL, Life
from tests.e2e.chaos.network import Delivery, Network
from tests.e2e.chaos.processes import Exporter, Job
from tests.e2e.chaos.schedule import Action, Schedule
from tests.e2e.chaos.truth import Piece, past

_PATIENCE: Final = 60.0
"""Seconds within which every observed step has to arrive, however bad the network is."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The state after one step, as each process saved it."""

    path: tuple[Piece, ...]
    """The state's history."""
    step: int
    files: tuple[Path, ...]
    """By process."""


@dataclasses.dataclass
class Stretch:
    """The training of one process between two resumes or rollbacks: to the library an incarnation."""

    incarnation: str
    process: int
    launch: int
    path: tuple[Piece, ...]
    """History of the state that it begins with."""
    start: int
    """Step of that state."""
    flushed: int = 0
    """The step up to which `flush` returned that everything has arrived."""
    order: int = 0
    """Its position among the stretches of its process."""


class Trained:
    """A training process, and the stretches that it trains."""

    def __init__(self, life: Life, path: tuple[Piece, ...], step: int) -> None:
        self.job = Job(life)
        self.stretches: list[Stretch] = []
        # A resumed state begins a second incarnation; that of the hello stays empty.
        self._incarnations = 1 if step else 0
        self.begin(path, step)

    def begin(self, path: tuple[Piece, ...], step: int) -> None:
        life = self.job.life
        incarnation = f"{life.name}.{self.job.pid}.{self._incarnations}"
        self._incarnations += 1
        self.stretches.append(Stretch(incarnation, life.process, life.launch, path, step))


class Storm:
    """Runs a schedule: call `run`, look at `stretches`, `network` and `exporter`, then call `close`.

    Args:
      schedule: what happens.
      directory: an empty one.
    """

    def __init__(self, schedule: Schedule, directory: Path) -> None:
        self.schedule = schedule
        self.run_name = f"chaos-{schedule.seed}"
        self.exporter = Exporter(directory / "data")
        self.exporter.start()
        self.network = Network(schedule.seed, schedule.weather, self.exporter.port)
        self.stretches: list[Stretch] = []
        """Those of all processes, in the order in which they ended."""
        self.steps: dict[int, int] = defaultdict(int)
        self.losses = 0
        """How often the exporter's data directory was lost."""
        self.jobs: list[Job] = []
        """All training processes ever started."""
        self._directory = directory
        self._rng = random.Random(schedule.seed)
        self._trained: list[Trained] = []
        self._checkpoints: list[Checkpoint] = []
        self._path: tuple[Piece, ...] = ()
        self._step = 0
        self._launch = -1
        self._began = Checkpoint((), 0, ())
        """The checkpoint from which a single process of this launch can be restarted."""
        self._behind = 0.0

    def close(self) -> None:
        for trained in self._trained:
            trained.job.kill()
        self.network.close()
        self.exporter.close()

    def run(self, begun: Callable[[], object] = lambda: None) -> None:
        """Run all actions, and then let everything arrive.

        Args:
          begun: called once the first processes have said hello, before their first step.
        """
        self._start(None)
        self._flush()
        begun()
        for action in self.schedule.actions:
            self._perform(action)
        self.network.calm = True
        self._flush()
        self._wait_until_current()
        self.network.drain()
        for trained in self._trained:
            trained.job.do("end")
            trained.job.end()
        self._part()
        self.network.drain()

    def delivered(self) -> dict[str, list[Delivery]]:
        """The reports that the exporter has stored, by incarnation."""
        found = defaultdict(list)
        for delivery in self.network.delivered():
            found[delivery.report["incarnation"]].append(delivery)
        return found

    def _perform(self, action: Action) -> None:
        if action.kind == "save":
            self._save()
            return
        {
            "train": self._train_on,
            "kill and resume": lambda action: self._resume_after(action, signal.SIGKILL),
            "resume twice": self._resume_twice,
            "restart one alone": self._restart_alone,
            "roll back": self._roll_back,
            "SIGTERM, handled": self._end_politely,
            "SIGTERM": lambda action: self._resume_after(action, signal.SIGTERM),
            "exception": self._fail,
            "fork": lambda action: self._all("fork", action.which + 1),
            "exporter killed": self._kill_exporter,
            "directory lost": lambda _: self._lose_directory(),
            "directory lost while compiling": self._lose_directory_while_compiling,
            "trainer's clock set back": self._set_trainers_back,
            "exporter's clock set back": lambda action: self.exporter.set_clock_back(action.back),
        }[action.kind](action)
        self._train(max(1, action.steps // 2))

    # --- what happens ---

    def _train_on(self, action: Action) -> None:
        self._train(action.steps)

    def _resume_after(self, action: Action, number: int) -> None:
        self._interrupt(action, number)
        self._start(self._checkpoint(action))

    def _resume_twice(self, action: Action) -> None:
        self._save()
        checkpoint = self._checkpoints[-1]
        for _ in range(2):
            self._interrupt(action, signal.SIGKILL)
            self._start(checkpoint)

    def _end_politely(self, action: Action) -> None:
        self._all("handle SIGTERM")
        self._resume_after(action, signal.SIGTERM)

    def _fail(self, action: Action) -> None:
        for trained in self._trained:
            trained.job.tell("train", action.steps)
            trained.job.tell("fail")
        self._part()
        self._start(self._checkpoint(action))

    def _roll_back(self, action: Action) -> None:
        """Every process restores a state with fewer steps; one with more would look like unobserved steps."""
        self._train(max(action.steps, 1 + self._checkpoints[0].step - self._step))
        older = [checkpoint for checkpoint in self._checkpoints if checkpoint.step < self._step]
        checkpoint = older[max(0, len(older) - 1 - action.which)]
        for trained in self._trained:
            trained.begin(checkpoint.path, checkpoint.step)
            trained.job.tell("roll back", checkpoint.files[trained.job.life.process])
        self._wait()
        self._began = checkpoint
        self._path, self._step = checkpoint.path, checkpoint.step

    def _restart_alone(self, action: Action) -> None:
        """Kill the last process, and restart it until it has caught up with the others, which go on meanwhile."""
        alone = self._trained[-1]
        self._tell("train", action.steps)
        time.sleep(0.3 * action.moment)
        alone.job.kill()
        self._part(alone)
        self._wait()
        self._step += action.steps
        again = self._begin(alone.job.life.process, self._began)
        self._trained.append(again)
        again.job.wait()
        again.job.do("train", self._step - self._began.step)

    def _kill_exporter(self, action: Action) -> None:
        self._tell("train", action.steps)
        time.sleep(0.3 * action.moment)
        self.exporter.kill()
        time.sleep(action.pause)
        self.exporter.start()
        self._wait()
        self._step += action.steps

    def _lose_directory_while_compiling(self, action: Action) -> None:
        self._resume_after(action, signal.SIGKILL)
        self._lose_directory()

    def _set_trainers_back(self, action: Action) -> None:
        self._behind += action.back
        self._all("set clock back", action.back)

    def _wait_until_current(self) -> None:
        """Wait until the exporter shows each trainer as the current one of its process.

        One whose clock is behind is shown only after some reports.
        """
        deadline = time.monotonic() + _PATIENCE
        names = {trained.job.life.process: trained.job.life.name for trained in self._trained}
        while True:
            rows = self.exporter.get(f"/v1/runs/{self.run_name}")["processes"]
            if {row["process"]: row["host"] for row in rows} == names:
                return
            assert time.monotonic() < deadline, f"not current: {names}, {rows}"
            time.sleep(INTERVAL)

    def _lose_directory(self) -> None:
        """From now on the exporter counts only what its new, empty directory hears of."""
        with self.network.silence():
            self.exporter.kill()
            self.exporter.lose_directory()
            self.network.directory += 1
            self.exporter.start()
        self.losses += 1

    # --- the training processes ---

    def _tell(self, *command: Any) -> None:
        for trained in self._trained:
            trained.job.tell(*command)

    def _wait(self) -> list[Any]:
        return [trained.job.wait() for trained in self._trained]

    def _all(self, *command: Any) -> list[Any]:
        self._tell(*command)
        return self._wait()

    def _life(self, process: int, file: Path | None) -> Life:
        schedule = self.schedule
        return Life(
            name=f"life-{len(self.jobs)}",
            seed=schedule.seed,
            run=self.run_name,
            process=process,
            processes=schedule.processes,
            launch=self._launch,
            recipe=schedule.recipe,
            emit=schedule.emit,
            endpoint=self.network.endpoint,
            directory=self._directory,
            pace=schedule.pace,
            checkpoints=schedule.checkpoints,
            restored=file,
            behind=self._behind,
        )

    def _begin(self, process: int, checkpoint: Checkpoint) -> Trained:
        file = checkpoint.files[process] if checkpoint.files else None
        trained = Trained(self._life(process, file), checkpoint.path, checkpoint.step)
        self.jobs.append(trained.job)
        return trained

    def _start(self, checkpoint: Checkpoint | None) -> None:
        """Start a new launch, from a checkpoint or from the beginning."""
        self._launch += 1
        self._began = checkpoint or Checkpoint((), 0, ())
        self._path, self._step = self._began.path, self._began.step
        for process in range(self.schedule.processes):
            self._trained.append(self._begin(process, self._began))
        self._wait()

    def _part(self, only: Trained | None = None) -> None:
        """Wait for the end of processes that end by themselves, and keep their stretches."""
        for trained in [only] if only else list(self._trained):
            trained.job.end()
            self._trained.remove(trained)
            self._remember(trained)

    def _remember(self, trained: Trained) -> None:
        for stretch in trained.stretches:
            stretch.order = self.steps[stretch.process]
            self.steps[stretch.process] += 1
            self.stretches.append(stretch)

    def _train(self, steps: int) -> None:
        self._all("train", steps)
        self._step += steps

    def _interrupt(self, action: Action, number: int) -> None:
        """Send a signal to all processes, at some moment during these steps."""
        self._tell("train", 10 * action.steps)
        time.sleep(0.5 * action.moment)
        for trained in self._trained:
            trained.job.signal(number)
        for trained in list(self._trained):
            trained.job.end(number)
        self._part()

    def _save(self) -> None:
        number = len(self._checkpoints)
        files = tuple(self._directory / f"{number}-{trained.job.life.process}" for trained in self._trained)
        for trained, file in zip(self._trained, files, strict=True):
            trained.job.tell("save", file)
        self._wait()
        path = past((*self._path, Piece(self._launch, self._step)), self._step)
        self._checkpoints.append(Checkpoint(path, self._step, files))
        self._began = self._checkpoints[-1]

    def _checkpoint(self, action: Action) -> Checkpoint:
        return self._checkpoints[max(0, len(self._checkpoints) - 1 - action.which)]

    def _flush(self) -> None:
        for trained, reached in zip(self._trained, self._all("flush", _PATIENCE), strict=True):
            assert reached, f"{trained.job.life.name}: nothing arrived for {_PATIENCE} s: {trained.job.log}"
            trained.stretches[-1].flushed = self._step
