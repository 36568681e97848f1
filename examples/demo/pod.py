"""The demo of a pod: processes that train together, stop at the same step, and go on from the last clean checkpoint.

Each process is `python -m examples.stop_and_roll_back`; this module is the scheduler that launches them.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from examples.demo.errors import DemoError
from examples.demo.exporter import answer, client, hold, running, say_where
from examples.demo.options import Options
from optwrap import Stop

RUN: Final = "stop-and-roll-back"
_LAUNCHES: Final = 3
_LIMIT: Final = 180.0
"""Seconds that one launch may take."""


def run(options: Options) -> None:
    """Run the demo; the last line on stdout is the exporter's answer about the run.

    Raises:
      DemoError: a launch failed, or none reached the end.
    """
    with (
        running(options.listen, options.data_dir, options.endpoint) as endpoint,
        tempfile.TemporaryDirectory(prefix="optwrap-pod-") as directory,
    ):
        say_where(endpoint)
        for number in range(1, _LAUNCHES + 1):
            print(f"Launch {number}: {options.processes} processes", flush=True)
            codes = _launch(number, options.processes, endpoint, Path(directory))
            print(f"  exit codes: {', '.join(map(str, codes))}", flush=True)
            if set(codes) == {0}:
                break
            if set(codes) != {Stop.exit_code}:
                raise DemoError(f"launch {number} failed: {_last_line(Path(directory))}")
            found = answer(endpoint, RUN)
            print(f"  {found['health']}: {found['reason']}; roll back to step {found['last_clean_step']}", flush=True)
        else:
            raise DemoError(f"no launch of {_LAUNCHES} reached the end")
        print("Events:", *_events(endpoint), sep="\n", flush=True)
        print(json.dumps(answer(endpoint, RUN)), flush=True)
        if options.hold:
            hold(endpoint)


def _launch(number: int, processes: int, endpoint: str, directory: Path) -> list[int]:
    """Run all processes of one launch to their end; returns their exit codes."""
    command = [sys.executable, "-m", "examples.stop_and_roll_back", "--launches=1", f"--directory={directory}"]
    command += [f"--coordinator={_free_address()}", f"--processes={processes}"]
    environment = {
        **os.environ,
        "OPTWRAP_ENDPOINT": endpoint,
        "OPTWRAP_ATTEMPT": f"launch-{number}",
        "JAX_PLATFORMS": "cpu",
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
    }
    with contextlib.ExitStack() as stack:
        started = []
        for index in range(processes):
            log = stack.enter_context(open(directory / f"{index}.log", "wb"))
            started.append(subprocess.Popen([*command, f"--process={index}"], stdout=log, stderr=log, env=environment))
        stack.callback(_kill, started)
        try:
            return [process.wait(_LIMIT) for process in started]
        except subprocess.TimeoutExpired:
            raise DemoError(f"launch {number} takes more than {_LIMIT:.0f} s") from None


def _kill(started: list[subprocess.Popen[bytes]]) -> None:
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()


def _last_line(directory: Path) -> str:
    lines = (directory / "0.log").read_text(errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "it wrote nothing")


def _events(endpoint: str) -> Iterator[str]:
    """The events of process 0, the oldest first, as lines."""
    with client(endpoint) as http:
        found: list[dict[str, Any]] = http.get(f"/v1/runs/{RUN}/events", params={"process": 0}).json()["items"]
    for event in reversed(found):
        step = "" if event["step"] is None else f" at step {event['step']}"
        detail = event["detail"]
        details = [f"{name}: {detail[name]}" for name in ("first", "to", "reason", "last_clean_step") if name in detail]
        yield f"  {event['kind']}{step}  {', '.join(details)}".rstrip()


def _free_address() -> str:
    """A free address on this machine, for JAX's coordinator."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"
