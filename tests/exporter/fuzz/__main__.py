"""`make fuzz`: send mutated reports to a real exporter on loopback, and say what it cost and what went wrong."""

import argparse
import sys
import tempfile
from pathlib import Path

from tests.exporter.fuzz import campaign


def main() -> int:
    """Run a campaign; 1 if anything went wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.exporter.fuzz", description=__doc__)
    parser.add_argument("--reports", type=int, default=100_000, help="how many (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="number of the first report (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="determines the reports (default: %(default)s)")
    parser.add_argument("--headroom", type=float, default=1.0, help="factor for the limits of time, on a busy machine")
    given = parser.parse_args()
    print(f"seed {given.seed}, reports {given.first} to {given.first + given.reports - 1}")
    with tempfile.TemporaryDirectory() as directory:
        found = campaign.run(
            Path(directory) / "data",
            seed=given.seed,
            first=given.first,
            reports=given.reports,
            headroom=given.headroom,
            check_every=1000,
            show=True,
        )
    print("answers by status:", dict(sorted(found.statuses.items())))
    print(f"dearest refusal: {found.slowest * 1000:.1f} ms of processor time ({found.slowest_report})")
    print(f"most additional memory of one report: {found.largest / 2**20:.1f} MiB")
    for wrong in found.wrong[:50]:
        print("WRONG:", wrong)
    print(f"{len(found.wrong)} things went wrong")
    return 1 if found.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
