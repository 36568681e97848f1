"""Images built by buildah and run by runc or crun: without a daemon, in directories of their own."""

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from tests.polling import wait_until

RUNTIME: Final = next((name for name in ("runc", "crun") if shutil.which(name)), "")
"""runc first: crun refuses the cgroups of version 1 beside version 2."""
Mounts = Mapping[Path, Path]
"""Where directories of this machine are mounted in a container, read-only or not."""


def run(command: Sequence[object], **options: Any) -> str:
    """The standard output of a command; if it fails, all that it said is the error."""
    ran: subprocess.CompletedProcess[str] = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=False, **options
    )
    assert ran.returncode == 0, f"{command[0]}: {ran.stdout[-4000:]}\n{ran.stderr[-4000:]}"
    return ran.stdout.strip()


@dataclasses.dataclass(frozen=True)
class Store:
    """buildah's images and working containers."""

    root: Path

    def buildah(self, command: str, *arguments: object, wrapper: Sequence[str] = ()) -> str:
        """The output of a command of buildah. `wrapper` is a command that starts it."""
        places = ["--root", self.root / "storage", "--runroot", self.root / "run", "--storage-driver", "vfs"]
        return run([*wrapper, "buildah", *places, command, *arguments])

    def add_base(self, name: str, filesystem: Path, path: str) -> None:
        """Make an image of a root file system, with the variable PATH."""
        container = self.buildah("from", "scratch")
        self.buildah("add", "--quiet", container, filesystem, "/")
        self.buildah("config", "--env", f"PATH={path}", container)
        self.buildah("commit", "--quiet", container, name)
        self.buildah("rm", container)

    def build(self, name: str, context: Path, *options: object, mounts: Mounts, offline: bool) -> None:
        """`docker build` of the context's Dockerfile, if `offline` in a network that has nothing."""
        volumes = [f"--volume={here}:{there}:ro" for there, here in mounts.items()]
        common = ["--isolation=chroot", "--format=docker", "--pull=never", "--quiet", f"--tag={name}"]
        self.buildah("build", *common, *volumes, *options, context, wrapper=["unshare", "--net"] if offline else [])

    def config(self, name: str) -> dict[str, Any]:
        """The configuration of an image, as Docker has it: Env, User, Entrypoint, Labels, Healthcheck, ..."""
        found: dict[str, Any] = json.loads(self.buildah("inspect", "--type", "image", name))["Docker"]["config"]
        return found

    def filesystem(self, name: str) -> Path:
        """The root file system of a new container of the image."""
        return Path(self.buildah("mount", self.buildah("from", "--pull=never", name)))


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a container is started with. Its root is read-only."""

    filesystem: Path
    config: dict[str, Any]
    """Its image's."""
    user: tuple[int, int]
    """Its user and group."""
    volumes: Mounts
    """What it can write."""
    read_only: Mounts
    """What else is mounted."""


class Container:
    """A running container, without privileges and in a network of its own.

    Args:
      directory: a new directory for its bundle and the runtime's state.
      setting: all else.
    """

    def __init__(self, directory: Path, setting: Setting) -> None:
        directory.mkdir()
        self._name = f"optwrap-test-{os.getpid()}-{directory.name}"
        self._command = [RUNTIME, "--root", str(directory / "state")]
        self._environment: list[str] = setting.config["Env"]
        (directory / "config.json").write_text(json.dumps(_specification(setting)))
        self._log = directory / "log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*self._command, "run", "--bundle", str(directory), self._name],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    @property
    def log(self) -> str:
        """What its process, or the runtime, has written."""
        return self._log.read_text()

    def wait_for(self, path: Path) -> None:
        """Wait until the file exists, or the container has ended."""
        wait_until(lambda: path.exists() or self._process.poll() is not None)
        assert self._process.poll() is None, self.log

    def execute(self, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command in it, as its user, with its environment and these variables."""
        environment = [*self._environment, *(f"{name}={value}" for name, value in variables.items())]
        more = [f"--env={pair}" for pair in environment]  # crun takes them in the place of the container's
        return subprocess.run(
            [*self._command, "exec", *more, self._name, *command], capture_output=True, text=True, check=False
        )

    def stop(self) -> int:
        """Send SIGTERM, as an engine does, and wait; its exit status."""
        if self._process.poll() is None:
            run([*self._command, "kill", self._name, "TERM"])
        try:
            return self._process.wait(30)
        except subprocess.TimeoutExpired:
            subprocess.run([*self._command, "delete", "--force", self._name], check=False)
            raise


@contextlib.contextmanager
def running(directory: Path, setting: Setting) -> Iterator[Container]:
    """A `Container` that ends with the block."""
    container = Container(directory, setting)
    try:
        yield container
    finally:
        container.stop()


def _specification(setting: Setting) -> dict[str, Any]:
    """The config.json of an OCI bundle."""

    def bind(there: Path, here: Path, *options: str) -> dict[str, Any]:
        return {"destination": str(there), "type": "bind", "source": str(here), "options": ["rbind", *options]}

    return {
        "ociVersion": "1.0.2",
        "hostname": "container",
        "process": {
            "user": {"uid": setting.user[0], "gid": setting.user[1]},
            "args": setting.config["Entrypoint"],
            "env": setting.config["Env"],
            "cwd": setting.config.get("WorkingDir") or "/",
            "capabilities": {},
            "noNewPrivileges": True,
        },
        "root": {"path": str(setting.filesystem), "readonly": True},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev"]},
            *(bind(there, here, "ro") for there, here in setting.read_only.items()),
            *(bind(there, here, "rw") for there, here in setting.volumes.items()),
        ],
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts", "network")]},
    }


# --- stand-ins for the base image


class Python(NamedTuple):
    """What stands in for the base image, beside its root file system."""

    version: str
    """Such as 3.11."""
    path: str
    """The value of PATH."""
    mounts: Mounts


def machine_base(into: Path) -> Python:
    """A root file system of links into this machine's /usr and Python, which are mounted: quick, nothing is loaded."""
    for name in ("dev", "etc", "proc", "run", "sys", "tmp", "usr", "var"):
        (into / name).mkdir(parents=True)
    for name in ("bin", "lib", "lib64", "sbin"):
        if Path("/", name).is_symlink():
            (into / name).symlink_to(Path("/", name).readlink())
    (into / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (into / "etc" / "group").write_text("root:x:0:\n")
    shutil.copy("/etc/ld.so.cache", into / "etc")
    python = Path(sys.base_prefix)
    mounts = {Path("/usr"): Path("/usr")} | ({} if python.is_relative_to("/usr") else {python: python})
    return Python("{}.{}".format(*sys.version_info), f"{python}/bin:/usr/local/bin:/usr/sbin:/usr/bin", mounts)


def debian_base(into: Path) -> Python:
    """A small Debian or Ubuntu with Python, by debootstrap from the mirror that apt uses here."""
    lines = Path("/etc/os-release").read_text().splitlines()
    release = dict(line.split("=", 1) for line in lines if "=" in line)["VERSION_CODENAME"]
    listed = run(["apt-get", "indextargets", "--format", "$(REPO_URI)", f"Codename: {release}", "Created-By: Packages"])
    packages = "ca-certificates,python-is-python3,python3,python3-pip,python3-venv"
    mirror = listed.splitlines()[0]
    run(["debootstrap", "--variant=minbase", f"--include={packages}", release, into, mirror])
    shutil.rmtree(into / "var" / "cache" / "apt")
    version = run(["chroot", into, "python", "-c", "import sys; print('{}.{}'.format(*sys.version_info))"])
    return Python(version, "/usr/sbin:/usr/bin", {})
