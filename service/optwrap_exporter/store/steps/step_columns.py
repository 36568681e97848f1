"""How the columns of step records are stored in rows, and read back.

SQLite has no NaN: a norm is null instead. The scalars of a step are one JSON text.
"""

import itertools
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any, Final

from pydantic_core import to_json

from optwrap_exporter.wire.requests import StepColumns
from optwrap_exporter.wire.vocabulary import MOST_SCALARS, NOT_FINITE_NUMBERS, OUTCOMES

SELECTED: Final = "step, time, outcome, finite, norm, mini_step, interpolated, update_norm, scalars"
"""The columns that `read` needs."""
NOT_FINITE: Final = ':"'
"""Is in the text of scalars if one of them is non-finite: all other values are numbers."""
ROLLED_UP: Final = f"iif(instr(scalars, '{NOT_FINITE}'), NULL, norm)"
"""The norm with which a step counts in rollups. Downsampling keeps the largest, and null counts as infinite."""


def rolled_up(norms: Sequence[float | None], scalars: Sequence[str | None]) -> Sequence[float | None]:
    """For each step its norm as ROLLED_UP, from the columns `norm` and `scalars`. Without scalars that is empty."""
    if not any(scalars):
        return norms
    return [
        None if text is not None and NOT_FINITE in text else norm for norm, text in zip(norms, scalars, strict=True)
    ]


Row = tuple[int, float, int, int, float | None, int | None, int, float | None, str | None]

_NAN: Final = -1.0


def stored_update_norm(value: float | None) -> float | None:
    """The norm of an update as it is stored."""
    return _NAN if value is not None and math.isnan(value) else value


def scalars_by_step(columns: StepColumns) -> Sequence[str | None]:
    """For each step, its scalars as they are stored; empty if there are none."""
    if not columns.scalars:
        return ()
    names = list(columns.scalars)

    def text(values: tuple[float | None, ...]) -> str | None:
        found = {name: value for name, value in zip(names, values, strict=True) if value is not None}
        return to_json(found, inf_nan_mode="strings").decode() if found else None

    return [text(values) for values in zip(*columns.scalars.values(), strict=True)]


def without(columns: StepColumns, known: set[int]) -> StepColumns:
    """The columns without the steps of some numbers."""
    fresh = [step not in known for step in columns.step]

    def of(column: Iterable[Any]) -> list[Any]:
        return list(itertools.compress(column, fresh))

    return columns.model_copy(
        update={
            name: {key: of(values) for key, values in column.items()} if name == "scalars" else of(column)
            for name, column in columns
            if column is not None
        }
    )


def read(rows: Iterable[Row]) -> StepColumns:
    """Step rows as columns."""
    table = list(zip(*rows, strict=True)) or [()] * 9
    step, time, outcome, finite, norm, mini_step, interpolated, update_norm, scalars = table
    # They were validated on arrival. Validating a million of them again would be slow.
    return StepColumns.model_construct(
        step=list(step),
        time=list(time),
        outcome=[OUTCOMES[v] for v in outcome],
        finite=[bool(f) for f in finite],
        norm=[math.nan if n is None else n for n in norm],
        mini_step=list(mini_step),
        interpolated=[bool(i) for i in interpolated] if any(interpolated) else None,
        update_norm=None
        if all(value is None for value in update_norm)
        else [math.nan if value == _NAN else value for value in update_norm],
        scalars=_scalars(scalars),
    )


def _scalars(texts: Iterable[str | None]) -> dict[str, list[float | None]]:
    """The columns of scalars. If there are too many names, those of the last steps are kept."""
    if not any(texts):
        return {}
    found = [json.loads(text) if text else {} for text in texts]
    names = dict.fromkeys(name for one in reversed(found) for name in one)
    return {
        name: [NOT_FINITE_NUMBERS.get(value, value) for value in (one.get(name) for one in found)]
        for name in itertools.islice(names, MOST_SCALARS)
    }
