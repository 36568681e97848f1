"""The query routes, the probes, and the pages for a browser."""

import re
from html.parser import HTMLParser
from pathlib import Path
from posixpath import dirname, normpath

import pytest
from optwrap_exporter.http.routes.pages import PAGE

from tests.exporter.running import START, Job, Served


def fill(site: Served) -> Job:
    """Twelve steps of one process: every third is bad."""
    job = Job(clock=site.clock)
    job.gauges["every_k"] = 4
    for number in range(12):
        site.clock.advance(0.5)
        job.gauges["mini_step"] = number % 4
        if number % 3 == 2:
            job.step("skipped_not_finite", "NaN", layer__w=7, layer__b=1)
        else:
            job.step("applied", number / 10)
    site.send(job.report())
    return job


@pytest.fixture(scope="module")
def filled(shared: Served) -> Served:
    """A site whose only run is that of `fill`; for reading."""
    fill(shared)
    return shared


def test_a_run_is_answered_with_what_was_counted(filled: Served) -> None:
    run = filled.get("/v1/runs/lm")
    assert run["totals"] == {
        "steps": 12,
        "gradient_steps": 8,
        "outcomes": {
            "applied": 8,
            "accumulated": 0,
            "skipped_not_finite": 4,
            "skipped_large": 0,
            "skipped_other": 0,
            "accepted_not_finite": 0,
        },
        "skipped": {"not_finite": 4, "large": 0, "other": 0},
        "not_finite_steps": 4,
        "accepted_not_finite": 0,
    }
    assert run["state_totals"] == run["totals"]
    assert run["gauges"]["gradient_norm"] == "NaN"
    assert run["parameters"] == [
        {"parameter": "layer/w", "steps": 4, "values": 28, "first_step": 3, "last_step": 12},
        {"parameter": "layer/b", "steps": 4, "values": 4, "first_step": 3, "last_step": 12},
    ]
    assert [process["host"] for process in run["processes"]] == ["node-0"]


def test_nonfinite_replicas_are_listed_worst_first_and_beside_their_steps(site: Served) -> None:
    """The same replica number on another device is another row."""
    job = Job(clock=site.clock)
    job.step()
    for number in (5, 2, 5):
        site.clock.advance(1)
        at = {"replica": number, "process": number // 4, "device": f"cpu:{number}"}
        job.step("skipped_not_finite", "NaN", replica={**at, "count": 1, "of": 8}, w=1)
    job.step("skipped_not_finite", "NaN", replica={"replica": 3, "count": 2}, w=1)
    site.send(job.report())
    later = Job(clock=site.clock, incarnation="e2", attempt="a2")
    site.clock.advance(60)
    later.step("skipped_not_finite", "NaN", replica={"replica": 5, "process": 0, "device": "cpu:1", "count": 1}, w=1)
    site.send(later.report())
    run = site.get("/v1/runs/lm")
    assert [tuple(row.values()) for row in run["replicas"]] == [
        (5, 1, "cpu:5", 2, 2, 4),
        (2, 0, "cpu:2", 1, 3, 3),
        (3, None, None, 1, 5, 5),
        (5, 0, "cpu:1", 1, 1, 1),
    ]
    found = site.get("/v1/runs/lm/steps", since=2, until=5)
    assert [(row["step"], row["replica"], row["device"], row["of"]) for row in found["replicas"]] == [
        (2, 5, "cpu:5", 8),
        (3, 2, "cpu:2", 8),
        (4, 5, "cpu:5", 8),
        (5, 3, None, None),
    ]
    events = site.get("/v1/runs/lm/events", kind="skipped")["items"]
    assert events[-1]["detail"]["replica"] == {"replica": 5, "process": 1, "device": "cpu:5", "count": 1, "of": 8}


def test_steps_are_columns_by_step_and_bad_ones_are_always_there(filled: Served) -> None:
    answer = filled.get("/v1/runs/lm/steps")
    assert (answer["run"], answer["process"], answer["total"], answer["sampled"]) == ("lm", 0, 12, False)
    columns = answer["columns"]
    assert columns["step"] == list(range(1, 13))
    assert columns["norm"][2] == "NaN"
    assert columns["finite"] == [number % 3 != 2 for number in range(12)]
    assert columns["mini_step"] == [number % 4 for number in range(12)]
    thin = filled.get("/v1/runs/lm/steps", points=2)
    assert thin["sampled"]
    assert {3, 6, 9, 12} <= set(thin["columns"]["step"])
    assert len(thin["columns"]["step"]) < 12
    part = filled.get("/v1/runs/lm/steps", since=4, until=6)
    assert part["columns"]["step"] == [4, 5, 6]
    assert (part["since"], part["until"], part["total"]) == (4, 6, 3)


def test_lists_page_by_cursor_without_loss_or_repetition(site: Served) -> None:
    names = [f"run-{number}" for number in range(7)]
    for name in names:
        job = Job(run=name)
        job.step("skipped_not_finite", "NaN", **{f"p{number}": 1 for number in range(5)})
        site.send(job.report())
    for path, key, expected in (
        ("/v1/runs", "run", set(names)),
        ("/v1/runs/run-0/parameters", "parameter", {f"p{number}" for number in range(5)}),
        ("/v1/runs/run-0/events", "id", {event["id"] for event in site.get("/v1/runs/run-0/events")["items"]}),
    ):
        found = []
        cursor = None
        while True:
            page = site.get(path, limit=2, **({"cursor": cursor} if cursor else {}))
            assert len(page["items"]) <= 2
            found += [item[key] for item in page["items"]]
            cursor = page["cursor"]
            if cursor is None:
                break
        assert len(found) == len(set(found))
        assert set(found) == expected


def test_events_can_be_asked_for_by_kind(filled: Served) -> None:
    events = filled.get("/v1/runs/lm/events", kind="skipped")["items"]
    assert [event["step"] for event in events] == [12, 9, 6, 3]
    assert {event["kind"] for event in events} == {"skipped"}


@pytest.mark.parametrize("below", ["", "/steps", "/events", "/parameters"])
def test_an_unknown_run_is_404_and_named(filled: Served, below: str) -> None:
    answer = filled.client.get(f"/v1/runs/nobody{below}")
    assert answer.status_code == 404
    (detail,) = answer.json()["detail"]
    assert (detail["field"], detail["value"]) == ("run", "nobody")


@pytest.mark.parametrize("path", ["/v1/runs/lm/steps?process=5", "/v1/runs/lm/events?process=5"])
def test_an_unknown_process_is_404_and_named(filled: Served, path: str) -> None:
    answer = filled.client.get(path)
    assert answer.status_code == 404
    assert answer.json()["detail"][0]["field"] == "process"


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/runs?limit=0", "limit"),
        ("/v1/runs?limit=many", "limit"),
        ("/v1/runs?cursor=nonsense", "cursor"),
        ("/v1/runs/no%20spaces", "run"),
        ("/v1/runs/lm/steps?points=1", "points"),
        ("/v1/runs/lm/steps?since=-1", "since"),
        ("/v1/runs/lm/steps?until=99999999999999999999", "until"),
        ("/v1/runs/lm/events?kind=surprise", "kind"),
        ("/v1/runs/lm/events?cursor=bm9uc2Vuc2U", "cursor"),
        ("/v1/runs/lm/parameters?cursor=W10", "cursor"),
        ("/v1/stream?run=no%20spaces", "run"),
    ],
)
def test_a_wrong_parameter_is_422_and_named(filled: Served, path: str, field: str) -> None:
    answer = filled.client.get(path)
    assert answer.status_code == 422, answer.text
    assert [detail["field"] for detail in answer.json()["detail"]] == [field]
    assert all(set(detail) == {"field", "value", "allowed"} for detail in answer.json()["detail"])


def test_a_range_beyond_the_run_is_empty_and_one_that_ends_before_it_begins_is_422(filled: Served) -> None:
    assert filled.get("/v1/runs/lm/steps", since=900, until=901)["columns"]["step"] == []
    assert filled.get("/v1/runs/lm/steps", since=9, until=9)["columns"]["step"] == [9]
    answer = filled.client.get("/v1/runs/lm/steps", params={"since": 9, "until": 3})
    assert answer.status_code == 422
    assert answer.json()["detail"] == [{"field": "until", "value": "3", "allowed": "at least since, 9"}]


def test_a_cursor_of_another_list_is_422_and_says_so(site: Served) -> None:
    """A cursor of another run, filter or list would skip or repeat items."""
    for run in ("one", "two"):
        job = Job(run=run)
        for _ in range(3):
            job.step("skipped_not_finite", "NaN", a=1, b=1)
        site.send(job.report())
    of = {
        path: site.get(path, limit=1)["cursor"]
        for path in ("/v1/runs", "/v1/runs/one/events", "/v1/runs/two/events", "/v1/runs/one/parameters")
    }
    assert all(of.values())
    for path in of:
        for other, cursor in of.items():
            answer = site.client.get(path, params={"cursor": cursor})
            assert answer.status_code == (200 if path == other else 422), (path, other)
    filtered = site.client.get("/v1/runs/one/events", params={"cursor": of["/v1/runs/one/events"], "kind": "skipped"})
    assert filtered.status_code == 422
    (detail,) = filtered.json()["detail"]
    assert detail["field"] == "cursor"
    assert "this list's last answer" in detail["allowed"]


def test_unknown_paths_and_methods_have_the_same_error_form(filled: Served) -> None:
    missing = filled.client.get("/v2/runs")
    assert (missing.status_code, missing.json()["detail"][0]["value"]) == (404, "/v2/runs")
    wrong = filled.client.put("/v1/runs/lm")
    assert (wrong.status_code, wrong.json()["detail"][0]["value"]) == (405, "PUT")


def test_probes_tell_a_live_exporter_from_a_broken_one(site: Served) -> None:
    assert site.get("/-/healthy") == {"status": "healthy"}
    assert site.get("/-/ready") == {"status": "ready"}
    site.ingest.close()
    for path in ("/-/healthy", "/-/ready"):
        answer = site.client.get(path)
        assert answer.status_code == 503
        assert answer.json()["detail"][0]["field"] == "exporter"


def test_an_exporter_that_shuts_down_asks_to_come_back(site: Served) -> None:
    site.send(Job().report())
    site.ingest.close()
    site.store.close()
    answers = [
        site.client.post("/v1/reports", json=Job().report()),
        site.client.delete("/v1/runs/lm"),
        site.client.get("/v1/runs/lm/steps", params={"process": 0}),
        site.client.get("/v1/incidents"),
    ]
    for answer in answers:
        assert answer.status_code == 503, answer.url
        assert int(answer.headers["retry-after"]) > 0
        assert "shutting down" in answer.json()["detail"][0]["allowed"]


class Links(HTMLParser):
    """Every address that a page would load or follow."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.inline: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in {"href", "src"}]
        self.inline += [name for name, _ in attrs if name.startswith("on") or name == "style"]
        self.inline += [tag] if tag == "style" else []


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_page_loads_nothing_from_other_origins_and_has_no_inline_script(filled: Served, path: str) -> None:
    answer = filled.client.get(path)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert answer.headers["cache-control"] == "no-store"
    page = Links()
    page.feed(answer.text)
    assert page.inline == []
    for link in page.found:
        assert re.match(r"(/|#|\.|data:|[a-z])", link), link
        assert not re.match(r"([a-z]+:)?//", link), link


def test_every_file_that_the_page_names_is_served_with_its_type(filled: Served) -> None:
    page = Links()
    page.feed(filled.client.get("/").text)
    local = [link for link in page.found if link.startswith("/page/")]
    assert local
    for link in local:
        answer = filled.client.get(link)
        assert answer.status_code == 200, link
        expected = {".js": "javascript", ".css": "text/css"}.get(Path(link).suffix, "")
        assert expected in answer.headers["content-type"]
        assert answer.headers["cache-control"] == "no-cache"
        assert filled.client.get(link, headers={"if-none-match": answer.headers["etag"]}).status_code == 304


def test_a_browser_learns_of_every_module_and_style_sheet_from_the_document(filled: Served) -> None:
    """No file that a module imports is first named there, and one sheet has the rules of all, in their order."""
    page = Links()
    page.feed(filled.client.get("/").text)
    imported = set()
    for link in page.found:
        if link.endswith(".js"):
            names = re.findall(r'(?:from|import\() ?"(\.[^"]+)"', filled.client.get(link).text)
            imported |= {normpath(f"{dirname(link)}/{name}") for name in names}
    assert {"/page/vocabulary.js", "/page/vendor/uPlot.esm.js"} <= imported <= set(page.found)
    (sheet,) = (link for link in page.found if link.endswith(".css"))
    sheets = re.findall(r'"/page/(.+\.css)"', (PAGE / "index.html").read_text())
    text = filled.client.get(sheet).text
    assert text.endswith("\n".join((PAGE / name).read_text() for name in sheets))
    assert text.startswith((PAGE / "vendor/uPlot.min.css").read_text())


@pytest.mark.parametrize("path", ["/page/main.js", "/page/style.css", "/page/panels/notices.js"])
def test_a_file_of_the_page_is_the_same_with_and_without_compression(filled: Served, path: str) -> None:
    plain = filled.client.get(path, headers={"accept-encoding": "identity"})
    zipped = filled.client.get(path, headers={"accept-encoding": "gzip"})
    assert plain.content == zipped.content
    assert "content-encoding" not in plain.headers
    assert plain.headers["etag"] == zipped.headers["etag"]
    assert filled.client.post(path).status_code == 405


@pytest.mark.parametrize("path", ["/page/../app.py", "/page/%2e%2e/app.py", "/page/..%2fapp.py", "/page//etc/passwd"])
def test_nothing_outside_the_page_is_served(filled: Served, path: str) -> None:
    assert filled.client.get(path).status_code == 404


def test_the_api_page_lists_every_route_and_escapes_what_it_shows(filled: Served) -> None:
    text = filled.client.get("/docs").text
    document = filled.get("/openapi.json")
    for path in document["paths"]:
        assert path.replace("&", "&amp;") in text
    assert "<script" not in text
    assert "^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$" in text


def test_times_come_from_the_exporters_clock(filled: Served) -> None:
    run = filled.get("/v1/runs/lm")
    assert run["first_report"] == run["last_report"] == START + 6
