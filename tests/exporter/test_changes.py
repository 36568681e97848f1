"""What a person changes over HTTP, and who may."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.exporter.running import Job, Served, served

CHANGES = [
    ("POST", "/v1/incidents/1/acknowledge"),
    ("POST", "/v1/runs/lm/archive"),
    ("POST", "/v1/runs/lm/restore"),
    ("DELETE", "/v1/runs/lm"),
]


def trouble(site: Served, run: str = "lm") -> dict[str, Any]:
    """A run that applied a non-finite step. Returns its incident."""
    job = Job(run=run, clock=site.clock)
    job.step()
    job.step("accepted_not_finite", "NaN", layer__w=3)
    job.step()
    site.send(job.report())
    found: dict[str, Any] = site.get(f"/v1/runs/{run}/incidents")["items"][0]
    return found


def test_an_incident_is_acknowledged_once_and_for_all(site: Served) -> None:
    incident = trouble(site)
    assert (incident["kind"], incident["state"]) == ("gave_up", "open")
    assert site.get("/v1/runs/lm")["health"] == "gave_up"
    site.clock.advance(10)
    answer = site.client.post(f"/v1/incidents/{incident['id']}/acknowledge")
    assert answer.status_code == 200
    assert answer.json()["state"] == "acknowledged"
    assert answer.json()["acknowledged"] == site.clock()
    assert answer.json()["acknowledged_rfc3339"].endswith("Z")
    assert site.get("/v1/runs/lm")["health"] != "gave_up"
    site.clock.advance(10)
    again = site.client.post(f"/v1/incidents/{incident['id']}/acknowledge")
    assert again.json() == answer.json()
    assert site.get("/v1/incidents", state="acknowledged")["items"] == [answer.json()]


def test_incidents_of_all_runs_are_filtered(site: Served) -> None:
    trouble(site, "a")
    trouble(site, "b")
    found = site.get("/v1/incidents")["items"]
    assert [one["run"] for one in found] == ["b", "a"]
    assert site.get("/v1/incidents", kind=["stale", "gave_up"])["items"] == found
    assert site.get("/v1/incidents", kind="stale")["items"] == []
    assert site.get("/v1/incidents", since=str(site.clock() + 60), state="closed")["items"] == []
    assert site.get("/v1/incidents", outcome="accepted_not_finite", since="-60")["items"] == found
    first = site.get("/v1/incidents", limit=1)
    assert first["items"] + site.get("/v1/incidents", limit=1, cursor=first["cursor"])["items"] == found


def test_an_archived_run_is_hidden_and_kept(site: Served) -> None:
    trouble(site)
    assert site.client.post("/v1/runs/lm/archive").status_code == 204
    assert site.get("/v1/runs")["items"] == []
    assert [run["run"] for run in site.get("/v1/runs", archived="true")["items"]] == ["lm"]
    assert site.get("/v1/runs/lm")["totals"]["steps"] == 3
    assert site.client.post("/v1/runs/lm/restore").status_code == 204
    assert [run["run"] for run in site.get("/v1/runs")["items"]] == ["lm"]


def test_a_deleted_run_is_gone(site: Served) -> None:
    trouble(site)
    answer = site.client.delete("/v1/runs/lm")
    assert (answer.status_code, answer.content) == (204, b"")
    assert site.client.get("/v1/runs/lm").status_code == 404
    assert site.get("/v1/incidents")["items"] == []
    assert site.client.delete("/v1/runs/lm").status_code == 404


@pytest.mark.parametrize(("method", "path"), CHANGES)
def test_what_is_unknown_is_404(site: Served, method: str, path: str) -> None:
    answer = site.client.request(method, path)
    assert answer.status_code == 404
    assert answer.json()["detail"][0]["field"] in {"run", "incident"}


@pytest.mark.parametrize("path", ["/v1/incidents/0/acknowledge", "/v1/incidents/x/acknowledge"])
def test_a_wrong_id_is_422(site: Served, path: str) -> None:
    assert site.client.post(path).status_code == 422


@pytest.mark.parametrize(("method", "path"), CHANGES)
@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", "http://", "http://localhost"])
def test_a_page_of_another_origin_changes_nothing(site: Served, method: str, path: str, origin: str) -> None:
    """A form on a foreign page could send such a request from the browser of someone on this machine."""
    trouble(site)
    answer = site.client.request(method, path, headers={"origin": origin})
    assert answer.status_code == 403
    assert answer.json()["detail"][0]["field"] == "Origin"
    assert site.get("/v1/incidents")["items"][0]["state"] == "open"
    assert len(site.get("/v1/runs")["items"]) == 1


def test_the_exporters_own_page_may_change(site: Served) -> None:
    incident = trouble(site)
    path = f"/v1/incidents/{incident['id']}/acknowledge"
    assert site.client.post(path, headers={"origin": site.url}).status_code == 200
    # A proxy that ends TLS: the scheme differs, the host is the same.
    secure = site.url.replace("http:", "https:")
    assert site.client.post("/v1/runs/lm/archive", headers={"origin": secure}).status_code == 204


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Served]:
    with served(tmp_path / "data", token="hush") as running:
        yield running


@pytest.mark.parametrize(("method", "path"), CHANGES)
def test_a_change_needs_the_token_that_a_report_needs(guarded: Served, method: str, path: str) -> None:
    bearer = {"authorization": "Bearer hush"}
    assert guarded.client.post("/v1/reports", json=Job().report(), headers=bearer).status_code == 200
    for headers in ({}, {"authorization": "Bearer other"}):
        answer = guarded.client.request(method, path, headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert "other" not in answer.text.replace("another", "")
    assert guarded.client.request(method, path, headers=bearer).status_code in {200, 204, 404}


def test_nobody_changes_anything_where_nobody_may_report(tmp_path: Path) -> None:
    from optwrap_exporter.settings import parse_address

    with served(tmp_path / "data", listen=(parse_address("0.0.0.0:0"),)) as open_to_all:
        for method, path in CHANGES:
            assert open_to_all.client.request(method, path).status_code == 401


def test_get_is_no_change(site: Served) -> None:
    assert isinstance(site.client, httpx.Client)
    for method, path in CHANGES[:3]:
        assert method == "POST"
        assert site.client.get(path).status_code == 405
