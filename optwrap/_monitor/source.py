"""What this process is and runs on, asked from JAX without ever waking it up."""

import contextlib
import importlib.metadata
import socket
from typing import Any, Final, Protocol

import jax

_PATIENCE: Final = 10.0
"""Seconds for which a process waits for process 0 to say what this launch is called."""


class Source(Protocol):
    """Who reports, as far as it is known yet."""

    def process(self) -> int | None:
        """The process's index; None while it is not known."""
        ...

    def attempt(self, run: str, incarnation: str, now: float) -> str | None:
        """What all processes of this launch call it; None while that is not known. `now` is in monotonic seconds."""
        ...

    def describe(self) -> dict[str, Any]:
        """The wire's `source`, as far as it is known."""
        ...

    def stepped(self) -> None:
        """Take note that a reading was observed."""
        ...


def backend_is_up(stepped: bool) -> bool:
    """Whether JAX has its devices already.

    Asking it for its process index or its devices would initialise them, after which neither
    `jax.distributed.initialize` nor a change of platform works. JAX has no public way to ask whether it has; without
    this private one the answer is no until a reading was observed, which no process without devices can have.
    """
    try:
        from jax._src.xla_bridge import backends_are_initialized  # noqa: PLC0415  # private: may be gone one day
    except ImportError:
        return stepped
    return bool(backends_are_initialized())


def _coordination_client() -> Any:
    """The client of the service that `jax.distributed.initialize` connects all processes to; None without it."""
    try:
        from jax._src.distributed import global_state  # noqa: PLC0415  # private: may be gone one day
    except ImportError:
        return None
    return global_state.client


class JaxSource:
    """`Source` by JAX's own word.

    Args:
      process: the process's index, where it is given.
      attempt: what this launch is called, where it is given or the scheduler knows.
    """

    def __init__(self, process: int | None, attempt: str | None) -> None:
        self._process = process
        self._attempt = attempt
        self._up = False
        self._stepped = False
        self._waiting_since: float | None = None
        self._described: dict[str, Any] = {
            "host": _text(socket.gethostname()),
            "platform": "",
            "device_kind": "",
            "device_count": 0,
            "process_count": 1,
            "jax_version": _text(jax.__version__),
            "optwrap_version": _text(_version()),
        }

    def process(self) -> int | None:
        """The given index, or JAX's once its devices are up."""
        self._look()
        return self._process

    def attempt(self, run: str, incarnation: str, now: float) -> str | None:
        """The given name; else of several processes what process 0 calls it, by way of JAX's coordination service.

        No collective: nothing runs on a device, and nobody waits but the reporting thread of the others, for at most
        10 s; without an answer, or without such a service, the launch is named by this process's first incarnation.
        """
        if self._attempt is None and (self._look() or self._process == 0):
            self._attempt = self._agree(run, incarnation, now)
        return self._attempt

    def describe(self) -> dict[str, Any]:
        """The wire's `source`; until JAX has its devices, without what they are."""
        self._look()
        return self._described

    def stepped(self) -> None:
        """Take note that a reading was observed."""
        self._stepped = True

    def _look(self) -> bool:
        if not self._up and backend_is_up(self._stepped):
            device = jax.local_devices()[0]
            self._described |= {
                "platform": _text(device.platform),
                "device_kind": _text(device.device_kind),
                "device_count": jax.device_count(),
                "process_count": jax.process_count(),
            }
            if self._process is None:
                self._process = jax.process_index()
            self._up = True
        return self._up

    def _agree(self, run: str, incarnation: str, now: float) -> str | None:
        client = _coordination_client() if self._described["process_count"] > 1 else None
        if client is None:
            return incarnation
        key = f"optwrap/attempt/{run}"
        if self._waiting_since is None:
            self._waiting_since = now
        try:
            return str(client.key_value_try_get(key))
        except jax.errors.JaxRuntimeError:
            # Nobody has said it yet. Process 0 does.
            if now - self._waiting_since > _PATIENCE:
                return incarnation
        if self._process == 0:
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                client.key_value_set(key, incarnation)
                return incarnation
        return None


def _version() -> str:
    try:
        return importlib.metadata.version("optwrap")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _text(text: str) -> str:
    """What the wire takes for a text: printable, at most 256 characters."""
    return "".join(c if c.isprintable() else "?" for c in text)[:256]
