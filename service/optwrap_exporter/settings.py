"""The settings of one exporter: an immutable value that the command line makes and passes on."""

import dataclasses
import ipaddress
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from optwrap_exporter.wire.vocabulary import Scope

DEFAULT_LISTEN: Final = "127.0.0.1:10425"
DEFAULT_RETENTION_DAYS: Final = "30"
DEFAULT_RETENTION_BYTES: Final = "1GiB"
DEFAULT_NEW_RUNS: Final = 300
MIN_RETENTION_BYTES: Final = 1 << 20
"""The smallest size of a store: enough for the totals of a few runs."""

_UNITS: Final = {"": 1, "B": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}
_UNITS_DECIMAL: Final = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_HOST_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,252})")


@dataclasses.dataclass(frozen=True)
class Address:
    """A TCP address to listen on."""

    host: str
    """An IP address without brackets, or a name that resolves to one."""
    port: int
    """0 chooses a free port."""

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the address. Names other than localhost do not count: they may change."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host.lower() == "localhost"

    @property
    def ips(self) -> frozenset[str]:
        """The IP address in its canonical form; for localhost those of loopback, and for other names none."""
        try:
            return frozenset({str(ipaddress.ip_address(self.host))})
        except ValueError:
            return frozenset({"127.0.0.1", "::1"} if self.loopback else ())

    @property
    def wildcard(self) -> bool:
        """Whether the address stands for every address of this machine."""
        try:
            return ipaddress.ip_address(self.host).is_unspecified
        except ValueError:
            return False

    def __str__(self) -> str:
        """`host:port`, with brackets around an IPv6 host."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that is configured from outside."""

    listen: tuple[Address, ...]
    """At least one."""
    data_dir: Path
    ingest_socket: Path | None = None
    """A Unix socket that also accepts reports."""
    ingest_socket_mode: int | None = None
    """The mode of the socket file; None for 0600, or 0660 with a group."""
    ingest_socket_group: int | None = None
    """The group of the socket file; None leaves it as it is."""
    token: str | None = dataclasses.field(default=None, repr=False)
    """The bearer token required of reports over TCP; None requires none."""
    retention_days: float = 30.0
    """Step records and events older than this are deleted, and whole runs that have not reported for as long."""
    retention_bytes: int = 1 << 30
    """The size of the store above which the oldest step records are deleted, then the oldest events."""
    allowed_hosts: tuple[str, ...] = ()
    """More names that the Host header of a request may carry, in lower case."""
    new_runs_per_minute: int = DEFAULT_NEW_RUNS
    """New runs beyond this many per minute are refused for the time being."""
    recover: bool = False
    """Whether to move a damaged database aside at start and begin a new one."""
    scope: Scope = "host"
    """What it hears. With `host` a process of the job that has not reported here is not missing."""
    grafana_url: str | None = None
    """The address of Grafana as browsers see it. If None, the page does not link to Grafana."""
    event_log: str | None = None
    """A file for the events as JSON lines, or - for standard output."""
    webhook: str | None = dataclasses.field(default=None, repr=False)
    """A URL to post incidents to; it may have a secret."""
    announce: Path | None = None
    """A file that has its address while it runs, for Prometheus' file_sd."""
    log_level: str = "info"

    @property
    def closed(self) -> tuple[Address, ...]:
        """The addresses that accept no reports: without a token all those beyond loopback."""
        return () if self.token is not None else tuple(one for one in self.listen if not one.loopback)

    @property
    def without_token(self) -> frozenset[tuple[str, int]]:
        """IP address and port of the loopback addresses, if there are others: the token is for the others."""
        own = [one for one in self.listen if one.loopback]
        return frozenset((ip, one.port) for one in own for ip in one.ips if len(own) < len(self.listen))

    @property
    def hosts(self) -> frozenset[str]:
        """The names that the Host header of a request may carry."""
        own = {one.host.lower() for one in self.listen if not one.wildcard}
        return frozenset({"localhost", "127.0.0.1", "::1", *own, *self.allowed_hosts})

    @property
    def any_ip(self) -> bool:
        """Whether the Host header may carry any IP address, because it listens on every address."""
        return any(one.wildcard for one in self.listen)


def parse_address(text: str) -> Address:
    """Parse `host:port`, `[ipv6]:port`, or `:port` for every address.

    Raises:
      ValueError: the text has none of these forms, or the port is not from 0 to 65535.
    """
    host, separator, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1]
    try:
        number = int(port) if separator and port.isascii() and port.isdigit() else -1
        if bracketed:
            ipaddress.IPv6Address(host)
        elif host and _HOST_NAME.fullmatch(host) is None:
            number = -1
    except ValueError:
        number = -1
    if not 0 <= number <= 65535:
        raise ValueError(f"{text!r} is not host:port, [ipv6]:port or :port with a port from 0 to 65535")
    return Address(host or "0.0.0.0", number)


def parse_addresses(text: str) -> tuple[Address, ...]:
    """Parse addresses separated by commas; see `parse_address`.

    Raises:
      ValueError: one of them is no address.
    """
    return tuple(parse_address(one.strip()) for one in text.split(","))


def parse_announcement(text: str) -> Path:
    """Parse the path of a file for Prometheus' file_sd.

    Raises:
      ValueError: Prometheus would not read a file of this name.
    """
    if not text.endswith(".json"):
        raise ValueError(f"{text!r} does not end in .json: Prometheus would not read it")
    return Path(text)


def parse_mode(text: str) -> int:
    """Parse the mode of a socket file, in octal.

    Raises:
      ValueError: it is no such mode, or the owner could not connect.
    """
    mode = int(text, 8) if re.fullmatch("0?[0-7]{3}", text) else 0
    if mode & 0o600 != 0o600:
        raise ValueError(f"{text!r} is not an octal mode such as 0660 that lets the owner read and write")
    return mode


def parse_group(text: str) -> int:
    """Parse the name or the number of a group.

    Raises:
      ValueError: there is no such group.
    """
    if text.isascii() and text.isdigit() and int(text) < 1 << 32:
        return int(text)
    try:
        import grp  # noqa: PLC0415  # not on Windows

        return grp.getgrnam(text).gr_gid
    except (ImportError, KeyError) as error:
        raise ValueError(f"{text!r} is not the name of a group here, nor its number") from error


def parse_size(text: str) -> int:
    """Parse a number of bytes, with or without a unit: B, KB, KiB, MB, MiB, GB, GiB, TB, TiB.

    Raises:
      ValueError: the text is not a size, or the size is below MIN_RETENTION_BYTES.
    """
    found = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,6})?)\s*([A-Za-z]*)\s*", text, re.ASCII)
    unit = {**_UNITS, **_UNITS_DECIMAL}.get(found[2].upper()) if found else None
    if found is None or unit is None:
        raise ValueError(f"{text!r} is not a size in bytes such as 1073741824, 500MB or 1GiB")
    size = int(float(found[1]) * unit)
    if size < MIN_RETENTION_BYTES:
        raise ValueError(f"{text!r} is below the smallest size, 1MiB")
    return size


def parse_web_url(text: str) -> str:
    """Parse an http or https URL; a trailing slash is removed.

    Raises:
      ValueError: the text is not such a URL, or has credentials, a query or a fragment.
    """
    try:
        parts = urlsplit(text)
        good = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good or "@" in parts.netloc or parts.query or parts.fragment or not text.isprintable() or " " in text:
        raise ValueError(f"{text!r} is not a URL such as https://grafana.example.org or http://host:3000/grafana")
    return text.rstrip("/")


def parse_webhook(text: str) -> str:
    """Parse the URL of a webhook.

    Raises:
      ValueError: the text is no http or https URL. The message does not have the text, which may be a secret.
    """
    try:
        parts = urlsplit(text)
        good = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good or not text.isprintable() or " " in text:
        raise ValueError("the text given is not a URL such as https://hooks.example.org/T0/B0/secret")
    return text


def parse_number(text: str, above: float, most: float) -> float:
    """Parse a number with above < number <= most.

    Raises:
      ValueError: the text is not such a number.
    """
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not above < number <= most:
        raise ValueError(f"{text!r} is not a number above {above:g} and at most {most:g}")
    return number


def read_token(path: Path) -> str:
    """Read a token from a file: its only line, without surrounding white space.

    Raises:
      OSError: the file cannot be read.
      ValueError: the file is empty or too long, or holds characters that a token cannot have.
    """
    with path.open("rb") as file:
        raw = file.read(4097).strip()
    # RFC 6750 allows fewer characters in a bearer token. A header carries all visible ASCII unchanged.
    if not raw or len(raw) > 4096 or not all(0x21 <= byte <= 0x7E for byte in raw):
        raise ValueError(f"{str(path)!r} must contain one token: 1 to 4096 visible ASCII characters, no spaces")
    return raw.decode("ascii")


def default_data_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """The default data directory, by the XDG base directory specification.

    Raises:
      ValueError: neither XDG_STATE_HOME nor a home directory is known.
    """
    state = environ.get("XDG_STATE_HOME", "")
    if state and Path(state).is_absolute():
        return Path(state) / "optwrap-exporter"
    try:
        return Path.home() / ".local" / "state" / "optwrap-exporter"
    except RuntimeError as error:
        raise ValueError("there is no home directory for the data: set --data-dir") from error
