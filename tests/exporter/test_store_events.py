"""Stored events: pages and their cursors, and the stream that resumes after any revision."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optwrap_exporter.ledger.ledger import Ledger
from optwrap_exporter.wire.cursor import CursorError, encode
from optwrap_exporter.wire.vocabulary import EventKind

from tests.exporter.stores import Kept, all_events, busy_runs
from tests.exporter.trainer import TurnedClock


@pytest.mark.parametrize("kind", [None, "skipped", "streak_started", "started", "stale"])
@pytest.mark.parametrize("process", [None, 0, 1])
def test_pages_of_events_go_from_newest_to_oldest_without_repetition(
    kept: Kept, kind: EventKind | None, process: int | None
) -> None:
    busy_runs(kept)
    kinds = [kind] if kind else []
    whole = kept.store.events("lm", kind=kinds, process=process, limit=1000)
    assert whole.cursor is None
    paged = all_events(lambda cursor: kept.store.events("lm", kind=kinds, process=process, limit=3, cursor=cursor))
    assert paged == whole.items
    assert [event.id for event in paged] == sorted({event.id for event in paged}, reverse=True)
    assert all(event.kind == kind for event in paged if kind is not None)
    assert {event.run for event in paged} <= {"lm"}
    expected = {"skipped": 6, "streak_started": 6, "stale": 0, "started": 1 if process is not None else 2}
    if kind is not None:
        assert len(paged) == expected[kind]


def test_a_run_lists_a_shared_event_from_the_first_process(kept: Kept) -> None:
    busy_runs(kept)
    assert [event.process for event in kept.store.events("lm", kind=["skipped"]).items] == [1] * 6
    assert {event.process for event in kept.store.events("lm", kind=["started"]).items} == {0, 1}
    assert [event.process for event in kept.store.events("lm", kind=["skipped"], process=0).items] == [0] * 6


def test_a_cursor_of_another_list_is_refused(kept: Kept) -> None:
    busy_runs(kept)
    cursor = kept.store.events("lm", limit=1).cursor
    assert cursor is not None
    for refused in (
        lambda: kept.store.events("other", cursor=cursor),
        lambda: kept.store.events("lm", kind=["skipped"], cursor=cursor),
        lambda: kept.store.events("lm", process=0, cursor=cursor),
        lambda: kept.ledger.run_page(cursor=cursor),
        lambda: kept.ledger.parameter_page("lm", cursor=cursor),
    ):
        with pytest.raises(CursorError):
            refused()
    runs = kept.ledger.run_page(limit=1).cursor
    with pytest.raises(CursorError) as error:
        kept.store.events("lm", cursor=runs)
    assert error.value.value == runs


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 10**30, -(10**30)])
def test_a_cursor_with_a_number_that_no_row_can_have_is_refused(kept: Kept, number: int) -> None:
    with pytest.raises(CursorError):
        kept.store.events("lm", cursor=encode("events:lm:::", [number]))
    assert kept.store.events("lm", cursor=encode("events:lm:::", [2**63 - 1])).items == []


@given(cursor=st.text(max_size=60) | st.binary(max_size=30).map(lambda b: b.decode("latin-1")))
def test_random_text_is_no_cursor(cursor: str) -> None:
    ledger = Ledger(TurnedClock())
    with pytest.raises(CursorError):
        ledger.run_page(cursor=cursor)


def test_the_stream_resumes_after_any_revision(kept: Kept) -> None:
    busy_runs(kept)
    kept.clock.advance(60)
    for plan in kept.ledger.pass_time():
        kept.commit(plan)
    everything = kept.store.changes(0).messages
    assert [message.revision for message in everything] == list(range(1, kept.store.revision() + 1))
    dumped = [message.model_dump_json() for message in everything]
    for after in range(len(everything) + 1):
        assert [m.model_dump_json() for m in kept.store.changes(after).messages] == dumped[after:]
    mine = kept.store.changes(3, "other").messages[:2]
    assert [m.revision for m in mine] == [m.revision for m in everything if m.run == "other" and m.revision > 3][:2]
    assert [event.kind for message in everything[-3:] for event in message.events] == ["stale"] * 3
    offenders = [(o.step, o.parameter, o.not_finite) for message in mine for o in message.offenders]
    assert offenders == [(3, "w", 1), (5, "w", 1)]
