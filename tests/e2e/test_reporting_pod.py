"""A pod in small: the exporter asks its processes for fewer reports, and then refuses none and calls none stale."""

import asyncio
import time
from pathlib import Path

import pytest
from optwrap_exporter import load

from benchmarks import pod
from benchmarks.traffic import Server
from tests.exporter.running import Served, TurnedClock, served


class RealClock(TurnedClock):
    """Time that passes by itself."""

    def __call__(self) -> float:
        return time.time()


def server_of(site: Served) -> Server:
    return Server(int(site.url.rpartition(":")[2]), 0)


def test_imitated_monitors_follow_the_interval_and_none_is_refused_or_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """48 processes at one report a second, and an exporter that wants 12 a second: about one in four seconds."""
    monkeypatch.setattr(load, "TARGET", 0.012)
    monkeypatch.setattr(load, "_PRIOR_REPORTS", 1e9)  # its capacity is 1,000 a second on any machine
    with served(tmp_path / "data", RealClock(), tick=0.5) as site:
        figures = asyncio.run(pod.imitate(server_of(site).port, 48, 14.0, start_seconds=0.5))
        assert not figures.others
        assert figures.lost == 0
        assert set(figures.intervals) == set(range(48))
        assert all(interval == pytest.approx(4.0, rel=0.1) for interval in figures.intervals.values())
        late = sum(at >= 4 for at, _ in figures.accepted)
        assert 48 <= late <= 48 * 4, "one report a second each would be 480"
        assert not [at for at in figures.refused if at >= 4]
        assert pod.healths(server_of(site)) == {"ok": 48}
        assert pod.stale_events(server_of(site)) == 0


def test_real_monitors_in_several_processes_are_all_carried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight Monitors in two processes, asked for a report every two seconds."""
    monkeypatch.setattr(load, "TARGET", 0.004)
    monkeypatch.setattr(load, "_PRIOR_REPORTS", 1e9)
    with served(tmp_path / "data", RealClock(), tick=0.5) as site:
        server = server_of(site)
        with pod.hosts(server.port, 8, 2, 6.0):
            pass
        assert pod.healths(server) == {"finished": 8}
        assert pod.stale_events(server) == 0
        (run,) = site.get("/v1/runs")["items"]
        assert run["totals"]["steps"] > 4
        assert "conflict" not in {event["kind"] for event in site.get("/v1/runs/pod/events")["items"]}
