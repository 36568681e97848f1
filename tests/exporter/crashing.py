"""For tests: a process that takes reports into a store as fast as it can, says which it acknowledged, and is killed.

python -m tests.exporter.crashing DIRECTORY FIRST LAST
"""

import sys
import time
from pathlib import Path

from optwrap_exporter.ingest.ingest import Ingest
from optwrap_exporter.ledger.ledger import Ledger
from optwrap_exporter.store.store import Store
from optwrap_exporter.wire.requests import Report

from tests.exporter.trainer import Trainer, TurnedClock

STEPS = 7


def reports(last: int) -> list[Report]:
    """Reports 1 to `last` of one process, the same whenever they are made: STEPS steps each, some of them bad."""
    trainer = Trainer(TurnedClock(), incarnation="crashing")
    made = []
    for seq in range(1, last + 1):
        for step in range(STEPS):
            if (seq * STEPS + step) % 5 == 0:
                trainer.bad("skipped_not_finite", **{f"layer_{step}/w": seq % 3 + 1})
            else:
                trainer.step()
        made.append(trainer.report())
    return made


def main(directory: Path, first: int, last: int) -> None:
    """Take reports `first` to `last`, one after the other."""
    todo = reports(last)[first - 1 :]
    with Store(directory) as store, Ingest(store, Ledger(time.time)) as ingest:
        for report in todo:
            ingest.submit(report)
            print(report.seq, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
