"""What holds for every route of the API: unknown parameters, HEAD, compression."""

import gzip

import httpx
import pytest

from tests.exporter.running import Job, Served


@pytest.fixture(scope="module")
def filled(shared: Served) -> Served:
    """A site with one run of 200 bad steps; for reading."""
    job = Job(clock=shared.clock)
    for _ in range(200):
        job.step("skipped_not_finite", "NaN", layer__w=7)
    shared.send(job.report())
    return shared


LISTS = ["/v1/runs", "/v1/runs/lm", "/v1/runs/lm/steps", "/v1/runs/lm/events", "/v1/runs/lm/parameters", "/v1/stream"]


@pytest.mark.parametrize("path", LISTS)
def test_an_unknown_parameter_is_refused_and_named(filled: Served, path: str) -> None:
    answer = filled.client.get(path, params={"verdict": "bad"})
    assert answer.status_code == 422
    (found,) = answer.json()["detail"]
    assert (found["field"], found["value"]) == ("verdict", "bad")
    assert found["allowed"].startswith(("only the parameters ", "no parameter"))


def test_a_parameter_that_takes_one_value_is_refused_twice(filled: Served) -> None:
    answer = filled.client.get("/v1/runs?limit=1&limit=2")
    assert answer.status_code == 422
    assert answer.json()["detail"] == [{"field": "limit", "value": "1", "allowed": "this parameter once"}]


@pytest.mark.parametrize(
    "path", ["/", "/docs", "/openapi.json", "/metrics", "/-/healthy", "/-/ready", "/page/main.js", *LISTS[:-1]]
)
def test_head_is_get_without_a_body(filled: Served, path: str) -> None:
    plain = {"accept-encoding": "identity"}
    head, full = filled.client.head(path, headers=plain), filled.client.get(path, headers=plain)
    assert head.status_code == full.status_code == 200
    assert head.content == b""
    if path != "/metrics":  # its figures about itself change
        assert head.headers["content-length"] == full.headers["content-length"] == str(len(full.content))
    assert head.headers["content-type"] == full.headers["content-type"]


def test_head_of_a_stream_ends(filled: Served) -> None:
    answer = filled.client.head("/v1/stream", timeout=5)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")


def test_head_of_what_is_not_there_is_404(filled: Served) -> None:
    assert filled.client.head("/v1/runs/none").status_code == 404
    assert filled.client.head("/v1/reports").status_code == 405


def test_another_method_is_told_what_is_allowed(filled: Served) -> None:
    answer = filled.client.put("/v1/runs/lm/steps")
    assert answer.status_code == 405
    assert answer.headers["allow"] == answer.json()["detail"][0]["allowed"] == "GET, HEAD"


def test_a_long_answer_is_compressed_and_a_short_one_is_not(filled: Served) -> None:
    with httpx.Client(base_url=filled.url, trust_env=False) as client:
        plain = client.get("/v1/runs/lm/steps", headers={"accept-encoding": "identity"})
        assert "content-encoding" not in plain.headers
        assert len(plain.content) > 1024
        with client.stream("GET", "/v1/runs/lm/steps", headers={"accept-encoding": "gzip"}) as packed:
            raw = b"".join(packed.iter_raw())
        assert packed.headers["content-encoding"] == "gzip"
        assert "Accept-Encoding" in packed.headers["vary"]
        assert gzip.decompress(raw) == plain.content
        assert len(raw) < len(plain.content) / 3
        assert "content-encoding" not in client.get("/-/ready", headers={"accept-encoding": "gzip"}).headers


def test_a_stream_is_not_compressed(filled: Served) -> None:
    headers = {"accept-encoding": "gzip"}
    with filled.client.stream("GET", "/v1/stream", params={"run": "lm"}, headers=headers) as answer:
        assert "content-encoding" not in answer.headers
        assert next(answer.iter_lines()).startswith(("id: ", ": from revision"))
