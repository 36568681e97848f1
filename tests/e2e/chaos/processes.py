"""Processes to be killed. They are forked from a server that has imported everything, so a new one starts at once."""

import contextlib
import multiprocessing
import os
import shutil
import signal
import socket
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import httpx
from optwrap_exporter.http.app import serve
from optwrap_exporter.settings import Settings, parse_address

from tests.e2e.chaos import job
from tests.e2e.chaos.job import Life
from tests.polling import wait_until

_CONTEXT: Final = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.e2e.chaos.processes"])


class Job:
    """A training process, from outside."""

    def __init__(self, life: Life) -> None:
        self.life = life
        self._connection, theirs = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=job.main, args=(theirs, life), daemon=True)
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        return self._process.exitcode

    @property
    def log(self) -> str:
        return self.life.log.read_text() if self.life.log.exists() else ""

    def tell(self, *command: Any) -> None:
        """Send it a command, which it executes after the earlier ones."""
        self._connection.send(command)

    def wait(self, limit: float = 120.0) -> Any:
        """The answer to the oldest command that it has not answered yet."""
        assert self._connection.poll(limit), f"{self.life.name} gives no answer for {limit} s: {self.log}"
        try:
            return self._connection.recv()
        except EOFError:
            raise AssertionError(f"{self.life.name} has died: {self.log}") from None

    def do(self, *command: Any) -> Any:
        """Send it a command, and wait until it is done."""
        self.tell(*command)
        return self.wait()

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # it may just have ended
            os.kill(self.pid, number)

    def end(self, number: int = 0, limit: float = 30.0) -> None:
        """Wait for its end; with `number`, send it that signal every second."""
        deadline = time.monotonic() + limit
        while self._process.is_alive():
            assert time.monotonic() < deadline, f"{self.life.name} does not end: {self.log}"
            if number:
                self.signal(number)
            self._process.join(1.0)
        self._connection.close()

    def kill(self) -> None:
        self.end(signal.SIGKILL)


class Exporter:
    """An exporter that keeps its port over restarts; its clock can be set back and its data directory deleted."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        # Bound without listening, so that the port stays ours while the exporter is away.
        self._reserved = socket.socket()
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reserved.bind(("127.0.0.1", 0))
        self.port = int(self._reserved.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = httpx.Client(base_url=self.url, trust_env=False, timeout=30)
        self.starts = 0
        self._shift = 0.0
        self._process: Any = None
        self._connection: Connection | None = None

    @property
    def log(self) -> str:
        file = self.directory.with_suffix(".log")
        return file.read_text() if file.exists() else ""

    def start(self) -> None:
        """Start it, and wait until it is ready."""
        self._connection, theirs = _CONTEXT.Pipe()
        given = (theirs, self.directory, self.port, self._shift)
        self._process = _CONTEXT.Process(target=_export, args=given, daemon=True)
        self._process.start()
        theirs.close()
        self.starts += 1
        wait_until(self._ready, problem=lambda: self.log)

    def _ready(self) -> bool:
        assert self._process.is_alive(), f"the exporter did not start: {self.log}"
        try:
            return self.client.get("/-/ready").status_code == 200
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        """End it as a crash would."""
        assert self._connection is not None
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.join()
        self._connection.close()

    def lose_directory(self) -> None:
        """Delete its data directory; only while it does not run."""
        shutil.rmtree(self.directory)

    def set_clock_back(self, seconds: float) -> None:
        assert self._connection is not None
        self._shift -= seconds
        self._connection.send(self._shift)
        assert self._connection.poll(30)
        self._connection.recv()

    def get(self, path: str, **query: Any) -> Any:
        """The JSON of an answer, whose status has to be 200."""
        answer = self.client.get(path, params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def close(self) -> None:
        if self._process is not None and self._process.is_alive():
            self.kill()
        self.client.close()
        self._reserved.close()


def _export(connection: Connection, directory: Path, port: int, shift: float) -> None:
    """Run an exporter as the command line does, but with a clock that can be set back."""
    log = os.open(directory.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 2)

    def turn() -> None:
        nonlocal shift
        while True:
            try:
                shift = connection.recv()
            except EOFError:
                os._exit(0)  # the parent has ended
            connection.send(None)

    threading.Thread(target=turn, daemon=True).start()
    settings = Settings(listen=(parse_address(f"127.0.0.1:{port}"),), data_dir=directory, log_level="warning")
    serve(settings, clock=lambda: time.time() + shift)
