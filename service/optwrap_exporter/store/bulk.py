"""Writes many rows with few statements.

`executemany` runs one statement for each row, and Python's lock is given up and taken back around each. While the event
loop is busy, the writer would wait for the lock that often. A statement with many rows also costs less itself.
"""

import sqlite3
from collections.abc import Sequence
from functools import cache
from itertools import chain
from typing import Final

Row = tuple[str | int | float | bytes | None, ...]

_SIZES: Final = (50, 10, 1)
"""Rows in one statement. Only these, so that SQLite's statements stay prepared; 50 rows stay below 999 parameters."""


def write(db: sqlite3.Connection, statement: str, rows: Sequence[Row]) -> None:
    """Run a statement for rows of one length, in their order.

    Args:
      db: the connection.
      statement: SQL in which `VALUES ?` stands for the values of all rows.
      rows: the rows.
    """
    first = 0
    for size in _SIZES:
        while len(rows) - first >= size:
            sql = _with_rows(statement, size, len(rows[0]))
            db.execute(sql, tuple(chain.from_iterable(rows[first : first + size])))
            first += size


@cache
def _with_rows(statement: str, rows: int, columns: int) -> str:
    row = f"({', '.join('?' * columns)})"
    return statement.replace("VALUES ?", f"VALUES {', '.join([row] * rows)}")
