"""The OpenAPI document is current and complete, and every answer is as it says."""

import contextlib
import re
from collections import Counter
from pathlib import Path
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from optwrap_exporter.http import openapi
from optwrap_exporter.wire.vocabulary import EVENT_KINDS, HEALTHS
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from tests.exporter.running import Job, Served

ROOT = Path(__file__).parents[2]


def test_the_committed_openapi_document_is_current() -> None:
    committed = (ROOT / "service" / "openapi.json").read_text()
    assert committed == openapi.text(), "run python -m optwrap_exporter.http.openapi > service/openapi.json"


def test_the_document_has_every_route_of_the_contract() -> None:
    assert set(openapi.document()["paths"]) == {
        "/v1/reports",
        "/v1/runs",
        "/v1/runs/{run}",
        "/v1/runs/{run}/steps",
        "/v1/runs/{run}/series",
        "/v1/runs/{run}/events",
        "/v1/runs/{run}/incidents",
        "/v1/runs/{run}/archive",
        "/v1/runs/{run}/restore",
        "/v1/events",
        "/v1/incidents",
        "/v1/incidents/{incident}/acknowledge",
        "/v1/runs/{run}/parameters",
        "/v1/stream",
        "/metrics",
        "/-/healthy",
        "/-/ready",
        "/-/drained",
    }


def test_the_documentation_has_every_route() -> None:
    text = (ROOT / "docs" / "reference" / "exporter.md").read_text()
    for path in (*openapi.document()["paths"], "/", "/page/", "/docs", "/openapi.json"):
        assert re.search(rf"[`, ]{re.escape(path)}\b|[`, ]{re.escape(path)}[`.]", text), path


def test_every_error_in_the_document_has_the_same_schema() -> None:
    for path, operations in openapi.document()["paths"].items():
        for operation in operations.values():
            for status, answer in operation["responses"].items():
                if status.startswith(("4", "5")):
                    schema = answer["content"]["application/json"]["schema"]
                    # The latter is the same with one field more.
                    assert schema["$ref"].rpartition("/")[2] in {"ErrorBody", "UnhealthyBody"}, (path, status)


def test_the_document_lists_every_health_and_event_kind() -> None:
    schemas = openapi.document()["components"]["schemas"]
    assert schemas["RunDetail"]["properties"]["health"]["enum"] == list(HEALTHS)
    assert schemas["Event"]["properties"]["kind"]["enum"] == list(EVENT_KINDS)


# That totals add up, and that a cursor is one this list gave, is beyond what a schema can say.
BEYOND = [positive_data_acceptance]
QUICK = settings(
    max_examples=6,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def test_any_request_is_answered_as_the_document_says(site: Served) -> None:
    """Generated requests, valid and invalid, get no 5xx and no answer that the document does not have."""
    job = Job(run="0", clock=site.clock)
    job.step("skipped_not_finite", "NaN", w=1)
    site.send(job.report())
    document = site.get("/openapi.json")
    asked = 0
    operations: Any = schemathesis.openapi.from_dict(document).get_all_operations()
    for found in operations:
        operation = found.ok()
        if operation.path == "/v1/stream":
            continue  # has no end to wait for: the next test
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):

            @QUICK
            @given(case=operation.as_strategy(generation_mode=mode))
            def ask(case: Any) -> None:
                nonlocal asked
                asked += 1
                case.call_and_validate(base_url=site.url, excluded_checks=BEYOND)

            with contextlib.suppress(Unsatisfiable):  # a route without parameters cannot be asked wrongly
                ask()
    assert asked > 100


def test_any_request_for_a_stream_is_answered_as_the_document_says(site: Served) -> None:
    """A stream begins, with the promised type and a first message; or the request is refused in the one form."""
    site.send(Job(run="0", clock=site.clock).report())
    document = site.get("/openapi.json")
    answers = document["paths"]["/v1/stream"]["get"]["responses"]
    operation = schemathesis.openapi.from_dict(document)["/v1/stream"]["GET"]
    seen: Counter[int] = Counter()
    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):

        @settings(QUICK, max_examples=50)
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask(case: Any) -> None:
            headers = {name: str(value) for name, value in (case.headers or {}).items()}
            with site.client.stream("GET", "/v1/stream", params=case.query, headers=headers) as answer:
                seen[answer.status_code] += 1
                content = answers[str(answer.status_code)]["content"]
                assert answer.headers["content-type"].partition(";")[0] in content
                if answer.status_code == 200:
                    assert next(answer.iter_lines()).startswith(("id: ", ": from revision"))
                else:
                    answer.read()
                    assert set(answer.json()) == {"detail"}

        ask()
    assert seen[200] > 20
    assert seen[422] > 5
