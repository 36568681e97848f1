"""Another program locks the exporter's database."""

import sqlite3

import pytest
from optwrap_exporter.store import condition

from tests.exporter.running import Job, Served


def test_a_database_that_another_program_has_locked_is_ill_until_it_is_released(
    site: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite waits a little, then the store says so instead of letting reports hang."""
    monkeypatch.setattr(condition, "TRIAL_SECONDS", 0.0)  # a trial write at every tick
    job = Job(clock=site.clock)
    job.step()
    site.send(job.report())
    other = sqlite3.connect(site.store._path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    job.step()
    report = job.report()
    refused = site.client.post("/v1/reports", json=report, timeout=20)
    assert refused.status_code == 503
    assert site.client.get("/-/healthy").json()["store"]["condition"] == "io_error"
    other.execute("ROLLBACK")
    other.close()
    site.ingest.tick()
    assert site.client.post("/v1/reports", json=report).status_code == 200
    assert site.get("/v1/runs/lm/steps")["total"] == 2
