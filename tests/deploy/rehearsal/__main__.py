"""Rehearses: `python -m tests.deploy.rehearsal [--faults host-killed,stop] [--real-time] [--keep DIRECTORY]`.

Exit status 0 if everything says what happened, 1 if anything differs, 2 if there can be no hosts here.
"""

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.deploy.rehearsal import hosts as machines
from tests.deploy.rehearsal.faults import FAULTS
from tests.deploy.rehearsal.hosts import enclosed, prepare, problem, python
from tests.deploy.rehearsal.programs import NEEDED, Site
from tests.deploy.rehearsal.scene import Fault, Outcome, rehearse, verdict
from tests.deploy.rehearsal.table import closing, differences, table

SCALE: Final = 30.0
_INSIDE: Final = "--inside"


def main() -> int:
    """Run this program again in namespaces of its own, and there the rehearsal."""
    parser = argparse.ArgumentParser(prog="python -m tests.deploy.rehearsal", description=__doc__.splitlines()[0])
    names = [fault.name for fault in FAULTS]
    parser.add_argument("--faults", default=",".join(names), help="some of them, separated by commas (%(default)s)")
    parser.add_argument("--hosts", type=int, default=4, help="hosts of the job, at least 2 (%(default)s)")
    parser.add_argument("--scale", type=float, default=SCALE, help="divides the rules' durations (%(default)s)")
    parser.add_argument("--real-time", action="store_true", help="the rules' durations as they are shipped")
    parser.add_argument("--keep", type=Path, help="an empty directory for all logs and data, which stays")
    parser.add_argument(_INSIDE, action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if not set(given.faults.split(",")) <= set(names) or not 2 <= given.hosts <= 16:
        parser.error(f"--faults takes {', '.join(names)}, and --hosts 2 to 16")
    if not given.inside:
        missing = [name for name in (*machines.PROGRAMS, *NEEDED) if shutil.which(name) is None]
        why = f"not on PATH: {', '.join(missing)}" if missing else problem()
        if why is not None:
            print(f"no rehearsal here: {why}", file=sys.stderr)
            return 2
        sys.stdout.flush()
        os.execvp("unshare", enclosed(python("tests.deploy.rehearsal", *sys.argv[1:], _INSIDE)))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    chosen = [fault for fault in FAULTS if fault.name in given.faults.split(",")]
    *those, agent = prepare([*(f"host-{number}" for number in range(1, given.hosts + 1)), "site"])
    # In memory, and gone with the namespace.
    directory = given.keep or Path(tempfile.mkdtemp(dir="/run"))
    directory.mkdir(exist_ok=True)
    return perform(chosen, those, agent, directory.absolute(), 1.0 if given.real_time else given.scale)


def perform(
    faults: Sequence[Fault], hosts: Sequence[machines.Host], agent: machines.Host, directory: Path, scale: float
) -> int:
    """Rehearse these faults, and print the table; returns the exit status."""
    began = time.monotonic()
    outcomes: list[Outcome] = []
    broken: list[str] = []
    with Site.running(directory, agent, scale) as site:
        for fault in faults:
            try:
                outcomes.append(rehearse(fault, site, hosts, agent, directory))
            except Exception as error:
                traceback.print_exc()
                broken.append(f"{fault.name}: {str(error).splitlines()[0] if str(error) else error!r}")
                print(f"{fault.name}: broke off", flush=True)
                break  # the hosts may be in any state
            print(f"{fault.name}: {outcomes[-1].took:.0f} s", flush=True)
        for outcome in outcomes:
            verdict(outcome, site)
        runs = {run for outcome in outcomes for run in outcome.job.runs.values()}
        strange = {str(alert.labels) for alert in site.alertmanager.notified if alert.labels.get("run") not in runs}
        if not broken:
            broken += [f"an alert of no run: {labels}" for labels in sorted(strange)]
    print(table(outcomes))
    print(*closing(outcomes, time.monotonic() - began), *broken, sep="\n", flush=True)
    return 1 if broken or differences(outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
