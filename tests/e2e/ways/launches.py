"""Runs training processes to their end; several of them as one launch of `jax.distributed`."""

import socket
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

CONTEXT = get_context("forkserver")


def run_to_the_end(endpoint: str, *jobs: tuple[Callable[..., None], tuple[Any, ...]], directory: Path) -> list[Any]:
    """Run jobs at the same time; returns what each sends at its end.

    Args:
      endpoint: of the exporter.
      *jobs: a function, and its arguments after a connection, the endpoint and the path of its log.
      directory: for the logs.
    """
    started, sent = [], []
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
                sent.append(ours.recv())
            except EOFError:
                raise AssertionError(log.read_text()) from None
        for process, _, log in started:
            process.join(60)
            assert process.exitcode == 0, log.read_text()
            assert "optwrap:" not in log.read_text(), log.read_text()
    finally:
        for process, _, _ in started:
            process.kill()
    return sent


def free_address() -> str:
    """A free address on 127.0.0.1, for a coordinator."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"
