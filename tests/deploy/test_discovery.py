"""Prometheus finds exporters by the files in which they announce themselves, and sees the end of what they show."""

from pathlib import Path

import pytest

from tests.deploy import drained

pytestmark = pytest.mark.programs("prometheus")


def test_prometheus_sees_the_last_steps_of_jobs_whose_exporters_are_drained(tmp_path: Path) -> None:
    """Two exporters run at once on free ports. Each stops when its drain ends, and its file is gone."""
    ended = drained.jobs(tmp_path, [1, 5], 1)
    assert [(one.drained.returncode, one.drained.stderr) for one in ended] == [(0, "")] * 2
    assert [one.seen for one in ended] == [drained.COUNTS] * 2
    assert {one.state for one in ended} == {"gave_up"}
    assert len({one.target for one in ended}) == 2
    assert list(tmp_path.glob("every-?/*")) == []
