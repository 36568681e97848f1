"""Certificates for tests of TLS, made with openssl."""

import ssl
import subprocess
from pathlib import Path
from typing import NamedTuple


class Certificate(NamedTuple):
    """A self-signed certificate, which is its own CA."""

    file: Path
    context: ssl.SSLContext
    """Of a server that has it."""


def certificate(directory: Path, name: str) -> Certificate:
    """Make one for a name such as `IP:127.0.0.1`."""
    directory.mkdir()
    key, file = directory / "key.pem", directory / "ca.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-nodes", "-days", "2"),
            *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-keyout", key, "-out", file, "-subj", "/CN=test", "-addext", f"subjectAltName={name}"),
        ],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file, key)
    return Certificate(file, context)
