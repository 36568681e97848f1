"""Write the files that are generated from deploy/: `python -m deploy.build`; with `--check`, only compare them.

The Grafana dashboards come from `deploy.grafana`, the runbooks of Prometheus and of the exporter's page from
runbooks.md. The results are committed, so that deploying them does not need Python.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from deploy import runbooks
from deploy.grafana import exporters, run, runs

HERE: Final = Path(__file__).parent
EXPORTERS_PAGE: Final = HERE.parent / "service" / "optwrap_exporter" / "page"


def generate() -> Mapping[Path, str]:
    """The path and text of every generated file."""
    dashboards = [made.build().build() for made in (runs, run, exporters)]
    files = {
        HERE / "grafana" / "dashboards" / f"{dashboard.uid}.json": json.dumps(dashboard, cls=JSONEncoder, indent=2)
        + "\n"
        for dashboard in dashboards
    }
    text = (HERE / "runbooks.md").read_text("utf-8")
    files[HERE / "prometheus" / "consoles" / "runbooks.html"] = runbooks.console(text)
    files[EXPORTERS_PAGE / "runbooks.html"] = runbooks.of_the_exporter(text)
    return files


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy.build", description="Write the files that are generated from deploy/."
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit with status 1 if a file is not up to date"
    )
    arguments = parser.parse_args()
    stale = 0
    for path, text in generate().items():
        if path.exists() and path.read_text("utf-8") == text:
            continue
        stale += 1
        if arguments.check:
            print(f"{path.relative_to(HERE.parent)} is not up to date: run `python -m deploy.build`", file=sys.stderr)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
            print(f"wrote {path.relative_to(HERE.parent)}")
    return 1 if arguments.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
