"""`python -m optwrap_exporter` is `optwrap-exporter`."""

import sys

from optwrap_exporter.cli.main import run

if __name__ == "__main__":
    sys.exit(run())
