"""Damage of the write-ahead log alone, which SQLite notices only when it reads from it."""

import os
import sqlite3

import pytest

from tests.exporter.running import Job, Served


def send(site: Served, job: Job) -> int:
    job.step()
    return site.client.post("/v1/reports", json=job.report()).status_code


@pytest.mark.parametrize("share", [0, 0.5])
def test_a_log_that_is_cut_off_is_corrupt_with_the_next_report(site: Served, share: float) -> None:
    """Otherwise reports are acknowledged that the next start cannot read."""
    job = Job(clock=site.clock)
    assert [send(site, job) for _ in range(5)] == [200] * 5
    log = site.store._path.with_name(f"{site.store._path.name}-wal")
    os.truncate(log, int(log.stat().st_size * share))
    assert send(site, job) == 503
    store = site.client.get("/-/healthy").json()["store"]
    assert store["condition"] == "corrupt"
    assert "truncated" in store["why"]


def test_a_log_that_another_program_emptied_is_no_damage(site: Served) -> None:
    """As `sqlite3 FILE 'PRAGMA wal_checkpoint(TRUNCATE)'` does, and SQLite itself if the log had become large."""
    job = Job(clock=site.clock)
    assert [send(site, job) for _ in range(5)] == [200] * 5
    with sqlite3.connect(site.store._path) as other:
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    other.close()
    assert site.store._path.with_name(f"{site.store._path.name}-wal").stat().st_size == 0
    assert [send(site, job) for _ in range(5)] == [200] * 5
    site.ingest.tick()
    assert site.client.get("/-/healthy").status_code == 200
