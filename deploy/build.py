"""Write the files that are generated from deploy/: `python -m deploy.build`; with `--check`, only compare them.

The Grafana dashboards come from `deploy.grafana`, the runbooks of Prometheus and of the exporter's page from
runbooks.md, and the Kubernetes objects with rules from prometheus/rules. The results are committed, so that deploying
them does not need Python.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from deploy import rules, runbooks
from deploy.grafana import exporters, run, runs
from deploy.grafana.board import Addresses

HERE: Final = Path(__file__).parent
EXPORTERS_PAGE: Final = HERE.parent / "service" / "optwrap_exporter" / "page"
PAGE_URL: Final = "http://localhost:10425"
"""URL of the exporter's page with compose.yaml."""
RUNBOOKS_URL: Final = "http://localhost:9090/consoles/runbooks.html"
"""URL of the runbooks with compose.yaml."""


def generate(page_url: str = PAGE_URL, runbooks_url: str = RUNBOOKS_URL) -> Mapping[Path, str]:
    """The path and text of every generated file."""
    addresses = Addresses(page_url.rstrip("/"), runbooks_url)
    dashboards = [made.build(addresses).build() for made in (runs, run, exporters)]
    files = {
        HERE / "grafana" / "dashboards" / f"{dashboard.uid}.json": json.dumps(dashboard, cls=JSONEncoder, indent=2)
        + "\n"
        for dashboard in dashboards
    }
    text = (HERE / "runbooks.md").read_text("utf-8")
    files[HERE / "prometheus" / "consoles" / "runbooks.html"] = runbooks.console(text)
    files[EXPORTERS_PAGE / "runbooks.html"] = runbooks.of_the_exporter(text)
    files[HERE / "kubernetes" / "operator" / "prometheusrule.yaml"] = rules.prometheus_rule()
    files[HERE / "kubernetes" / "gmp" / "rules.yaml"] = rules.managed_rules()
    return files


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy.build", description="Write the files that are generated from deploy/."
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit with status 1 if a file is not up to date"
    )
    parser.add_argument(
        "--page-url", default=PAGE_URL, help="URL of the exporter's page in Grafana's links (default: %(default)s)"
    )
    parser.add_argument(
        "--runbooks-url", default=RUNBOOKS_URL, help="URL of the runbooks in Grafana's links (default: %(default)s)"
    )
    arguments = parser.parse_args()
    stale = 0
    for path, text in generate(arguments.page_url, arguments.runbooks_url).items():
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
