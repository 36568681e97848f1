"""What the exporter's wheel brings when it is installed, as a bill of materials in CycloneDX's JSON.

    python -m tools.sbom dist/optwrap_exporter-*.whl dist/optwrap-exporter.cdx.json

cyclonedx-py lists the distributions of a new environment with the wheel in it. It does not read what a wheel says about
its own content (PEP 770): here the page's chart library, which is no distribution. This adds that.
"""

import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any, Final

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

ROOT: Final = Path(__file__).parent.parent


def installed(wheel: Path, root: Path) -> Path:
    """A new environment at `root` with that wheel, installed as the Dockerfile installs it."""
    venv.create(root, with_pip=False, symlinks=True)
    options = ["--quiet", "--only-binary", ":all:", "--constraint", str(ROOT / "constraints.txt")]
    pip = [sys.executable, "-m", "pip", "--python", str(root / "bin" / "python")]
    subprocess.run([*pip, "install", *options, str(wheel)], check=True)
    return root


def bill_of_materials(environment: Path) -> str:
    """The exporter of that environment, the distributions there, and what the exporter bundles. It has no date.

    Raises:
      ValueError: it does not follow CycloneDX's schema.
    """
    options = ["--no-validate", "--output-reproducible", "--mc-type", "application", "--spec-version", "1.6"]
    options += ["--pyproject", str(ROOT / "service" / "pyproject.toml"), str(environment / "bin" / "python")]
    lister = [sys.executable, "-m", "cyclonedx_py", "environment", *options]
    listed = subprocess.run(lister, check=True, stdout=subprocess.PIPE)
    bill: dict[str, Any] = json.loads(listed.stdout)
    (information,) = environment.glob("lib/python*/site-packages/optwrap_exporter-*.dist-info")
    # pyproject.toml has no version: the package has it.
    exporter = bill["metadata"]["component"]
    exporter["version"] = information.name.removesuffix(".dist-info").rpartition("-")[2]
    exporter["purl"] = f"pkg:pypi/{exporter['name']}@{exporter['version']}"
    (needs,) = (each for each in bill["dependencies"] if each["ref"] == exporter["bom-ref"])
    for path in sorted(information.glob("sboms/*.cdx.json")):
        for component in json.loads(path.read_text())["components"]:
            bill["components"].append(component)
            bill["dependencies"].append({"ref": component["bom-ref"]})
            needs["dependsOn"].append(component["bom-ref"])
    text = json.dumps(bill, indent=2) + "\n"
    if problem := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text):
        raise ValueError(f"not CycloneDX 1.6: {problem}")
    return text


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        Path(sys.argv[2]).write_text(bill_of_materials(installed(Path(sys.argv[1]), Path(directory))))
    print(sys.argv[2])
