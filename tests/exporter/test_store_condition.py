"""The condition of the store: a damaged, full or vanished store is noticed, said once, and never acknowledged into."""

import json
import logging
import os
import resource
import shutil
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from optwrap_exporter.cli import main as cli
from optwrap_exporter.http.openapi import document
from optwrap_exporter.store import condition, opening, schema
from optwrap_exporter.store.condition import CONDITIONS, StoreUnavailableError, classify
from optwrap_exporter.store.opening import FILE, StoreError, quick_check
from optwrap_exporter.store.store import Store

from tests.conftest import RunningExporter
from tests.exporter.running import Job, Served, served
from tests.exporter.stores import Kept
from tests.exporter.trainer import Trainer
from tests.polling import wait_until

SAID = "no reports are stored"


def send(url: str, job: Job, steps: int = 1) -> httpx.Response:
    """The answer to the next report of a job."""
    for _ in range(steps):
        job.step()
    return httpx.post(f"{url}/v1/reports", json=job.report(), trust_env=False, timeout=30)


def health(url: str) -> tuple[int, Any]:
    answer = httpx.get(f"{url}/-/healthy", trust_env=False)
    return answer.status_code, answer.json()


def healthy_metric(url: str) -> str:
    text = httpx.get(f"{url}/metrics", trust_env=False).text
    return next(line for line in text.splitlines() if line.startswith("optwrap_exporter_store_healthy "))


@pytest.mark.parametrize("how", ["renamed", "deleted", "replaced"])
def test_nothing_is_acknowledged_into_a_directory_that_is_gone(exporter: RunningExporter, how: str) -> None:
    """The next report already is refused. A directory of the same name is not the same store."""
    job, aside = Job(), exporter.data_dir.with_name("aside")
    assert send(exporter.url, job).status_code == 200
    if how == "deleted":
        shutil.rmtree(exporter.data_dir)
    else:
        exporter.data_dir.rename(aside)
    if how == "replaced":
        with Store(exporter.data_dir):
            pass
        (exporter.data_dir / f"{FILE}-wal").touch()
    answers = [send(exporter.url, job) for _ in range(20)]
    assert {answer.status_code for answer in answers} == {503}
    (detail,) = answers[0].json()["detail"]
    assert detail["field"] == "store"
    assert detail["value"].startswith("gone: ")
    assert int(answers[0].headers["retry-after"]) > 0
    status, found = health(exporter.url)
    assert (status, found["store"]["condition"]) == (503, "gone")
    assert found["store"]["since"] == pytest.approx(time.time(), abs=60)
    assert "restart" in found["store"]["remedy"]
    assert healthy_metric(exporter.url).endswith(" 0.0")
    assert httpx.get(f"{exporter.url}/-/ready", trust_env=False).status_code == 200
    assert exporter.log.count(SAID) == 1
    if how == "renamed":
        aside.rename(exporter.data_dir)
        wait_until(lambda: health(exporter.url)[0] == 200)
        answer = send(exporter.url, job)
        assert (answer.status_code, healthy_metric(exporter.url)[-3:]) == (200, "1.0")
        exporter.restart()
        answer = httpx.get(f"{exporter.url}/v1/runs/lm", trust_env=False)
        assert answer.json()["totals"]["steps"] == job.state.steps


def test_a_database_that_is_overwritten_is_corrupt_until_the_exporter_is_restarted_with_recover(
    exporter: RunningExporter,
) -> None:
    job = Job()
    assert send(exporter.url, job, 2000).status_code == 200
    for name in (FILE, f"{FILE}-wal"):
        size = (exporter.data_dir / name).stat().st_size
        with (exporter.data_dir / name).open("r+b") as file:
            file.seek(4096)
            file.write(os.urandom(max(0, size - 4096)))
    assert httpx.get(f"{exporter.url}/v1/runs/lm/steps", trust_env=False).status_code == 503
    assert send(exporter.url, job).status_code == 503
    status, found = health(exporter.url)
    assert (status, found["store"]["condition"]) == (503, "corrupt")
    assert "--recover" in found["store"]["remedy"]
    time.sleep(1.5)  # some ticks
    assert exporter.log.count(SAID) == 1
    exporter.stop()
    command = [
        sys.executable,
        "-m",
        "optwrap_exporter",
        "--listen",
        "127.0.0.1:0",
        "--data-dir",
        str(exporter.data_dir),
    ]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1
    assert "damaged" in refused.stderr
    assert "--recover" in refused.stderr
    exporter.options = ("--recover",)
    exporter.start()
    assert httpx.get(f"{exporter.url}/v1/runs", trust_env=False).json()["items"] == []
    assert send(exporter.url, job).status_code == 200
    moved = [one.name for one in exporter.data_dir.iterdir() if "damaged" in one.name]
    assert any(one.startswith(f"{FILE}.damaged-") for one in moved)
    exporter.restart()  # --recover leaves a good store alone
    assert [run["run"] for run in httpx.get(f"{exporter.url}/v1/runs", trust_env=False).json()["items"]] == ["lm"]


def test_a_disk_that_fails_is_said_once_and_is_left_by_itself(exporter: RunningExporter) -> None:
    """No file of the exporter may grow, as on a full disk. Later it may again."""
    job = Job()
    assert send(exporter.url, job).status_code == 200
    largest = max(one.stat().st_size for one in exporter.data_dir.iterdir())
    resource.prlimit(exporter.pid, resource.RLIMIT_FSIZE, (largest, resource.RLIM_INFINITY))
    wait_until(lambda: send(exporter.url, job, 500).status_code == 503)
    status, found = health(exporter.url)
    assert (status, found["store"]["condition"]) == (503, "io_error")
    time.sleep(2.5)
    assert send(exporter.url, job).status_code == 503
    assert exporter.log.count(SAID) == 1
    resource.prlimit(exporter.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    wait_until(lambda: health(exporter.url)[0] == 200)
    assert send(exporter.url, job).status_code == 200
    answer = httpx.get(f"{exporter.url}/v1/runs/lm", trust_env=False).json()
    assert answer["totals"]["steps"] == job.state.steps
    assert exporter.log.count(SAID) == 1
    assert "the store is ok again" in exporter.log


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial write at every tick."""
    monkeypatch.setattr(condition, "TRIAL_SECONDS", 0.0)


@pytest.mark.usefixtures("at_once")
def test_nothing_turns_stale_while_the_store_is_full(site: Served, caplog: pytest.LogCaptureFixture) -> None:
    """The exporter is ill, not the job. When it stores again, the job has time to report first."""
    jobs = [Job(process=process, incarnation=f"e{process}", clock=site.clock, process_count=2) for process in range(2)]
    for job in jobs:
        job.step()
        site.send(job.report())
    used = site.store.size()
    schema.limit_pages(site.store._db, used)
    with caplog.at_level(logging.ERROR):
        for _ in range(20):
            for job in jobs:
                job.step("skipped_not_finite", "NaN", **{f"w{job.seq}_{i}": 1 for i in range(150)})
                answer = site.client.post("/v1/reports", json=job.report())
        assert answer.status_code == 503
        assert site.client.get("/-/healthy").json()["store"]["condition"] == "full"
        site.ingest.tick()
        assert 'optwrap_exporter_store_condition{condition="full"} 1.0' in site.scrape()
        for _ in range(3):
            site.clock.advance(3600)
            site.ingest.tick()
            assert site.get("/v1/runs/lm")["health"] in {"ok", "starting", "skipping"}
            assert 'optwrap_process_health{health="stale",process="0",run="lm"} 1.0' not in site.scrape()
    assert [record.message for record in caplog.records if SAID in record.message] == [caplog.records[0].message]
    schema.limit_pages(site.store._db, 100 * used)
    site.ingest.tick()
    assert site.client.get("/-/healthy").status_code == 200
    site.clock.advance(35)  # a Monitor may pause for half a minute between two tries
    site.ingest.tick()
    assert site.get("/v1/runs/lm")["health"] in {"ok", "starting", "skipping"}
    assert [event["kind"] for event in site.get("/v1/runs/lm/events")["items"]].count("stale") == 0
    site.clock.advance(30)
    site.ingest.tick()
    assert site.get("/v1/runs/lm")["health"] == "stale"


@pytest.mark.usefixtures("at_once")
def test_a_database_that_cannot_be_written_is_read_only_until_it_can(site: Served) -> None:
    job = Job()
    job.step()
    site.send(job.report())
    site.store._db.execute("PRAGMA query_only = ON")
    job.step()
    assert site.client.post("/v1/reports", json=job.report()).status_code == 503
    assert site.client.get("/-/healthy").json()["store"]["condition"] == "read_only"
    site.ingest.tick()
    assert site.client.get("/-/healthy").status_code == 503
    assert site.get("/v1/runs/lm/steps")["total"] == 1
    site.store._db.execute("PRAGMA query_only = OFF")
    site.ingest.tick()
    assert site.client.get("/-/healthy").status_code == 200
    job.step()
    site.send(job.report())


def test_a_database_that_is_cut_off_is_corrupt(site: Served) -> None:
    job = Job()
    for _ in range(2000):
        job.step()
    site.send(job.report())
    site.store._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    site.ingest.tick()
    path = site.store._path
    os.truncate(path, path.stat().st_size // 2)
    job.step()
    assert site.client.post("/v1/reports", json=job.report()).status_code == 503
    assert site.client.get("/-/healthy").json()["store"]["condition"] == "corrupt"


def test_a_vacuum_by_another_program_is_no_damage(site: Served) -> None:
    job = Job()
    for _ in range(2000):
        job.step()
    site.send(job.report())
    site.ingest.forget("lm")
    site.store._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    site.ingest.tick()
    before = site.store._path.stat().st_size
    with sqlite3.connect(site.store._path) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        db.execute("VACUUM")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    assert site.store._path.stat().st_size < before
    job.step()
    site.send(job.report())
    site.ingest.tick()
    assert site.client.get("/-/healthy").status_code == 200


def test_forget_is_possible_while_the_store_is_full(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "data")
    trainer = Trainer(kept.clock)
    trainer.step()
    kept.take(trainer.report())
    schema.limit_pages(kept.store._db, kept.store.size())
    with pytest.raises(StoreUnavailableError):  # noqa: PT012 - it comes after an unknown number of reports that fit
        for _ in range(1000):
            trainer.bad(**{f"w{trainer.seq}": 1})
            kept.take(trainer.report())
    assert kept.store.state.condition == "full"
    assert kept.store.state.remedy.startswith("raise --retention-bytes, delete runs"), "the disk has room"
    assert kept.store.forget("lm")


def test_the_advice_for_a_full_disk_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Kept(tmp_path / "data")
    monkeypatch.setattr(condition, "_free_bytes", lambda _: 4096)
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    assert isinstance(kept.store._watch.failed(error), StoreUnavailableError)
    assert kept.store.state.remedy == f"free disk space for {tmp_path / 'data'}; the exporter then goes on by itself"


def test_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with served(tmp_path / "data") as site:
            job = Job()
            job.step()
            site.send(job.report())
            modes = {one.name: stat.S_IMODE(one.stat().st_mode) for one in (tmp_path / "data").iterdir()}
            assert modes == dict.fromkeys(("lock", FILE, f"{FILE}-wal", f"{FILE}-shm"), 0o600)
            assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700
    finally:
        os.umask(before)


@pytest.mark.parametrize("spoil", ["pages", "header", "short", "state"])
def test_a_damaged_database_ends_the_start_with_one_line_and_recover_moves_it_aside(tmp_path: Path, spoil: str) -> None:
    kept = Kept(tmp_path / "data")
    trainer = Trainer(kept.clock)
    for _ in range(3000):
        trainer.step()
    kept.take(trainer.report())
    kept.store.close()
    path = tmp_path / "data" / FILE
    content = path.read_bytes()
    if spoil == "pages":
        middle = len(content) // 2
        path.write_bytes(content[:middle] + os.urandom(20_000) + content[middle + 20_000 :])
    elif spoil == "header":
        path.write_bytes(os.urandom(4096) + content[4096:])
    elif spoil == "short":
        path.write_bytes(content[:-50_000])
    else:
        with sqlite3.connect(path) as db:
            db.execute("UPDATE process SET state = '{}'")
        db.close()
    spoilt = path.read_bytes()
    with pytest.raises(StoreError, match=r"damaged.*--recover.*--data-dir") as refused:
        Store(tmp_path / "data")
    assert "\n" not in str(refused.value)
    with Store(tmp_path / "data", recover=True) as store:
        assert store.restore() == []
        assert store.state.ok
    (aside,) = [one for one in path.parent.iterdir() if ".damaged-" in one.name and one.name.endswith("Z")]
    assert len(aside.read_bytes()) == len(spoilt)


def test_recover_leaves_another_programs_database_alone(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / FILE) as db:
        db.execute("CREATE TABLE mine (n)")
    db.close()
    with pytest.raises(StoreError, match="another program"):
        Store(tmp_path, recover=True)
    assert {one.name for one in tmp_path.iterdir()} == {FILE, "lock"}


def test_the_check_at_start_ends_in_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Store(tmp_path / "data") as store, caplog.at_level(logging.INFO):
        assert quick_check(store._db, 0.0) is None
        assert "0 of" in caplog.text
        caplog.clear()
        assert quick_check(store._db) is None
        assert caplog.text == ""
        assert store._db.execute("SELECT 1").fetchone() == (1,)  # the limit does not stay
    assert opening.CHECK_SECONDS <= 10


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("SELECT", None),  # a syntax error is the program's
        ("SELECT * FROM nowhere", "corrupt"),
        ("INSERT INTO run (run, labels, replica_labels) VALUES ('a', '', ''), ('a', '', '')", None),
    ],
)
def test_only_errors_of_the_store_have_a_condition(tmp_path: Path, statement: str, found: str | None) -> None:
    with Store(tmp_path / "data") as store:
        with pytest.raises(sqlite3.Error) as raised:
            store._db.execute(statement)
        assert classify(raised.value) == found
    assert classify(sqlite3.ProgrammingError("closed")) is None


def test_the_api_describes_every_condition() -> None:
    schema_of = document()["components"]["schemas"]["StoreTrouble"]["properties"]["condition"]
    assert tuple(schema_of["enum"]) == CONDITIONS


def test_status_says_that_no_reports_are_stored(site: Served, capsys: pytest.CaptureFixture[str]) -> None:
    job = Job(clock=site.clock)
    job.step()
    site.send(job.report())
    assert cli.run(["status", site.url]) == 0
    assert "no reports" not in capsys.readouterr().out
    site.store._path.rename(site.store._path.with_name("aside"))
    site.ingest.tick()
    assert cli.run(["status", site.url]) == 1
    said = capsys.readouterr().out
    assert said.startswith("the exporter has stored no reports since 2")
    assert "its store is gone" in " ".join(said.split())
    assert cli.run(["status", site.url, "--json"]) == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out)[0]["run"] == "lm"
    assert len(printed.err.splitlines()) == 1
