"""A run of training from its first launch to its last, and what a schedule makes happen to it and to its exporter."""

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
"""Seconds within which what was observed has to arrive, however the network is."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What every process saved of one step."""

    path: tuple[Piece, ...]
    """How the state got there."""
    step: int
    files: tuple[Path, ...]
    """By process."""


@dataclasses.dataclass
class Stretch:
    """What one process trains without a resume or a rollback: to the library an incarnation."""

    incarnation: str
    process: int
    launch: int
    path: tuple[Piece, ...]
    """Of the state it begins with."""
    start: int
    """That state's step."""
    flushed: int = 0
    """The step up to which `flush` said that everything has arrived."""
    order: int = 0
    """Among the stretches of its process."""


class Trained:
    """A training process, and the stretches that it trains."""

    def __init__(self, life: Life, path: tuple[Piece, ...], step: int) -> None:
        self.job = Job(life)
        self.stretches: list[Stretch] = []
        # A state that has lived begins an incarnation after the hello's, which stays empty.
        self._incarnations = 1 if step else 0
        self.begin(path, step)

    def begin(self, path: tuple[Piece, ...], step: int) -> None:
        life = self.job.life
        incarnation = f"{life.name}.{self.job.pid}.{self._incarnations}"
        self._incarnations += 1
        self.stretches.append(Stretch(incarnation, life.process, life.launch, path, step))


class Storm:
    """A schedule as it happens. `run()`, then look at `stretches`, `network` and `exporter`; `close()` it.

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
        """Of all processes, in their order."""
        self.steps: dict[int, int] = defaultdict(int)
        self.lost = False
        """Whether the exporter's directory was."""
        self.jobs: list[Job] = []
        """All there ever were."""
        self._directory = directory
        self._rng = random.Random(schedule.seed)
        self._trained: list[Trained] = []
        self._checkpoints: list[Checkpoint] = []
        self._path: tuple[Piece, ...] = ()
        self._step = 0
        self._launch = -1
        self._began = Checkpoint((), 0, ())
        """Where the launch began, or was saved since: from there a process of it can be restarted."""
        self._behind = 0.0

    def close(self) -> None:
        for trained in self._trained:
            trained.job.kill()
        self.network.close()
        self.exporter.close()

    def run(self, begun: Callable[[], object] = lambda: None) -> None:
        """All of it, and then a calm end in which everything arrives.

        Args:
          begun: called when the first processes have said hello, and have not taken a step.
        """
        self._start(None, said=False)
        self._flush()
        begun()
        for action in self.schedule.actions:
            self._perform(action)
        self.network.calm = True
        self._flush()
        self._wait_to_be_known()
        self.network.drain()
        for trained in self._trained:
            trained.job.do("end")
            trained.job.end()
        self._part()
        self.network.drain()

    def delivered(self) -> dict[str, list[Delivery]]:
        """What the exporter has taken, by incarnation."""
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
        self._start(self._checkpoint(action), said=action.said)

    def _resume_twice(self, action: Action) -> None:
        self._save()
        checkpoint = self._checkpoints[-1]
        for said in (action.said, not action.said):
            self._interrupt(action, signal.SIGKILL)
            self._start(checkpoint, said=said)

    def _end_politely(self, action: Action) -> None:
        self._all("handle SIGTERM")
        self._resume_after(action, signal.SIGTERM)

    def _fail(self, action: Action) -> None:
        for trained in self._trained:
            trained.job.tell("train", action.steps)
            trained.job.tell("fail")
        self._part()
        self._start(self._checkpoint(action), said=action.said)

    def _roll_back(self, action: Action) -> None:
        """Every process goes on, with a state of fewer steps: one of more would not show, and has to be said."""
        self._train(max(action.steps, 1 + self._checkpoints[0].step - self._step))
        older = [checkpoint for checkpoint in self._checkpoints if checkpoint.step < self._step]
        checkpoint = older[max(0, len(older) - 1 - action.which)]
        for trained in self._trained:
            trained.begin(checkpoint.path, checkpoint.step)
            trained.job.tell("roll back", checkpoint.files[trained.job.life.process], action.said)
        self._wait()
        self._began = checkpoint
        self._path, self._step = checkpoint.path, checkpoint.step

    def _restart_alone(self, action: Action) -> None:
        """The last process is killed and catches up with the others, which go on meanwhile."""
        alone = self._trained[-1]
        self._tell("train", action.steps)
        time.sleep(0.3 * action.moment)
        alone.job.kill()
        self._part(alone)
        self._wait()
        self._step += action.steps
        again = self._begin(alone.job.life.process, self._began, said=action.said)
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

    def _wait_to_be_known(self) -> None:
        """Wait until every trainer speaks for its process: one whose clock is behind has to be seen to live first."""
        deadline = time.monotonic() + _PATIENCE
        names = {trained.job.life.process: f"{trained.job.life.name}." for trained in self._trained}
        while True:
            rows = self.exporter.get(f"/v1/runs/{self.run_name}")["processes"]
            if all(row["incarnation"].startswith(names[row["process"]]) for row in rows):
                return
            assert time.monotonic() < deadline, f"not known to live: {names}, {rows}"
            time.sleep(INTERVAL)

    def _lose_directory(self) -> None:
        """Its trainers live, and have been told what it had: what they have not, nobody has.

        They live until they have told the next one, too: whoever dies between the two takes what was lost along.
        """
        self.network.drain()
        self._flush()
        self._wait_to_be_known()
        self._flush()
        with self.network.silence():
            self.exporter.kill()
            self.exporter.lose_directory()
            self.network.directory += 1
            self.exporter.start()
        self.lost = True
        self._train(5)
        self._flush()

    # --- the training processes, in step ---

    def _tell(self, *command: Any) -> None:
        for trained in self._trained:
            trained.job.tell(*command)

    def _wait(self) -> list[Any]:
        return [trained.job.wait() for trained in self._trained]

    def _all(self, *command: Any) -> list[Any]:
        self._tell(*command)
        return self._wait()

    def _life(self, process: int, file: Path | None, *, said: bool) -> Life:
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
            callback_every=schedule.callback_every,
            endpoint=self.network.endpoint,
            directory=self._directory,
            pace=schedule.pace,
            checkpoints=schedule.checkpoints,
            restored=file,
            said=said,
            behind=self._behind,
        )

    def _begin(self, process: int, checkpoint: Checkpoint, *, said: bool) -> Trained:
        file = checkpoint.files[process] if checkpoint.files else None
        trained = Trained(self._life(process, file, said=said), checkpoint.path, checkpoint.step)
        self.jobs.append(trained.job)
        return trained

    def _start(self, checkpoint: Checkpoint | None, *, said: bool) -> None:
        """A new launch, from a checkpoint or from nothing."""
        self._launch += 1
        self._began = checkpoint or Checkpoint((), 0, ())
        self._path, self._step = self._began.path, self._began.step
        for process in range(self.schedule.processes):
            self._trained.append(self._begin(process, self._began, said=said))
        self._wait()

    def _part(self, only: Trained | None = None) -> None:
        """Take leave of processes that have ended, or are about to by themselves."""
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
        """Send a signal to all of them, somewhere in the midst of these steps."""
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
