"""Real processes of `jax.distributed` stop at the same step under every policy, although one of them is late.

If they did not, the collective of the next step would wait for ever.
"""

import json
import socket
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from optwrap import Stop
from tests.e2e.ways.launches import free_address, run_to_the_end
from tests.e2e.ways.stopping import BAD, POLICIES, replica_of, together
from tests.optwrap.monitoring import StubExporter

EXPECTED: dict[str, tuple[int, int, list[int]] | None] = {
    "streak": (11, 7, [8, 9, 10]),
    "accepted": (12, 7, [8, 9, 10]),
    "skipped": (9, 2, [3, 8, 9]),
    "scanned": (11, 7, [8, 9, 10]),
    "never": None,
}
"""By policy: the step, the last clean step, and the bad steps. Step 10 is the first whose NaN is accepted; step 3 is
the first of the three skipped ones."""


@pytest.mark.thin(3)
@pytest.mark.timeout(400)
@pytest.mark.parametrize("n", [4, 2])
def test_all_processes_stop_at_the_same_step(n: int, tmp_path: Path) -> None:
    """They all get the same Stop, with the replica of each bad step; the one with an exporter reports it."""
    stub = StubExporter()
    reports: dict[str, list[dict[str, Any]]] = defaultdict(list)

    def answer(body: bytes, connection: socket.socket) -> Any:
        report = json.loads(body)
        reports[report["run"]].append(report)
        return stub.ok(body, connection)

    stub.answer = answer
    coordinator = free_address()
    jobs = [(together, ((coordinator, n, index),)) for index in range(n)]
    try:
        first, *others = run_to_the_end(stub.endpoint, *jobs, directory=tmp_path)
    finally:
        stub.close()
    assert all(found == first for found in others)
    assert list(first) == list(POLICIES) == list(EXPECTED)
    for name, (readings, stop) in first.items():
        policy, per_reading = POLICIES[name]
        last, expected = reports[name][-1], EXPECTED[name]
        if expected is None:
            assert stop is None
            assert last["state"] == "finished"
            continue
        assert isinstance(stop, Stop)
        assert (stop.step, stop.last_clean_step, [bad.step for bad in stop.bad_steps]) == expected
        assert readings == -(-stop.step // per_reading) + policy.lag, "each reading is decided from when it is lag old"
        for bad in stop.bad_steps:
            assert bad.step in BAD
            assert bad.parameter == "w"
            assert bad.replica is not None
            assert bad.replica.number == bad.replica.process == replica_of(bad.step, n)
        assert (last["state"], last["reason"]) == ("stopped", stop.reason)
        assert last["last_clean_step"] == stop.last_clean_step
