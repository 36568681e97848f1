"""Times in answers and queries."""

import json

import pytest
from optwrap_exporter.wire.times import Answer, Instant, parse_time, rfc3339


class _Row(Answer):
    at: Instant
    ended: Instant | None
    step: float


def test_a_time_is_also_in_rfc_3339() -> None:
    row = _Row(at=1_763_800_000.25, ended=None, step=1.0)
    assert json.loads(row.model_dump_json()) == {
        "at": 1_763_800_000.25,
        "ended": None,
        "step": 1.0,
        "at_rfc3339": "2025-11-22T08:26:40.250Z",
        "ended_rfc3339": None,
    }


def test_a_subclass_and_an_unvalidated_row_have_it_too() -> None:
    class More(_Row):
        seen: Instant | None = None
        all: list[Instant]

    more = More.model_construct(at=0.0, ended=1.0, step=2.0, all=[])
    assert more.model_dump()["at_rfc3339"] == "1970-01-01T00:00:00.000Z"
    assert more.model_dump()["ended_rfc3339"] == "1970-01-01T00:00:01.000Z"
    assert more.model_dump()["seen_rfc3339"] is None
    assert More.model_construct(at=0.0, ended=None, step=0.0, all=[0.0]).model_dump()["all_rfc3339"] == [
        "1970-01-01T00:00:00.000Z"
    ]


def test_the_schema_has_the_field() -> None:
    found = _Row.model_json_schema(mode="serialization")["properties"]
    assert found["at_rfc3339"]["type"] == "string"
    assert "step_rfc3339" not in found


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("1763800000", 1_763_800_000.0),
        ("1763800000.5", 1_763_800_000.5),
        ("2025-11-22T08:26:40Z", 1_763_800_000.0),
        ("2025-11-22T09:26:40+01:00", 1_763_800_000.0),
        ("-3600", 2_000_000_000.0 - 3600),
        ("-9e9", 0.0),
        ("0", 0.0),
    ],
)
def test_a_time_is_read(text: str, time: float) -> None:
    assert parse_time(text, 2_000_000_000.0) == time


@pytest.mark.parametrize(
    "text", ["", "yesterday", "nan", "inf", "-inf", "5e9", "2025-11-22T08:26:40", "2200-01-01T00:00:00Z"]
)
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        parse_time(text, 2_000_000_000.0)


def test_a_time_that_was_written_is_read_again() -> None:
    assert parse_time(rfc3339(1_763_800_000.125), 0.0) == 1_763_800_000.125
