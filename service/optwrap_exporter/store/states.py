"""Reads the ledger's states back from the tables."""

import dataclasses
import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from typing import Final

from optwrap_exporter.ledger.counters import Replica
from optwrap_exporter.ledger.folding import Folded
from optwrap_exporter.ledger.incarnation import IncarnationState
from optwrap_exporter.ledger.parts import ParameterRecords, ParameterState
from optwrap_exporter.ledger.run import ProcessState, RunState, heard_from

SUM: Final = "/"
"""Begins the name of a row that has the sum of folded incarnations; no incarnation's id has it. The attempt follows."""
FOLDED: Final = "folded"
"""The only key in the state of an incarnation that was folded. Its value is the attempt."""


def read_states(db: sqlite3.Connection) -> Iterator[RunState]:
    """Every run, in the state that was written last."""
    parameters: dict[int, list[ParameterState]] = {}
    for incarnation_id, path, totals, baseline, values, first, last in db.execute(
        "SELECT incarnation_id, path, totals, baseline, value_count, first_step, last_step FROM parameter ORDER BY id"
    ):
        records = None if values is None else ParameterRecords(values, first, last)
        parameters.setdefault(incarnation_id, []).append(ParameterState(path, totals, baseline, records))
    incarnations: dict[tuple[int, int], list[IncarnationState]] = {}
    sums: dict[tuple[int, int], list[Folded]] = {}
    folded_ids: dict[tuple[int, int], dict[str, str]] = {}
    late: Counter[tuple[int, int, str]] = Counter()
    """Records that were not stored, of incarnations that had been folded before."""
    for key, run_id, process, name, text, not_stored in db.execute(
        "SELECT id, run_id, process, incarnation, state, not_stored FROM incarnation ORDER BY id"
    ):
        state, of = json.loads(text), (run_id, process)
        if name.startswith(SUM):
            sums.setdefault(of, []).append(Folded.from_durable(state, parameters.get(key, []), not_stored))
        elif FOLDED in state:
            folded_ids.setdefault(of, {})[name] = state[FOLDED]
            late[*of, state[FOLDED]] += not_stored
        else:
            restored = IncarnationState.from_durable(state, parameters.get(key, []), not_stored)
            incarnations.setdefault(of, []).append(restored)
    processes: dict[int, dict[int, ProcessState]] = {}
    for run_id, process, text in db.execute("SELECT run_id, process, state FROM process ORDER BY run_id, process"):
        of = (run_id, process)
        folded = [
            dataclasses.replace(one, not_stored=one.not_stored + late[*of, one.attempt]) for one in sums.get(of, [])
        ]
        processes.setdefault(run_id, {})[process] = ProcessState.from_durable(
            process, json.loads(text), incarnations[of], folded, folded_ids.get(of)
        )
    for run_id, run, labels, replicas in db.execute("SELECT id, run, labels, replica_labels FROM run"):
        named = tuple(Replica(*replica) for replica in json.loads(replicas))
        heard = heard_from(processes[run_id].values())
        yield RunState(run, processes[run_id], tuple(json.loads(labels)), named, heard)
