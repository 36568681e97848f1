"""Prometheus finds exporters by the files in which they announce themselves."""

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.conftest import RunningExporter
from tests.deploy import prometheus
from tests.polling import wait_until

pytestmark = pytest.mark.programs("prometheus")


def test_two_exporters_on_one_node_are_found_and_leave_when_they_stop(
    start_exporter: Callable[..., RunningExporter], tmp_path: Path
) -> None:
    folder, place = tmp_path / "targets", tmp_path / "prometheus"
    folder.mkdir()
    place.mkdir()
    with prometheus.discovering(place, {str(folder): 1.0}) as found:
        first, second = (start_exporter("--announce", f"{folder}/{name}.json", listen=":0") for name in "ab")
        found.wait_until("sum(up) == 2")
        assert {name for labels, _ in found.instant("up") for name in labels} == {"__name__", "instance", "job"}
        assert first.stop() == 0
        port = second.url.rpartition(":")[2]

        def left() -> bool:
            active = found.get("targets", state="active")["activeTargets"]
            return [target["labels"]["instance"].rpartition(":")[2] for target in active] == [port]

        wait_until(left, problem=lambda: found.get("targets", state="active"))
        assert [path.name for path in folder.iterdir()] == ["b.json"]
        assert httpx.get(f"{second.url}/-/ready", trust_env=False).status_code == 200
