"""Opening a store: a directory or limit that cannot be used is refused in one line."""

import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from optwrap_exporter.store import schema
from optwrap_exporter.store.store import SMALLEST_LIMIT, Store, StoreError

from tests.exporter.stores import Kept
from tests.exporter.trainer import Trainer


def test_a_second_exporter_on_the_same_directory_is_refused(kept: Kept) -> None:
    with pytest.raises(StoreError, match=r"in use by another exporter.*--data-dir") as refused:
        Store(kept.directory)
    assert str(kept.directory) in str(refused.value)
    kept.store.close()
    Store(kept.directory).close()


def a_file(directory: Path) -> None:
    directory.write_text("")


def no_database(directory: Path) -> None:
    directory.mkdir()
    (directory / "optwrap.sqlite3").write_bytes(b"not a database at all, " * 100)


def anothers(directory: Path) -> None:
    directory.mkdir()
    with contextlib.closing(sqlite3.connect(directory / "optwrap.sqlite3")) as db:
        db.execute("CREATE TABLE songs (title TEXT)")


def of_version(directory: Path, version: int) -> None:
    Store(directory).close()
    with contextlib.closing(sqlite3.connect(directory / "optwrap.sqlite3")) as db:
        db.execute(f"PRAGMA user_version = {version}")


def newer(directory: Path) -> None:
    of_version(directory, schema.VERSION + 1)


def older(directory: Path) -> None:
    of_version(directory, schema.VERSION - 1)


def truncated(directory: Path) -> None:
    made = Kept(directory)
    trainer = Trainer(made.clock)
    for _ in range(3000):
        trainer.step()
    made.take(trainer.report())
    made.store.close()
    path = directory / "optwrap.sqlite3"
    path.write_bytes(path.read_bytes()[:6000])


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (a_file, "not a directory"),
        (no_database, "not a database"),
        (anothers, "another program"),
        (newer, "a newer exporter"),
        (older, "an older exporter"),
        (truncated, "malformed"),
    ],
)
def test_a_directory_that_cannot_be_used_is_refused_in_one_line(
    tmp_path: Path, spoil: Callable[[Path], None], reason: str
) -> None:
    directory = tmp_path / "data"
    spoil(directory)
    with pytest.raises(StoreError, match=reason) as refused, Store(directory) as store:
        store.restore()
    message = str(refused.value)
    assert str(directory) in message
    assert "--data-dir" in message
    assert "\n" not in message


def test_a_damaged_row_is_refused_in_one_line(kept: Kept) -> None:
    kept.take(Trainer(kept.clock).report())
    kept.store.close()
    with contextlib.closing(sqlite3.connect(kept.directory / "optwrap.sqlite3")) as db:
        db.execute("UPDATE incarnation SET state = '{}'")
        db.commit()
    with Store(kept.directory) as store, pytest.raises(StoreError, match=r"damaged.*--data-dir"):
        store.restore()


def test_a_limit_too_small_to_hold_anything_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=f"4096 bytes.*{SMALLEST_LIMIT}"):
        Store(tmp_path, limit_bytes=4096)
