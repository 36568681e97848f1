"""The exporter's image, built by buildah and run by runc or crun. `make images` takes a real Debian as its base.

In the suite the base image is this machine's own Python, mounted; with --thorough it is made by debootstrap, and pip's
configuration is tried as a secret as well.
"""

import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import optwrap_exporter
import pytest

from tests.deploy.containers import (
    RUNTIME,
    Container,
    Mounts,
    Python,
    Setting,
    Store,
    debian_base,
    machine_base,
    run,
    running,
)
from tests.deploy.dockerfile import health_check, stages
from tests.deploy.places import ROOT
from tests.e2e.environments import build
from tests.exporter.running import Job

IMAGE, BASE = "localhost/optwrap-exporter", "localhost/base"
REVISION = "0123456789abcdef0123456789abcdef01234567"
DATA, SOCKETS = Path("/var/lib/optwrap"), Path("/run/optwrap")
MISSING = [name for name in ("buildah", "unshare", RUNTIME or "runc or crun") if shutil.which(name) is None]

pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"not on PATH: {', '.join(MISSING)}"),
    pytest.mark.skipif(os.geteuid() != 0, reason="buildah's chroot isolation is tried as root"),
]


class Base(NamedTuple):
    """What stands in for the base image."""

    store: Store
    python: Python


class Image(NamedTuple):
    """The built image."""

    filesystem: Path
    config: dict[str, Any]
    mounts: Mounts


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    """Not below pytest's own directories, which are closed to other users."""
    top = Path(tempfile.mkdtemp())
    top.chmod(0o755)
    yield top
    shutil.rmtree(top)


@pytest.fixture(scope="module")
def base(directory: Path, pytestconfig: pytest.Config) -> Base:
    store, filesystem = Store(directory), directory / "base"
    python = debian_base(filesystem) if pytestconfig.getoption("thorough") else machine_base(filesystem)
    store.add_base(BASE, filesystem, python.path)
    return Base(store, python)


@pytest.fixture(scope="module")
def context(base: Base, directory: Path) -> Path:
    """What `make offline` prepares for this machine's architecture, and the Dockerfile."""
    here = directory / "context"
    here.mkdir()
    for name in ("Dockerfile", ".dockerignore", "constraints.txt"):
        shutil.copy(ROOT / name, here)
    wheel = build("wheel", ROOT / "service", here / "dist")
    platforms = [
        f"--platform={tag}_{os.uname().machine}" for tag in ("manylinux_2_28", "manylinux_2_17", "manylinux2014")
    ]
    options = ["--only-binary=:all:", "--implementation=cp", f"--python-version={base.python.version}", *platforms]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", f"--constraint={ROOT / 'constraints.txt'}"]
    try:
        run([*pip, *options, f"--dest={here / 'dist' / 'offline'}", wheel])
    except AssertionError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"the wheels cannot be had: {error}")
    return here


@pytest.fixture(scope="module")
def image(base: Base, context: Path) -> Image:
    arguments = {"PYTHON_IMAGE": BASE, "PIP_NO_INDEX": "1", "REVISION": REVISION}
    options = [f"--build-arg={name}={value}" for name, value in arguments.items()]
    base.store.build(IMAGE, context, *options, mounts=base.python.mounts, offline=True)
    return Image(base.store.filesystem(IMAGE), base.store.config(IMAGE), base.python.mounts)


def test_image_says_what_it_is(image: Image) -> None:
    labels = image.config["Labels"]
    assert labels["org.opencontainers.image.version"] == optwrap_exporter.__version__
    assert labels["org.opencontainers.image.revision"] == REVISION
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert image.config["User"] == "10425:10425"
    assert set(image.config["Volumes"]) == {str(DATA)}
    assert image.config["Healthcheck"]["Test"] == ["CMD", *health_check(stages(ROOT / "Dockerfile")[-1])]


def test_image_has_no_pip_no_sources_and_no_secrets(image: Image) -> None:
    assert not list((image.filesystem / "opt" / "optwrap" / "bin").glob("pip*"))
    assert not (image.filesystem / "src").exists()
    assert not (image.filesystem / "etc" / "pip.conf").exists()


def new_volumes(image: Image, below: Path) -> dict[Path, Path]:
    """As an engine makes them: with the owner and the mode of the image's directories."""
    made = {}
    for there in (DATA, SOCKETS):
        made[there] = below / there.parent.name / there.name
        made[there].mkdir(parents=True)
        status = (image.filesystem / there.relative_to("/")).stat()
        made[there].chmod(status.st_mode & 0o777)
        os.chown(made[there], status.st_uid, status.st_gid)
    return made


def over(socket: Path) -> httpx.Client:
    """A client of the exporter in the container, from outside of it."""
    return httpx.Client(transport=httpx.HTTPTransport(uds=str(socket)), base_url="http://localhost")


def privileges(container: Container) -> dict[str, str]:
    """Of the container's first process."""
    status = container.execute("python", "-c", "print(open('/proc/1/status').read())").stdout
    return dict(re.findall(r"^(Uid|Gid|CapEff|CapBnd|NoNewPrivs):\s+(\S+)", status, re.MULTILINE))


@pytest.mark.parametrize("user", [(10425, 10425), (4242, 0)], ids=["the image's user", "any user of group 0"])
def test_exporter_runs_confined_and_keeps_its_store(user: tuple[int, int], image: Image, directory: Path) -> None:
    """A report over the shared socket, the health check, and a restart on the volumes. The root is read-only."""
    here = directory / f"user-{user[0]}"
    volumes = new_volumes(image, here)
    socket = volumes[SOCKETS] / "ingest.sock"
    setting = Setting(image.filesystem, image.config, user, volumes, image.mounts)
    job = Job("lm", clock=time.time)
    job.step("skipped_not_finite", "NaN", w=1)
    with running(here / "first", setting) as container:
        container.wait_for(socket)
        with over(socket) as client:
            assert client.post("/v1/reports", json=job.report()).status_code == 200
            assert b"uPlot" in client.get("/page/vendor/uPlot.esm.js").content
        nothing = "0" * 16
        found = privileges(container)
        assert (found.pop("Uid"), found.pop("Gid")) == (str(user[0]), str(user[1]))
        assert found == {"CapEff": nothing, "CapBnd": nothing, "NoNewPrivs": "1"}
        written = container.execute("python", "-c", "open('/opt/optwrap/new', 'w')")
        assert "Read-only file system" in written.stderr
        check = image.config["Healthcheck"]["Test"][1:]
        healthy = container.execute(*check, http_proxy="http://127.0.0.1:9")
        assert healthy.returncode == 0, healthy.stderr
        assert container.stop() == 0, container.log
    with running(here / "second", setting) as container:
        container.wait_for(socket)
        with over(socket) as client:
            totals = client.get("/v1/runs/lm").json()["totals"]
        assert totals["outcomes"]["skipped_not_finite"] == 1
        assert container.stop() == 0, container.log


def test_build_takes_the_configuration_of_pip_from_a_secret(
    base: Base, context: Path, directory: Path, pytestconfig: pytest.Config
) -> None:
    """The wheels lie where only that configuration says. It is in no layer."""
    if not pytestconfig.getoption("thorough"):
        pytest.skip("a second build: make images")
    wheels = shutil.copytree(context / "dist" / "offline", directory / "mirror")
    other = shutil.copytree(context, directory / "other", ignore=shutil.ignore_patterns("offline"))
    secret = directory / "pip.conf"
    secret.write_text("[global]\nno-index = true\nfind-links = /mirror\n")
    options = [f"--build-arg=PYTHON_IMAGE={BASE}", f"--secret=id=pip.conf,src={secret}"]
    base.store.build(
        f"{IMAGE}:secret", other, *options, mounts={**base.python.mounts, Path("/mirror"): wheels}, offline=True
    )
    filesystem = base.store.filesystem(f"{IMAGE}:secret")
    assert (filesystem / "opt" / "optwrap" / "bin" / "optwrap-exporter").exists()
    assert not list(filesystem.rglob("pip.conf"))
