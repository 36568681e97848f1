"""What a Monitor was told, by its arguments and the environment: checked once, then frozen."""

import dataclasses
import operator
import os
import re
import socket
import urllib.parse
from collections.abc import Mapping
from typing import Final, SupportsIndex

DEFAULT_ENDPOINT: Final = "http://127.0.0.1:10425"
OFF: Final = "off"

_RUN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_ATTEMPT: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_TOKEN: Final = re.compile(r"[\x21-\x7e]+")
_HOST: Final = re.compile(r"[A-Za-z0-9._:-]+")
_PREFIX: Final = re.compile(r"(/[A-Za-z0-9._~-]+)*/?")
_LARGEST_PROCESS: Final = 65_535
_LONGEST_INTERVAL: Final = 3600.0
_ENDPOINTS: Final = f"http://HOST:PORT, unix:///PATH/TO/SOCKET, or {OFF!r} to report nothing"


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """Where reports go: a Unix socket where `socket_path` is set, TCP otherwise."""

    text: str
    """As it was given, for messages."""
    host: str = "localhost"
    port: int = 0
    prefix: str = ""
    """What stands before /v1/reports in the path of a request: empty, or `/` and more."""
    socket_path: str | None = None


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a Monitor was told."""

    run: str
    endpoint: Endpoint
    process: int | None
    """None: JAX's own process index."""
    attempt: str | None
    """None: not known without asking other processes."""
    token_file: str | None
    interval: float
    """Seconds between reports."""


def resolve(
    environ: Mapping[str, str],
    *,
    run: str | None = None,
    endpoint: str | None = None,
    process: int | None = None,
    attempt: str | None = None,
    token_file: str | os.PathLike[str] | None = None,
    interval: float = 1.0,
) -> Settings | None:
    """The settings that arguments and environment amount to; an argument beats its variable, an empty variable is none.

    Returns:
      None where the endpoint is "off".

    Raises:
      ValueError: an argument or variable is wrong; the message names it, the value and what is allowed.
    """

    def given(argument: object, name: str) -> tuple[object, str]:
        variable = f"OPTWRAP_{name.upper()}"
        if argument is not None:
            return argument, f"{name} (or {variable})"
        return environ.get(variable) or None, f"{variable} (or the argument {name})"

    where, said = given(endpoint, "endpoint")
    address = _endpoint(DEFAULT_ENDPOINT if where is None else where, said)
    checked_process = _process(process)
    checked_interval = _interval(interval)
    if address is None:
        return None

    name, said = given(run, "run")
    if not (isinstance(name, str) and _RUN.fullmatch(name)):
        raise ValueError(
            f"{said}: got {'nothing' if name is None else repr(name)}; allowed: a name of 1 to 128 letters, digits, "
            f"'.', '_', ':' and '-' that begins with a letter or digit, the same after a resume "
            f"(OPTWRAP_ENDPOINT={OFF} turns reporting off)"
        )
    launch, said = given(attempt, "attempt")
    if launch is None:
        launch = _scheduled(environ)
    elif not (isinstance(launch, str) and _ATTEMPT.fullmatch(launch)):
        raise ValueError(f"{said}: got {launch!r}; allowed: 1 to 128 letters, digits, '.', '_', ':' and '-'")
    secret, said = given(token_file, "token_file")
    path = None
    if secret is not None:
        if not isinstance(secret, str | os.PathLike):
            raise ValueError(f"{said}: got {secret!r}; allowed: the path of a file that holds the token")
        path = os.fsdecode(secret)
        try:
            read_token(path)
        except (OSError, ValueError) as error:
            raise ValueError(f"{said}: got {path!r}; allowed: a readable file with one token in it: {error}") from error
    return Settings(name, address, checked_process, launch, path, checked_interval)


def read_token(path: str) -> str:
    """The token in the file at `path`, without the white space around it.

    Raises:
      OSError: it cannot be read.
      ValueError: it holds nothing, or what an HTTP header cannot carry.
    """
    with open(path, encoding="utf-8") as file:
        token = file.read(4097).strip()
    if not (_TOKEN.fullmatch(token) and len(token) <= 4096):
        # The token itself is not for a log.
        raise ValueError("a token is one word of at most 4096 printable ASCII characters")
    return token


def _endpoint(given: object, said: str) -> Endpoint | None:
    if given == OFF:
        return None
    if isinstance(given, str) and given.startswith("unix://"):
        path = given.removeprefix("unix://")
        if not path.startswith("/") or "\0" in path:
            raise ValueError(f"{said}: got {given!r}; allowed: {_ENDPOINTS}; a socket's path is absolute")
        if not hasattr(socket, "AF_UNIX"):
            raise ValueError(f"{said}: got {given!r}; this platform has no Unix sockets; allowed: http://HOST:PORT")
        if len(os.fsencode(path)) > 107:
            raise ValueError(
                f"{said}: got {given!r}; a Unix socket's path is at most 107 bytes; allowed: a shorter one"
            )
        return Endpoint(given, socket_path=path)
    if isinstance(given, str):
        try:
            url = urllib.parse.urlsplit(given)
            host, port = url.hostname, url.port
        except ValueError:
            host = port = None
        else:
            exact = not (url.username or url.password or url.query or url.fragment)
            if (
                url.scheme == "http"
                and exact
                and host
                and port
                and _HOST.fullmatch(host)
                and _PREFIX.fullmatch(url.path)
            ):
                return Endpoint(given, host=host, port=port, prefix=url.path.rstrip("/"))
    raise ValueError(f"{said}: got {given!r}; allowed: {_ENDPOINTS}")


def _process(given: object) -> int | None:
    if given is None:
        return None
    # Whatever counts as an index in Python, numpy's integers among it; a bool is a mistake.
    if isinstance(given, SupportsIndex) and not isinstance(given, bool):
        process = operator.index(given)
        if 0 <= process <= _LARGEST_PROCESS:
            return process
    raise ValueError(f"process: got {given!r}; allowed: an integer from 0 to {_LARGEST_PROCESS}, or None for JAX's")


def _interval(given: object) -> float:
    if isinstance(given, int | float) and not isinstance(given, bool) and 0 < given <= _LONGEST_INTERVAL:
        return float(given)
    raise ValueError(f"interval: got {given!r}; allowed: seconds, above 0 and at most {_LONGEST_INTERVAL:g}")


def _scheduled(environ: Mapping[str, str]) -> str | None:
    """What Slurm calls this launch: the same for all its processes, another after a requeue or the job's next srun."""
    job = environ.get("SLURM_JOB_ID")
    if not job:
        return None
    parts = ["slurm", job, environ.get("SLURM_RESTART_COUNT") or "0", environ.get("SLURM_STEP_ID") or ""]
    attempt = "-".join(part for part in parts if part)
    return attempt if _ATTEMPT.fullmatch(attempt) else None
