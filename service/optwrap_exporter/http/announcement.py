"""Writes the exporter's address as a target for Prometheus' file_sd, for ports that nobody knows before the start."""

import contextlib
import json
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

from optwrap_exporter.http.own_file import own_file
from optwrap_exporter.http.serving.server import StartError
from optwrap_exporter.settings import Address, Settings


def target(settings: Settings) -> Address:
    """The address to scrape: the first beyond loopback, else the first.

    An address that stands for every one gets a name: the first of `allowed_hosts`, else that of this machine.
    """
    address = next((one for one in settings.listen if not one.loopback), settings.listen[0])
    if not address.wildcard:
        return address
    return Address((*settings.allowed_hosts, socket.gethostname().lower())[0], address.port)


def entry(settings: Settings, environ: Mapping[str, str] = os.environ) -> str:
    """The content of the file. Prometheus drops `__meta_` labels after relabelling, so no series changes by itself."""
    labels = {"__meta_optwrap_host": socket.gethostname(), "__meta_optwrap_scope": settings.scope}
    if job := environ.get("SLURM_JOB_ID"):
        labels["__meta_optwrap_slurm_job_id"] = job
    return json.dumps([{"targets": [str(target(settings))], "labels": labels}]) + "\n"


@contextlib.contextmanager
def announced(path: Path, settings: Settings) -> Iterator[None]:
    """Have the file at `path` during the block. A file that is there is replaced: a killed exporter leaves its own.

    Args:
      path: the file. It appears at once with its whole content, and everybody may read it.
      settings: with the ports that were bound.

    Raises:
      StartError: the file cannot be written.
    """
    # Prometheus reads *.json, so it ignores this name.
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        new.write_text(entry(settings), "utf-8")
        new.chmod(0o644)  # Prometheus runs as another user
        new.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            new.unlink()
        raise StartError(f"--announce {path}: {error.strerror or error}") from error
    with own_file(path):
        yield
