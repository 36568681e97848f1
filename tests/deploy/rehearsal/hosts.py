"""Hosts in network namespaces: each with an address, a name and a cable to a bridge. They end with the program.

`enclosed` is the command line that runs this program again in namespaces of its own, of mounts, network and processes.
So names, addresses and ports are free, two rehearsals cannot meet, and the kernel cleans up, whatever ends the program.
Without root it takes a user namespace, too.
"""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

PROGRAMS: Final = ("ip", "unshare", "nsenter", "mount", "hostname")
CENTRE: Final = "10.77.0.254"
"""The address of the bridge, and so of this program and all that is not on a host."""

_BRIDGE: Final = "rehearsal"
_PROBE: Final = """set -e
mount -t tmpfs tmpfs /run
ip link add probe type bridge
ip netns add probe
ip link add cable type veth peer name eth0 netns probe
nsenter --net=/run/netns/probe unshare --uts hostname probe
"""


def enclosed(command: Sequence[str]) -> list[str]:
    """The command line that runs a command in namespaces of its own."""
    user = () if os.geteuid() == 0 else ("--user", "--map-root-user")
    own = ("--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
    return ["unshare", *user, *own, "--", *command]


def problem() -> str | None:
    """Why there can be no hosts here; None if there can."""
    try:
        tried = subprocess.run(enclosed(["sh", "-c", _PROBE]), capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"no namespaces: {error}"
    return None if tried.returncode == 0 else f"no namespaces: {tried.stderr.strip() or 'refused'}"


def _sh(*commands: str) -> None:
    for command in commands:
        done = subprocess.run(shlex.split(command), capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{command}: {done.stderr.strip()}")


def prepare(names: Sequence[str]) -> list["Host"]:
    """Make the hosts of these names; to be called once, by the program that `enclosed` has started."""
    _sh("mount -t tmpfs tmpfs /run", "ip link set lo up")
    _sh(f"ip link add {_BRIDGE} type bridge", f"ip addr add {CENTRE}/24 dev {_BRIDGE}", f"ip link set {_BRIDGE} up")
    hosts = [Host(name, f"10.77.0.{number}") for number, name in enumerate(names, start=1)]
    known = [("127.0.0.1", "localhost"), (CENTRE, "centre"), *((host.address, host.name) for host in hosts)]
    file = Path("/run/hosts")
    file.write_text("".join(f"{address} {name}\n" for address, name in known))
    _sh(f"mount --bind {file} /etc/hosts")
    for host in hosts:
        host.boot()
    return hosts


class Host:
    """One machine of the job: `boot`, `start` programs on it, `cut` and `mend` its cable, `die`."""

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self.address = address

    def boot(self) -> None:
        """Have the host, connected, and with nothing running on it."""
        name = self.name
        _sh(
            f"ip netns add {name}",
            f"ip link add {name} type veth peer name eth0 netns {name}",
            f"ip link set {name} master {_BRIDGE} up",
            f"ip -n {name} link set lo up",
            f"ip -n {name} addr add {self.address}/24 dev eth0",
            f"ip -n {name} link set eth0 up",
        )

    def command(self, command: Sequence[str]) -> list[str]:
        """The command line that runs a command on this host, without a process around it."""
        script = 'hostname "$0" && exec "$@"'
        return [
            *("nsenter", f"--net=/run/netns/{self.name}", "unshare", "--uts"),
            *("sh", "-c", script, self.name, *command),
        ]

    def start(self, command: Sequence[str], log: Path, **environment: str) -> subprocess.Popen[bytes]:
        """Start a program on this host.

        Args:
          command: its command line.
          log: the file for its output.
          **environment: what it has beside this program's own environment.
        """
        with log.open("ab") as output:
            return subprocess.Popen(
                self.command(command), stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=clean() | environment
            )

    def cut(self) -> None:
        """Pull the cable: at the other end, so the host keeps its address."""
        _sh(f"ip link set {self.name} down")

    def mend(self) -> None:
        """Put the cable in again."""
        _sh(f"ip link set {self.name} up")

    def die(self) -> None:
        """Lose the host at once: the cable first, so that nobody hears of the end of its processes."""
        _sh(f"ip link del {self.name}")
        deadline = time.monotonic() + 30
        while pids := self._pids():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            assert time.monotonic() < deadline, f"{self.name}: processes {pids} do not end"
            time.sleep(0.02)
        _sh(f"ip netns del {self.name}")

    def _pids(self) -> list[int]:
        """The processes that run on it."""
        found = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=True)
        return [int(line) for line in found.stdout.split()]


def clean() -> dict[str, str]:
    """This program's environment without proxies, and without what configures a Monitor or an exporter."""
    return {
        name: value
        for name, value in os.environ.items()
        if "proxy" not in name.lower() and not name.startswith("OPTWRAP_")
    }


def python(module: str, *arguments: str) -> list[str]:
    """The command line that runs a module by this Python."""
    return [sys.executable, "-m", module, *arguments]
