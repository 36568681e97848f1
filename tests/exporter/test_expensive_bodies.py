"""What makes a body expensive is found before the expensive part: counts of work, not of time."""

import pytest
from optwrap_exporter.wire.consistency import parse_report
from optwrap_exporter.wire.errors import shown
from optwrap_exporter.wire.fields import check_fields
from optwrap_exporter.wire.size import OversizeError, check_size
from pydantic import ValidationError

from tests.exporter.fuzz.bombs import BOMBS, filled


@pytest.mark.parametrize("digits", [999, 4300])
@pytest.mark.parametrize("shift", range(0, 500, 99))
def test_a_long_number_in_a_large_body_is_refused_before_it_is_parsed(digits: int, shift: int) -> None:
    """The time to parse an integer grows with the square of its length."""
    with pytest.raises(OversizeError, match="500 digits"):
        check_size(b" " * (140_000 + shift) + b"1" * digits)


def test_numbers_as_reports_have_them_are_not_too_long() -> None:
    """Also if there is nothing else: the longest float has 24 characters. One digit more than 499 is refused."""
    check_size(b"1763800000.0123456789012 " * 10_000)
    check_size(b"1" * 499 + b" " * 140_000)
    with pytest.raises(OversizeError):
        check_size(b"1" * 500 + b" " * 140_000)


def test_a_mapping_that_is_too_long_is_refused_before_its_items_are_read() -> None:
    """Otherwise pydantic reads all of it first."""
    with pytest.raises(ValidationError, match="at most 8192 entries"):
        check_fields(BOMBS["escaped names of parameters"]())


def test_a_list_that_is_too_long_is_refused_before_its_items_are_read() -> None:
    with pytest.raises(ValidationError, match="at most 8192 entries"):
        check_fields(filled("steps.time", lambda _: "1.5", most=10_000))


def test_a_contradiction_does_not_copy_the_body_into_the_error() -> None:
    """Pydantic would keep, and first build, the whole report as the input of the error."""
    body = filled("offenders", lambda n: f'{{"step":{n + 1},"parameter":"{"w" * 200}","not_finite":1}}', most=8000)
    with pytest.raises(ValidationError) as caught:
        parse_report(body)
    (error,) = caught.value.errors()
    assert error["ctx"]["field"] == "offenders[0].step"
    assert error["input"] is None


def test_a_long_value_is_not_written_out_to_be_cut_off() -> None:
    """A list of one string of 4 MiB, and a body that is no JSON."""
    assert shown(["a" * 1000]) == "a list of 1 values"
    assert shown({"a": "b" * 1000}) == "an object of 1 fields"
    assert shown(["a", 1]) == "['a', 1]"
    assert len(shown(b"\0" * 1000)) == 200
