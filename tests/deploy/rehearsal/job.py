"""A job on all hosts: its exporters, its trainers, and its launches one after the other."""

import contextlib
import dataclasses
import json
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from tests.compiling import QUICK
from tests.deploy.rehearsal.hosts import Host, python
from tests.deploy.rehearsal.programs import Exporter
from tests.deploy.rehearsal.trainer import Launch
from tests.deploy.rehearsal.truth import Truth, Written
from tests.polling import wait_until

STOPPED: Final = 65
LIMIT: Final = 300.0
"""Seconds that the trainers may take to do what they are asked."""


ENVIRONMENT: Final = {
    "JAX_PLATFORMS": "cpu",
    "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
    "XLA_FLAGS": " ".join(QUICK),
}
"""Of the trainers."""


class Job:
    """One job. Process n is on the n-th host.

    Args:
      name: its runs are `<name>.sidecars` and `<name>.shared`.
      hosts: where it trains.
      site: the host of its shared exporter.
      directory: an empty one that all hosts share.
      targets: where exporters announce themselves.
      **settings: fields of `Launch` for all launches.
    """

    def __init__(
        self, name: str, hosts: Sequence[Host], site: Host, directory: Path, targets: Path, **settings: Any
    ) -> None:
        self.name = name
        self.hosts = hosts
        self.directory = directory
        self.targets = targets
        self.attempts: list[str] = []
        self.trainers: list[subprocess.Popen[bytes]] = []
        self.since = [0] * len(hosts)
        """By process, the index of the first attempt that the sidecar of its host knows."""
        self._settings = settings
        self._token = directory / "token"
        self._token.write_text("rehearsal-token\n")
        options = ("--scope", "job", "--token-file", str(self._token))
        self.shared = Exporter(site, "shared", directory, targets / f"{name}-shared.json", *options)
        self.sidecars = [self._sidecar(process) for process in range(len(hosts))]
        for exporter in self.exporters:
            exporter.wait()

    @property
    def exporters(self) -> list[Exporter]:
        return [self.shared, *self.sidecars]

    @property
    def runs(self) -> dict[str, str]:
        """The run by kind of topology."""
        return {kind: f"{self.name}.{kind}" for kind in ("sidecars", "shared")}

    def launch(self, until: int, **settings: Any) -> None:
        """Start a process on every host, and let them train until this step. Later launches go on at the checkpoint.

        Args:
          until: the step.
          **settings: fields of `Launch` that are new from this launch on.
        """
        self._settings |= settings
        number = len(self.attempts) + 1
        self.attempts.append(f"attempt-{number}")
        self.allow(until)
        common: dict[str, Any] = {
            "attempt": self.attempts[-1],
            "processes": len(self.hosts),
            "coordinator": f"{self.hosts[0].address}:{4000 + number}",
            "directory": str(self.directory),
            "name": self.name,
            "shared": self.shared.url,
            "token_file": str(self._token),
        }
        self.trainers = []
        for process, host in enumerate(self.hosts):
            own: dict[str, Any] = {"process": process, "sidecar": f"unix://{self._socket(process)}"}
            launch = Launch(**common | own | self._settings)
            command = python("tests.deploy.rehearsal.trainer", json.dumps(dataclasses.asdict(launch)))
            log = self.directory / f"{self.attempts[-1]}-{process}.log"
            self.trainers.append(host.start(command, log, **ENVIRONMENT))

    def allow(self, until: int) -> None:
        """Let the trainers train until this step, where they wait."""
        part = self.directory / "until.part"
        part.write_text(str(until))
        part.replace(self.directory / "until")

    def reach(self, step: int, processes: Sequence[int] | None = None) -> None:
        """Wait until all processes, or some, have written that they took this step."""
        chosen = range(len(self.hosts)) if processes is None else processes

        def there() -> bool:
            for process in chosen:
                assert self.trainers[process].poll() in (None, 0, STOPPED), self._log(process)
            files = (self.directory / f"{self.attempts[-1]}-{process}.jsonl" for process in chosen)
            return all(Written.read(file).last >= step for file in files)

        wait_until(there, LIMIT, pause=0.1, problem=lambda: f"step {step}: {self._log(0)}")

    def end(self) -> list[int]:
        """The exit codes, once all trainers have ended."""
        return [trainer.wait(LIMIT) for trainer in self.trainers]

    def kill(self) -> None:
        """Kill all trainers, without a last report."""
        for trainer in self.trainers:
            trainer.kill()
        for trainer in self.trainers:
            trainer.wait()

    def lose(self, process: int) -> None:
        """Lose the host of a process, and everything on it."""
        self.hosts[process].die()

    def replace(self, process: int) -> None:
        """Have a new host in its place, with an empty disk. Its target is the new exporter's."""
        self.sidecars[process].kill()
        self.sidecars[process].forget()
        self.hosts[process].boot()
        self.since[process] = len(self.attempts)
        self.sidecars[process] = self._sidecar(process)
        self.sidecars[process].wait()

    def vanish(self) -> None:
        """Lose the trainers and all exporters at once; service discovery drops the targets."""
        for exporter in self.exporters:
            exporter.kill()
        self.kill()
        for exporter in self.exporters:
            exporter.forget()

    def truth(self) -> Truth:
        return Truth.read(self.directory, self.attempts, len(self.hosts))

    def leave(self) -> list[str]:
        """End the exporters in order; returns those that Prometheus had not seen the end of."""
        drained = [exporter.drain() for exporter in self.exporters]
        for exporter in self.exporters:
            exporter.stop()
        return [done.stderr for done in drained if done.returncode != 0]

    def close(self) -> None:
        """End whatever still runs."""
        self.kill()
        for exporter in self.exporters:
            exporter.kill()
            exporter.forget()

    def _socket(self, process: int) -> Path:
        # One directory for each host, as it is the host's own.
        return self.directory / f"host-{process}" / "ingest.sock"

    def _sidecar(self, process: int) -> Exporter:
        self._socket(process).parent.mkdir(exist_ok=True)
        name = f"sidecar-{process}-{self.since[process]}"
        options = ("--ingest-socket", str(self._socket(process)))
        return Exporter(self.hosts[process], name, self.directory, self.targets / f"{self.name}-{name}.json", *options)

    def logs(self) -> str:
        """The ends of the trainers' logs."""
        return "\n".join(self._log(process) for process in range(len(self.hosts)))

    def _log(self, process: int) -> str:
        file = self.directory / f"{self.attempts[-1]}-{process}.log"
        return f"{file.name}: {file.read_text()[-4000:]}"


@contextlib.contextmanager
def running(
    name: str, hosts: Sequence[Host], site: Host, directory: Path, targets: Path, **settings: Any
) -> Iterator[Job]:
    """A job whose exporters run, and that is gone at the end; see `Job`."""
    directory.mkdir()
    job = Job(name, hosts, site, directory, targets, **settings)
    try:
        yield job
    finally:
        job.close()
