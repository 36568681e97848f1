"""Starts and stops a program that serves HTTP, for a test."""

import os
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.polling import wait_until


def free_address() -> str:
    """A host and port on loopback that are free."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@contextmanager
def serving(command: Sequence[str], url: str, log: Path) -> Iterator[None]:
    """Run the program, and wait until it is ready.

    Args:
      command: its command line.
      url: its address; `/-/ready` there answers 200 when it is ready.
      log: the file for its output.
    """
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)

    def ready() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            return httpx.get(f"{url}/-/ready", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    try:
        wait_until(ready, pause=0.1, problem=log.read_text)
        yield
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
