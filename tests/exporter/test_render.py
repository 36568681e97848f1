"""The text of /metrics is what prometheus-client makes of the same samples, byte for byte."""

import gzip
import math
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optwrap_exporter.ingest.load import Load
from optwrap_exporter.ledger.ledger import Ledger
from optwrap_exporter.ledger.shown.figures import OTHER, OTHER_REPLICAS, ProcessView, RunView
from optwrap_exporter.ledger.state.counters import Counts, OutcomeCounts, Replica
from optwrap_exporter.ledger.state.incident import IncidentRecord
from optwrap_exporter.ledger.state.lost import Lost
from optwrap_exporter.metrics import samples
from optwrap_exporter.metrics.collector import OwnCollector, StoreFigures
from optwrap_exporter.metrics.own import Statistics
from optwrap_exporter.metrics.render import OPENMETRICS, TEXT, Format, Renderer
from optwrap_exporter.metrics.table import METRICS
from optwrap_exporter.wire.answers import DroppedTotals
from optwrap_exporter.wire.requests import Gauges, Source
from optwrap_exporter.wire.vocabulary import HEALTHS, INCIDENT_KINDS, INCIDENT_STATES, LARGEST
from prometheus_client.registry import Collector

from tests.exporter.trainer import START, Trainer, TurnedClock, take

NOW = START
counts = st.integers(0, LARGEST)
# Label values that need escapes, that look like a template, and that are not ASCII.
texts = st.one_of(st.sampled_from(['a"b', "a\\nb", "a\nb", "{0}", "<1>", "%s", "ü\u2028", ""]), st.text(max_size=12))
numbers = st.floats(allow_nan=True, allow_infinity=True)
times = st.floats(NOW - 10_000, NOW)
totals = st.builds(Counts, st.builds(OutcomeCounts, *[counts] * 6), counts)
replicas = st.builds(Replica, counts, st.none() | counts, st.none() | texts)

process_views = st.builds(
    ProcessView,
    run=texts,
    process=st.integers(0, 65_535),
    incarnation=st.just("i"),
    attempt=st.just("a"),
    health=st.sampled_from(HEALTHS),
    since=times,
    totals=totals,
    state=totals,
    parameters=st.dictionaries(texts, counts, max_size=3).map(lambda found: {OTHER: 0} | found),
    replicas=st.dictionaries(replicas, counts, max_size=3).map(lambda found: {OTHER_REPLICAS: 0} | found),
    dropped=st.builds(DroppedTotals, steps=counts, bad_steps=counts, not_stored=counts),
    lost=st.builds(
        Lost,
        skipped=counts,
        redone=counts,
        starved=counts,
        skipped_seconds=numbers,
        redone_seconds=st.just(0.0),
        starved_seconds=numbers,
    ),
    over=st.booleans(),
    gauges=st.builds(
        Gauges.model_construct,
        not_finite_streak=st.none() | counts,
        mini_step=st.none() | counts,
        every_k=st.none() | counts,
        gradient_norm_limit=st.none() | numbers,
        sync_period=st.none() | counts,
    ),
    gradient_norm=st.none() | numbers,
    streak_peak=counts,
    last_report=times,
    last_step=st.none() | times,
    last_gradient_step=st.none() | times,
    source=st.builds(
        Source.model_construct,
        host=texts,
        platform=texts,
        device_kind=texts,
        jax_version=texts,
        optwrap_version=texts,
        process_count=st.integers(1, 65_536),
    ),
)
ranges = st.lists(st.integers(0, 65_535), max_size=2).map(lambda found: tuple((one, one) for one in sorted(set(found))))
incidents = st.builds(
    IncidentRecord,
    id=st.just(1),
    kind=st.sampled_from(INCIDENT_KINDS),
    attempt=st.just("a"),
    generation=st.just(0),
    opened=times,
    updated=times,
    state=st.sampled_from(INCIDENT_STATES),
    processes=ranges,
    active=ranges,
    first_step=st.none() | counts,
    parameter=st.none() | texts,
    host=st.none() | texts,
    device=st.none() | texts,
    last_clean_step=st.none() | counts,
)
run_views = st.builds(
    RunView,
    run=texts,
    health=st.sampled_from(HEALTHS),
    expected=counts,
    reporting=counts,
    over=st.booleans(),
    last_report=times,
    totals=totals,
    parameters=st.dictionaries(texts, counts, max_size=3),
    dropped=st.builds(DroppedTotals, steps=counts, bad_steps=counts, not_stored=counts),
    attempts=counts,
    missing=st.none() | counts,
    incidents=st.lists(incidents, max_size=3).map(tuple),
    acknowledged=st.booleans(),
)


class Reference(Collector):
    """The same samples as families of prometheus-client, in the table's order."""

    def __init__(self, processes: list[ProcessView], runs: list[RunView], own: Collector) -> None:
        self.processes, self.runs, self.own = processes, runs, own

    def collect(self) -> Iterable[Any]:
        families: dict[str, Any] = {m.name: m.family() for m in METRICS if m.labels[:1] == ("run",)}
        labels: tuple[str, ...] = ()

        def add(name: str, value: float, *further: str) -> None:
            families[name].add_metric([*labels, *further], {} if name.endswith("_info") else value)

        for process in self.processes:
            labels = (process.run, str(process.process))
            samples.of_process(process, NOW, add)
        for run in self.runs:
            labels = (run.run,)
            samples.of_run(run, NOW, add)
        return [*families.values(), *self.own.collect()]


def own() -> OwnCollector:
    store = StoreFigures(lambda: 12_345_678, 1 << 30, lambda: "ok")
    return OwnCollector(Ledger(TurnedClock()), Statistics(), store, load=Load(), version="0.1.0")


def of(processes: list[ProcessView], runs: list[RunView]) -> Any:
    """What the renderer needs of a ledger."""
    return SimpleNamespace(process_views=lambda: iter(processes), run_views=lambda: iter(runs))


def no_pause() -> None:
    pass


@settings(deadline=None)
@given(st.lists(process_views, max_size=3), st.lists(run_views, max_size=2), st.sampled_from([TEXT, OPENMETRICS]))
def test_the_text_is_that_of_prometheus_client(
    processes: list[ProcessView], runs: list[RunView], shape: Format
) -> None:
    renderer = Renderer(of(processes, runs), own(), clock=lambda: NOW, pause=no_pause)
    expected = shape.encode(Reference(processes, runs, own()))
    assert renderer.render(shape, compress=False) == expected
    assert gzip.decompress(renderer.render(shape, compress=True)) == expected


@pytest.mark.parametrize("value", [0, 1, 999_999, 10**6, 2**53, 1e21, 1e300, 5e-324, 0.1, -1.5, math.inf, -math.inf])
def test_a_number_is_written_as_prometheus_client_writes_it(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values that no ledger has today, too."""

    def one(view: RunView, now: float, add: samples.Add) -> None:
        del view, now
        add("optwrap_processes_expected", value)

    monkeypatch.setattr(samples, "of_run", one)
    dropped = DroppedTotals(steps=0, bad_steps=0, not_stored=0)
    runs = [RunView("lm", "ok", 1, 1, 1, False, NOW, Counts(), {}, dropped, 1, None, (), False)]
    rendered = Renderer(of([], runs), own(), clock=lambda: NOW, pause=no_pause).render(TEXT, compress=False)
    assert rendered == TEXT.encode(Reference([], runs, own()))


def test_a_real_ledger_of_several_slices_is_rendered_whole_and_other_threads_run_in_between() -> None:
    clock = TurnedClock()
    ledger = Ledger(clock)
    for process in range(200):
        trainer = Trainer(process=process, process_count=200, clock=clock)
        trainer.step()
        trainer.bad()
        take(ledger, trainer.report())
    pauses: list[None] = []
    renderer = Renderer(ledger, own(), clock=clock, pause=lambda: pauses.append(None))
    reference = Reference(ledger.views(), list(ledger.run_views()), own())
    assert renderer.render(TEXT, compress=False) == TEXT.encode(reference)
    assert len(pauses) == 3
