"""The settings of a Monitor, from its arguments and the environment: checked once, then frozen."""

import dataclasses
import operator
import os
import re
import socket
import ssl
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
_MAX_TOKEN_LENGTH: Final = 4096
_MAX_PROCESS: Final = 65_535
_MAX_INTERVAL: Final = 3600.0
_MAX_MEMBERS: Final = 256
_COUNTS_FROM: Final = ("first_reading", "zero")
_ENDPOINTS: Final = f"http://HOST:PORT, https://HOST:PORT, unix:///PATH/TO/SOCKET, or {OFF!r} to turn reporting off"


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """Where reports go: to a Unix socket if `socket_path` is set, otherwise over TCP."""

    text: str
    """The endpoint as it was given, for messages."""
    host: str = "localhost"
    port: int = 0
    prefix: str = ""
    """The path before /v1/reports in a request: empty, or a path that begins with `/`."""
    socket_path: str | None = None
    secure: bool = False
    """Whether TCP is under TLS."""
    ca_file: str | None = None
    """Path of a file with the certificates to trust; None for those of the system."""

    def tls(self) -> ssl.SSLContext:
        """The TLS settings: the certificate must be valid, and for this host.

        Raises:
          OSError: the CA file cannot be read, or has no certificate.
        """
        try:
            return ssl.create_default_context(cafile=self.ca_file)
        except OSError as error:  # it does not name the file
            raise OSError(f"cannot read the CA file {self.ca_file}: {error.strerror or error}") from error


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings of a Monitor."""

    run: str
    endpoint: Endpoint
    process: int | None
    """Process index; None to ask JAX."""
    attempt: str | None
    """None to agree on one with the other processes."""
    token_file: str | None
    interval: float
    """Seconds between reports."""
    counts_from: str | None = None
    """"zero" if this process began the training, "first_reading" if not; None if the program does not say."""
    members: int | None = None
    """How many members the observed ensemble has, each a run of its own; None without an ensemble."""
    replicated: bool = True
    """Whether all processes train the same parameters."""

    @property
    def off(self) -> bool:
        """Whether nothing is reported; steps are read for this program only."""
        return self.endpoint.text == OFF

    @property
    def runs(self) -> tuple[str, ...]:
        """The name of the run, or of each member's run."""
        return tuple(map(self.run_of, range(self.members or 1)))

    def run_of(self, member: int) -> str:
        """The name of a member's run; of the run itself without an ensemble."""
        return self.run if self.members is None else f"{self.run}.{member}"


def resolve(
    environ: Mapping[str, str],
    *,
    run: str | None = None,
    endpoint: str | None = None,
    process: int | None = None,
    attempt: str | None = None,
    token_file: str | os.PathLike[str] | None = None,
    ca_file: str | os.PathLike[str] | None = None,
    interval: float = 1.0,
    counts_from: str | None = None,
    members: int | None = None,
    replicated: bool = True,
    local: bool = False,
) -> Settings | None:
    """The settings given by the arguments and, for those that are None, by the environment.

    An empty variable counts as absent. The token file need not exist: `read_token` reads it when a report is sent.

    Args:
      environ: the environment.
      run: as for the Monitor, like all that follow.
      endpoint: the exporter.
      process: index of this process.
      attempt: name of this launch.
      token_file: path of the token.
      ca_file: path of the certificates to trust.
      interval: seconds between reports.
      counts_from: whether this process began the training.
      members: size of the ensemble.
      replicated: whether all processes train the same parameters.
      local: whether steps are read even if they are not reported.

    Returns:
      None if the endpoint is "off" and steps need not be read.

    Raises:
      ValueError: an argument or variable is wrong; the message names it, its value and what is allowed.
    """

    def given(argument: object, name: str) -> tuple[object, str]:
        variable = f"OPTWRAP_{name.upper()}"
        if argument is not None:
            return argument, f"{name} (or {variable})"
        return environ.get(variable) or None, f"{variable} (or the argument {name})"

    value, names = given(endpoint, "endpoint")
    address = _endpoint(DEFAULT_ENDPOINT if value is None else value, names)
    checked_process = _process(process)
    checked_interval = _interval(interval)
    checked_members = _members(members)
    if counts_from not in (None, *_COUNTS_FROM):
        raise ValueError(f"counts_from: got {counts_from!r}; allowed: {' or '.join(map(repr, _COUNTS_FROM))}")
    if not isinstance(replicated, bool):
        raise ValueError(f"replicated: got {replicated!r}; allowed: True or False")
    if address is None and not local:
        return None

    name, names = given(run, "run")
    if address is None:
        address = Endpoint(OFF)
        name = name or OFF
    if not (isinstance(name, str) and _RUN.fullmatch(name)):
        raise ValueError(
            f"{names}: got {'nothing' if name is None else repr(name)}; allowed: a name of 1 to 128 letters, digits, "
            f"'.', '_', ':' and '-' that begins with a letter or digit, the same after a resume "
            f"(OPTWRAP_ENDPOINT={OFF} turns reporting off)"
        )
    launch, names = given(attempt, "attempt")
    if launch is None:
        launch = _scheduled(environ)
    elif not (isinstance(launch, str) and _ATTEMPT.fullmatch(launch)):
        raise ValueError(f"{names}: got {launch!r}; allowed: 1 to 128 letters, digits, '.', '_', ':' and '-'")
    path = _path(*given(token_file, "token_file"), "the token")
    address = dataclasses.replace(
        address, ca_file=_path(*given(ca_file, "ca_file"), "the certificates to trust, in PEM")
    )
    return Settings(
        name, address, checked_process, launch, path, checked_interval, counts_from, checked_members, replicated
    )


def read_token(path: str) -> str:
    """The token in the file at `path`, without surrounding white space.

    Raises:
      OSError: the file cannot be read.
      ValueError: the file is empty, or its content cannot be in an HTTP header.
    """
    with open(path, encoding="utf-8") as file:
        token = file.read(_MAX_TOKEN_LENGTH + 1).strip()
    if not (_TOKEN.fullmatch(token) and len(token) <= _MAX_TOKEN_LENGTH):
        # The message must not contain the token: it goes to a log.
        raise ValueError(f"allowed: one word of at most {_MAX_TOKEN_LENGTH} printable ASCII characters")
    return token


def _endpoint(given: object, names: str) -> Endpoint | None:
    if given == OFF:
        return None
    if isinstance(given, str) and given.startswith("unix://"):
        path = given.removeprefix("unix://")
        if not path.startswith("/") or "\0" in path:
            raise ValueError(f"{names}: got {given!r}; allowed: {_ENDPOINTS}; the socket's path must be absolute")
        if not hasattr(socket, "AF_UNIX"):
            raise ValueError(f"{names}: got {given!r}; this platform has no Unix sockets; allowed: http://HOST:PORT")
        if len(os.fsencode(path)) > 107:
            raise ValueError(
                f"{names}: got {given!r}; a Unix socket's path is at most 107 bytes; allowed: a shorter one"
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
                url.scheme in ("http", "https")
                and exact
                and host
                and port
                and _HOST.fullmatch(host)
                and _PREFIX.fullmatch(url.path)
            ):
                return Endpoint(given, host, port, url.path.rstrip("/"), secure=url.scheme == "https")
    raise ValueError(f"{names}: got {given!r}; allowed: {_ENDPOINTS}")


def _path(given: object, names: str, content: str) -> str | None:
    if given is None:
        return None
    if isinstance(given, str | os.PathLike):
        return os.fsdecode(given)
    raise ValueError(f"{names}: got {given!r}; allowed: the path of a file that holds {content}")


def _process(given: object) -> int | None:
    if given is None:
        return None
    # Any Python index, such as a numpy integer; but a bool is a mistake.
    if isinstance(given, SupportsIndex) and not isinstance(given, bool):
        process = operator.index(given)
        if 0 <= process <= _MAX_PROCESS:
            return process
    raise ValueError(f"process: got {given!r}; allowed: an integer from 0 to {_MAX_PROCESS}, or None for JAX's")


def _interval(given: object) -> float:
    if isinstance(given, int | float) and not isinstance(given, bool) and 0 < given <= _MAX_INTERVAL:
        return float(given)
    raise ValueError(f"interval: got {given!r}; allowed: seconds, above 0 and at most {_MAX_INTERVAL:g}")


def _members(given: object) -> int | None:
    if given is None:
        return None
    if isinstance(given, SupportsIndex) and not isinstance(given, bool):
        members = operator.index(given)
        if 1 <= members <= _MAX_MEMBERS:
            return members
    raise ValueError(
        f"members: got {given!r}; allowed: the size of the ensemble, an integer from 1 to {_MAX_MEMBERS}, or None if "
        "there is no ensemble"
    )


def _scheduled(environ: Mapping[str, str]) -> str | None:
    """The attempt under Slurm: the same in all processes of a launch, another one after a requeue or the next srun."""
    job = environ.get("SLURM_JOB_ID")
    if not job:
        return None
    parts = ["slurm", job, environ.get("SLURM_RESTART_COUNT") or "0", environ.get("SLURM_STEP_ID") or ""]
    attempt = "-".join(part for part in parts if part)
    return attempt if _ATTEMPT.fullmatch(attempt) else None
