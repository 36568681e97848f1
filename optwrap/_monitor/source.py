"""The identity of this process, its platform and its devices, without ever initialising JAX's devices."""

import contextlib
import socket
from typing import Any, Final, Protocol

import jax

from optwrap._version import __version__

_ATTEMPT_TIMEOUT: Final = 10.0
"""Seconds for which a process waits for process 0 to publish the attempt."""


class Source(Protocol):
    """Finds the identity of the reporting process."""

    def process(self) -> int | None:
        """The process's index; None while it is unknown."""
        ...

    def attempt(self, run: str, incarnation: str, now: float) -> str | None:
        """The name of this launch, the same in all its processes; None while it is unknown.

        Args:
          run: the run's name.
          incarnation: id of this process's first incarnation.
          now: monotonic seconds.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """The wire's `source`; fields that are not known yet are empty."""
        ...

    def note_step(self) -> None:
        """Note that a reading was observed, so JAX's devices are initialised."""
        ...


def backend_is_initialized(stepped: bool) -> bool:
    """Whether JAX has initialised its devices.

    Asking JAX for its process index or its devices would initialise them; after that neither
    `jax.distributed.initialize` nor a change of platform works. JAX has no public function for this question. If the
    private one is missing, the answer is no until a reading has been observed.
    """
    try:
        from jax._src.xla_bridge import backends_are_initialized  # noqa: PLC0415  # private: may disappear
    except ImportError:
        return stepped
    return bool(backends_are_initialized())


def _coordination_client() -> Any:
    """The client of the key-value service that `jax.distributed.initialize` starts; None without it."""
    try:
        from jax._src.distributed import global_state  # noqa: PLC0415  # private: may disappear
    except ImportError:
        return None
    return global_state.client


class JaxSource:
    """A `Source` that asks JAX.

    Args:
      process: the process's index; None to ask JAX.
      attempt: the name of this launch; None to agree on one with the other processes.
    """

    def __init__(self, process: int | None, attempt: str | None) -> None:
        self._process = process
        self._attempt = attempt
        self._initialized = False
        self._stepped = False
        self._waiting_since: float | None = None
        self._described: dict[str, Any] = {
            "host": _text(socket.gethostname()),
            "platform": "",
            "device_kind": "",
            "device_count": 0,
            "process_count": 1,
            "jax_version": _text(jax.__version__),
            "optwrap_version": __version__,
        }

    def process(self) -> int | None:
        """The given index, or JAX's once its devices are initialised."""
        self._ask_jax()
        return self._process

    def attempt(self, run: str, incarnation: str, now: float) -> str | None:
        """The given name, or the one that process 0 publishes in JAX's coordination service.

        This is not a collective: nothing runs on a device, and only the reporting threads wait, at most 10 s. Without
        an answer, or without that service, the name is the id of this process's first incarnation.
        """
        if self._attempt is None and (self._ask_jax() or self._process == 0):
            self._attempt = self._agree(run, incarnation, now)
        return self._attempt

    def describe(self) -> dict[str, Any]:
        """The wire's `source`; without the devices until JAX has initialised them."""
        self._ask_jax()
        return self._described

    def note_step(self) -> None:
        """Note that a reading was observed, so JAX's devices are initialised."""
        self._stepped = True

    def _ask_jax(self) -> bool:
        """Read the devices and the process index from JAX, if its devices are initialised; returns whether they are."""
        if not self._initialized and backend_is_initialized(self._stepped):
            device = jax.local_devices()[0]
            self._described |= {
                "platform": _text(device.platform),
                "device_kind": _text(device.device_kind),
                "device_count": jax.device_count(),
                "process_count": jax.process_count(),
            }
            if self._process is None:
                self._process = jax.process_index()
            self._initialized = True
        return self._initialized

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
            # Process 0 has not published it yet.
            if now - self._waiting_since > _ATTEMPT_TIMEOUT:
                return incarnation
        if self._process == 0:
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                client.key_value_set(key, incarnation)
                return incarnation
        return None


def _text(text: str) -> str:
    """The text in the form that the wire allows: printable, at most 256 characters."""
    return "".join(c if c.isprintable() else "?" for c in text)[:256]
