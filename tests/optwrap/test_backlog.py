"""The bounded queue of step records: what it drops, and in which order records leave it."""

import hypothesis
import hypothesis.strategies as st

from optwrap._monitor.backlog import Backlog, Record
from optwrap._monitor.worst import Named
from optwrap._reading.counters import OUTCOMES
from tests.optwrap.monitoring import PARAMETERS

RECORDS = st.builds(
    Record,
    step=st.integers(1, 99),
    time=st.just(0.0),
    interpolated=st.just(False),
    outcome=st.sampled_from(OUTCOMES),
    finite=st.booleans(),
    norm=st.just(1.0),
    mini_step=st.none(),
    nonfinite_parameters=st.builds(Named, st.dictionaries(st.sampled_from(PARAMETERS), st.integers(1, 9))),
)


@hypothesis.given(st.lists(RECORDS, max_size=60), st.integers(1, 30))
def test_a_backlog_keeps_its_limit_and_drops_good_records_first(records: list[Record], limit: int) -> None:
    """Bad records are dropped only when no good one is left; the others keep their order."""
    backlog: Backlog[str] = Backlog(limit)
    gone: list[Record] = []
    for record in records:
        dropped = backlog.add("owner", record)
        gone += [entry.record for entry in dropped]
        assert backlog.weight <= limit
        if any(entry.record.bad for entry in dropped):
            kept = backlog.take("owner", 10**9)
            assert all(entry.record.bad for entry in kept)
            assert not backlog.put_back(kept)
    kept = backlog.take("owner", 10**9)
    assert [entry.order for entry in kept] == sorted(entry.order for entry in kept)
    assert sorted(map(id, gone + [entry.record for entry in kept])) == sorted(map(id, records))
    assert backlog.weight == len(backlog) == 0


@hypothesis.given(st.lists(RECORDS, min_size=1, max_size=30), st.integers(1, 10))
def test_records_are_taken_in_order_and_in_parts(records: list[Record], limit: int) -> None:
    """Each `take` keeps its limit, or returns one larger record; together they return all records, in order."""
    backlog: Backlog[str] = Backlog(10**9)
    for record in records:
        backlog.add("owner", record)
    taken = []
    while part := backlog.take("owner", limit):
        assert len(part) == 1 or sum(entry.record.weight for entry in part) <= limit
        taken += [entry.record for entry in part]
    assert [id(record) for record in taken] == [id(record) for record in records]
