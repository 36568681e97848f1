"""What one exporter is told at its start: a frozen value, made once by the command line and passed on."""

import dataclasses
import ipaddress
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

DEFAULT_LISTEN: Final = "127.0.0.1:10425"
DEFAULT_RETENTION_DAYS: Final = "30"
DEFAULT_RETENTION_BYTES: Final = "1GiB"
MIN_RETENTION_BYTES: Final = 1 << 20
"""Below this not even the totals of a handful of runs fit."""

_UNITS: Final = {"": 1, "B": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}
_UNITS_DECIMAL: Final = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_HOST_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,252})")


@dataclasses.dataclass(frozen=True)
class Address:
    """A TCP address to listen on."""

    host: str
    """An IP address, or a name that resolves to one; without brackets."""
    port: int
    """0 takes any free port."""

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it. A name other than localhost counts as not: it may move."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host.lower() == "localhost"

    @property
    def wildcard(self) -> bool:
        """Whether it means every address of this machine."""
        try:
            return ipaddress.ip_address(self.host).is_unspecified
        except ValueError:
            return False

    def __str__(self) -> str:
        """`host:port`, brackets round an IPv6 host."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything an exporter is told from outside."""

    listen: Address
    data_dir: Path
    ingest_socket: Path | None = None
    """Unix socket that takes reports, whatever `listen` is."""
    token: str | None = dataclasses.field(default=None, repr=False)
    """What a report over TCP must carry as its bearer token; None asks for none."""
    retention_days: float = 30.0
    """Step records and events older than this go; a run without a report for as long goes whole."""
    retention_bytes: int = 1 << 30
    """Size of the store above which the oldest step records go first."""
    allowed_hosts: tuple[str, ...] = ()
    """Further names that a request's Host header may carry, lower case."""
    grafana_url: str | None = None
    """Where Grafana is, as a browser reaches it; None: the page has no link to it."""
    log_level: str = "info"

    @property
    def tcp_ingest(self) -> bool:
        """Whether reports are taken over TCP: from this machine, or from whoever has the token."""
        return self.listen.loopback or self.token is not None

    @property
    def hosts(self) -> frozenset[str]:
        """The names a request's Host header may carry. An IP address cannot be rebound, a name can."""
        own = set() if self.listen.wildcard else {self.listen.host.lower()}
        return frozenset({"localhost", "127.0.0.1", "::1", *own, *self.allowed_hosts})


def parse_address(text: str) -> Address:
    """`host:port`, `[ipv6]:port` or `:port` (every address).

    Raises:
      ValueError: neither, or the port is not 0 to 65535.
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


def parse_size(text: str) -> int:
    """Bytes, from a number with or without B, KB, KiB, MB, MiB, GB, GiB, TB, TiB.

    Raises:
      ValueError: not such a size, or below MIN_RETENTION_BYTES.
    """
    found = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,6})?)\s*([A-Za-z]*)\s*", text, re.ASCII)
    unit = {**_UNITS, **_UNITS_DECIMAL}.get(found[2].upper()) if found else None
    if found is None or unit is None:
        raise ValueError(f"{text!r} is not a size in bytes such as 1073741824, 500MB or 1GiB")
    size = int(float(found[1]) * unit)
    if size < MIN_RETENTION_BYTES:
        raise ValueError(f"{text!r} is less than 1MiB, the least a store can work with")
    return size


def parse_web_url(text: str) -> str:
    """An http or https address, without a slash at its end.

    Raises:
      ValueError: it is none, or carries credentials, a query or a fragment.
    """
    try:
        parts = urlsplit(text)
        good = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good or "@" in parts.netloc or parts.query or parts.fragment or not text.isprintable() or " " in text:
        raise ValueError(f"{text!r} is not an address such as https://grafana.example.org or http://host:3000/grafana")
    return text.rstrip("/")


def parse_number(text: str, above: float, most: float) -> float:
    """A number with above < number <= most.

    Raises:
      ValueError: not such a number.
    """
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not above < number <= most:
        raise ValueError(f"{text!r} is not a number above {above:g} and at most {most:g}")
    return number


def read_token(path: Path) -> str:
    """The token in a file: its one line, without white space around it.

    Raises:
      OSError: it cannot be read.
      ValueError: it is empty, more than one line, or holds what no HTTP header may.
    """
    with path.open("rb") as file:
        raw = file.read(4097).strip()
    # RFC 6750's b68token, widened to all visible ASCII: what a header can carry unchanged.
    if not raw or len(raw) > 4096 or not all(0x21 <= byte <= 0x7E for byte in raw):
        raise ValueError(f"{str(path)!r} must hold one token: 1 to 4096 visible ASCII characters, no spaces")
    return raw.decode("ascii")


def default_data_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """Where a program keeps its state by the XDG base directory specification.

    Raises:
      ValueError: neither XDG_STATE_HOME nor a home directory is known.
    """
    state = environ.get("XDG_STATE_HOME", "")
    if state and Path(state).is_absolute():
        return Path(state) / "optwrap-exporter"
    try:
        return Path.home() / ".local" / "state" / "optwrap-exporter"
    except RuntimeError as error:
        raise ValueError("there is no home directory to keep the data in: give --data-dir") from error
