"""Writing many rows with few statements."""

import contextlib
import sqlite3

import pytest
from optwrap_exporter.store import bulk


@pytest.mark.parametrize("count", [0, 1, 9, 10, 49, 50, 61, 127])
def test_all_rows_are_written_in_their_order(count: int) -> None:
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        db.execute("CREATE TABLE thing (id INTEGER PRIMARY KEY, a, b)")
        ran: list[str] = []
        db.set_trace_callback(ran.append)
        rows: list[bulk.Row] = [(n, f"x{n}") for n in range(count)]
        bulk.write(db, "INSERT INTO thing (a, b) VALUES ?", rows)
        db.set_trace_callback(None)
        assert db.execute("SELECT a, b FROM thing ORDER BY id").fetchall() == rows
    assert len(ran) == count // 50 + count % 50 // 10 + count % 10


def test_a_row_that_conflicts_with_one_before_it_updates_it() -> None:
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        db.execute("CREATE TABLE thing (a PRIMARY KEY, b)")
        rows: list[bulk.Row] = [(n % 7, n) for n in range(60)]
        bulk.write(db, "INSERT INTO thing VALUES ? ON CONFLICT DO UPDATE SET b = b + excluded.b", rows)
        found = dict(db.execute("SELECT a, b FROM thing"))
    assert found == {a: sum(range(a, 60, 7)) for a in range(7)}
