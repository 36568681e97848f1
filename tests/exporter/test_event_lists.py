"""The lists of events: filters, time ranges, all runs, CSV."""

import csv
import io
from typing import Any

import pytest
from optwrap_exporter.store import event_list

from tests.exporter.running import START, Job, Served


@pytest.fixture(scope="module")
def filled(shared: Served) -> Served:
    """Two runs; a step each minute, of which some are skipped for one reason or another."""
    jobs = [Job(run="a", clock=shared.clock), Job(run="b", clock=shared.clock, incarnation="e2")]
    for number in range(12):
        shared.clock.advance(60)
        for job in jobs:
            if number % 3 == 1:
                job.step("skipped_not_finite", "NaN", layer__w=7)
            elif number % 3 == 2:
                job.step("skipped_large", 80.0)
            else:
                job.step()
    jobs[1].step("accepted_not_finite", "NaN", layer__w=1)
    for job in jobs:
        shared.send(job.report())
    return shared


def events(site: Served, path: str = "/v1/events", **query: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = site.get(path, **query)["items"]
    assert [event["id"] for event in found] == sorted((event["id"] for event in found), reverse=True)
    return found


def test_events_of_all_runs_are_listed_together(filled: Served) -> None:
    found = events(filled, limit=1000)
    assert {event["run"] for event in found} == {"a", "b"}
    each = [event for run in ("a", "b") for event in events(filled, f"/v1/runs/{run}/events", limit=1000)]
    assert sorted(event["id"] for event in each) == sorted(event["id"] for event in found)


def test_kinds_can_be_repeated(filled: Served) -> None:
    found = events(filled, kind=["skipped", "accepted_not_finite"])
    assert {event["kind"] for event in found} == {"skipped", "accepted_not_finite"}
    assert len(found) == 2 * 8 + 1


def test_events_are_filtered_by_the_outcome_of_their_step(filled: Served) -> None:
    large = events(filled, outcome="skipped_large")
    assert len(large) == 8
    assert {event["detail"]["reason"] for event in large} == {"large"}
    (accepted,) = events(filled, outcome="accepted_not_finite")
    assert accepted["run"] == "b"
    both = events(filled, outcome=["accepted_not_finite", "skipped_not_finite"], limit=100)
    assert len(both) == 9
    assert events(filled, outcome="skipped_large", kind="accepted_not_finite") == []


@pytest.mark.parametrize("form", ["unix", "rfc3339", "before"])
def test_events_are_filtered_by_time(filled: Served, form: str) -> None:
    """The same range in each of the three forms of a time: the third to the fifth minute."""
    since, until = START + 180, START + 360
    if form == "unix":
        query = {"since": str(since), "until": str(until)}
    elif form == "rfc3339":
        query = {"since": "2025-11-22T08:29:40Z", "until": "2025-11-22T08:32:40.000Z"}
    else:
        now = filled.clock()
        query = {"since": str(since - now), "until": str(until - now)}
    found = events(filled, kind="skipped", **query)
    assert {event["time"] for event in found} == {START + 180, START + 300}
    assert len(found) == 4
    assert events(filled, "/v1/runs/a/events", kind="skipped", **query) == [e for e in found if e["run"] == "a"]


def test_a_time_that_is_none_is_refused(filled: Served) -> None:
    answer = filled.client.get("/v1/events", params={"since": "yesterday"})
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["field"] == "since"
    assert "RFC 3339" in answer.json()["detail"][0]["allowed"]
    assert filled.client.get("/v1/events", params={"since": "20", "until": "10"}).status_code == 422


def test_an_event_has_its_time_in_rfc_3339(filled: Served) -> None:
    event = events(filled, kind="skipped")[-1]
    assert (event["time"], event["time_rfc3339"]) == (START + 120, "2025-11-22T08:28:40.000Z")


def test_pages_by_outcome_lose_nothing_where_few_are_read_at_once(
    filled: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = events(filled, outcome="skipped_large", limit=1000)
    monkeypatch.setattr(event_list, "_EXAMINED", 3)
    found, cursor, pages = [], None, 0
    while pages == 0 or cursor is not None:
        page = filled.get("/v1/events", outcome="skipped_large", limit=2, **({"cursor": cursor} if cursor else {}))
        found += page["items"]
        cursor, pages = page["cursor"], pages + 1
    assert found == whole
    assert pages > 4


def test_csv_has_the_same_events_and_a_link_to_the_next_page(filled: Served) -> None:
    headers = {"accept": "text/csv"}
    answer = filled.client.get("/v1/events", params={"kind": "skipped", "limit": 10}, headers=headers)
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    whole = events(filled, kind="skipped", limit=1000)
    link = answer.links["next"]["url"]
    rows += csv.DictReader(io.StringIO(filled.client.get(link, headers=headers).text))
    assert [int(row["id"]) for row in rows] == [event["id"] for event in whole]
    assert [row["time_rfc3339"] for row in rows] == [event["time_rfc3339"] for event in whole]
    assert "next" not in filled.client.get("/v1/events", headers=headers, params={"limit": 1000}).links


@pytest.mark.parametrize(
    ("accept", "csv_wanted"),
    [
        ("text/csv", True),
        ("text/*", True),
        ("application/json, text/csv;q=0.5", False),
        ("application/json;q=0.5, text/csv", True),
        ("text/html,application/xhtml+xml,*/*;q=0.8", False),
        ("*/*", False),
        ("text/csv;q=zero", False),
        ("text/csv;q=0", False),
    ],
)
def test_csv_is_sent_only_to_those_who_prefer_it(filled: Served, accept: str, csv_wanted: bool) -> None:
    for path in ("/v1/events", "/v1/runs/a/steps", "/v1/runs/a/events"):
        answer = filled.client.get(path, headers={"accept": accept})
        assert answer.headers["content-type"].startswith("text/csv" if csv_wanted else "application/json")


def test_steps_as_csv_have_every_column(filled: Served) -> None:
    answer = filled.client.get("/v1/runs/b/steps", headers={"accept": "text/csv"})
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    steps = filled.get("/v1/runs/b/steps")
    assert [int(row["step"]) for row in rows] == steps["columns"]["step"]
    assert [row["outcome"] for row in rows] == steps["columns"]["outcome"]
    assert rows[1]["norm"] == "NaN"
    assert (answer.headers["optwrap-total"], answer.headers["optwrap-shown"]) == ("13", "13")


def test_a_name_is_no_formula_to_a_spreadsheet() -> None:
    from optwrap_exporter.http.query.csv_answer import csv_answer

    body = bytes(csv_answer(["a"], [["=1+1"], [-1.5], ["-Infinity"], [None], [True], [{"b": 1}]]).body).decode()
    assert body.splitlines() == ["a", "'=1+1", "-1.5", "-Infinity", '""', "true", '"{""b"": 1}"']
