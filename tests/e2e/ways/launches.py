"""Training processes, run to their end; several of them as one launch of `jax.distributed`."""

import socket
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

CONTEXT = get_context("forkserver")


def run_to_the_end(endpoint: str, *jobs: tuple[Callable[..., None], tuple[Any, ...]], directory: Path) -> list[Any]:
    """What each job sends at its end.

    Args:
      endpoint: of the exporter.
      *jobs: a function, and what it is given after a connection, the endpoint and the path of its log.
      directory: where the logs are.
    """
    started, said = [], []
    for place, (target, given) in enumerate(jobs):
        ours, theirs = CONTEXT.Pipe()
        log = directory / f"{place}.log"
        process = CONTEXT.Process(target=target, args=(theirs, endpoint, log, *given), daemon=True)
        process.start()
        theirs.close()
        started.append((process, ours, log))
    try:
        for _, ours, log in started:
            try:
                assert ours.poll(240), log.read_text()
                said.append(ours.recv())
            except EOFError:
                raise AssertionError(log.read_text()) from None
        for process, _, log in started:
            process.join(60)
            assert process.exitcode == 0, log.read_text()
            assert "passed over" not in log.read_text(), log.read_text()
    finally:
        for process, _, _ in started:
            process.kill()
    return said


def free_address() -> str:
    """Of 127.0.0.1, for a coordinator."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"
