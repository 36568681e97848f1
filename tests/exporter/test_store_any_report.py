"""The store takes every report that the wire lets through."""

from collections.abc import Sequence

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from optwrap_exporter.wire.requests import Report
from optwrap_exporter.wire.vocabulary import OUTCOMES

from tests.exporter.stores import Kept, check_blocks, fresh
from tests.exporter.trainer import REPLICA, State, Trainer, replica_counters

LARGE = 2**53

UNSHRUNK = [Phase.explicit, Phase.reuse, Phase.generate]
"""Without shrinking, which takes minutes where each example writes a store."""

texts = st.text("aé/\u202e'\"{}💥", min_size=1, max_size=8)


def counted(draw: st.DrawFn, since: State, outcomes: Sequence[str] = ()) -> State:
    """Counters that are nowhere below, with these outcomes at least."""
    state = since.copy()
    state.outcomes.update(outcomes)
    state.outcomes.update({name: draw(st.integers(0, LARGE // 20)) for name in OUTCOMES})
    not_finite = draw(st.integers(0, state.steps - since.steps))
    state.not_finite_steps += not_finite
    state.parameters.update(draw(st.dictionaries(texts, st.integers(0, not_finite), max_size=3)))
    return state


@st.composite
def any_report(draw: st.DrawFn) -> Report:
    """As strange as the wire allows."""
    norms = st.floats(0, allow_nan=False, allow_infinity=False) | st.sampled_from(["NaN", "Infinity", "-Infinity"])
    outcomes = draw(st.lists(st.sampled_from(["applied", "skipped_other", "accepted_not_finite"]), max_size=4))
    before = counted(draw, State())
    state = counted(draw, before, outcomes)
    n = len(outcomes)

    def column(of: st.SearchStrategy[object]) -> list[object]:
        return draw(st.lists(of, min_size=n, max_size=n))

    lived = st.integers(before.steps + 1, max(before.steps + 1, state.steps))
    steps = sorted(draw(st.lists(lived, min_size=n, max_size=n, unique=True)))
    times = st.floats(0, 4_102_444_800.0)
    gauges = ("not_finite_streak", "not_finite_streak_peak", "guard_not_finite_count", "mini_step", "every_k")
    places = st.tuples(st.sampled_from(steps or [0]), texts)
    bad = draw(st.dictionaries(places, st.integers(1, LARGE), max_size=4 if steps else 0))
    seq = draw(st.integers(1, 4) | st.integers(1, LARGE))
    replicas = st.tuples(st.none() | st.integers(0, 2**31), st.none() | st.integers(0, 9), st.none() | texts)
    firsts = draw(st.dictionaries(replicas, st.just(1), max_size=min(3, state.steps - before.steps)))
    return Trainer(
        process=draw(st.integers(0, 1)),
        incarnation=draw(st.sampled_from(["e", "e:1", "1"])),
        attempt=draw(st.sampled_from(["a", "e"])),
        state=State(),
        interval=draw(st.floats(1e-9, 3600)),
    ).report(
        draw(st.sampled_from(["starting", "running", "finished", "failed"])),
        seq=seq,
        oldest_held=draw(st.integers(1, seq)),
        sent_at=draw(times),
        totals=state.counters() | replica_counters(firsts),
        at_start=before.counters(),
        gauges=draw(st.dictionaries(st.sampled_from(gauges), st.integers(0, LARGE)))
        | draw(
            st.fixed_dictionaries({}, optional={"gradient_norm": norms, "gradient_norm_limit": st.floats(0, 1e308)})
        ),
        steps={
            "step": steps,
            "time": column(times),
            "outcome": outcomes,
            "finite": column(st.booleans()),
            "norm": column(norms),
            "mini_step": column(st.none() | st.integers(0, LARGE)),
            **({"interpolated": column(st.booleans())} if draw(st.booleans()) else {}),
        },
        offenders=[{"step": step, "parameter": path, "not_finite": n} for (step, path), n in bad.items()],
        replicas=[
            dict(zip(REPLICA, one, strict=True)) | {"step": step, "count": draw(st.integers(1, 2**31))}
            for step, one in zip(steps, firsts, strict=False)
            if one[0] is not None
        ],
        dropped={"steps": draw(st.integers(0, LARGE)), "bad_steps": draw(st.integers(0, LARGE))},
    )


@given(reports=st.lists(any_report(), min_size=1, max_size=6), data=st.data())
@settings(max_examples=25, phases=UNSHRUNK)
def test_every_valid_report_is_stored_and_can_be_queried(
    tmp_path_factory: pytest.TempPathFactory, reports: list[Report], data: st.DataObject
) -> None:
    with fresh(tmp_path_factory) as kept:
        for report in reports:
            kept.clock.advance(data.draw(st.sampled_from([0.0, 20.0, 1000.0])))
            if kept.ledger.find(report) is None:
                kept.take(report)
            for plan in kept.ledger.pass_time():
                kept.commit(plan)
        answer = kept.ledger.detail("lm")
        assert answer is not None
        kept.ledger.views()
        kept.store.steps("lm", 0, points=2).model_dump_json()
        kept.store.events("lm").model_dump_json()
        for message in kept.store.changes(0):
            message.model_dump_json()
        check_blocks(kept.directory)
        again = kept.reopened()
        reopened = again.ledger.detail("lm")
        again.store.close()
        assert reopened is not None
        assert (reopened.totals, reopened.replicas) == (answer.totals, answer.replicas)


def test_a_sum_saturates_at_the_largest_count(kept: Kept) -> None:
    trainer = Trainer(kept.clock)
    for _ in range(1100):
        trainer.bad(w=LARGE)
    kept.take(trainer.report())
    answer = kept.reopened().ledger.detail("lm")
    assert answer is not None
    assert [(row.parameter, row.values) for row in answer.parameters] == [("w", LARGE)]
