"""An exporter is drained when a complete scrape has shown the end of every run."""

import socket
import threading
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optwrap_exporter.cli import main as cli
from optwrap_exporter.http.scraped import Scraped
from optwrap_exporter.ingest.group_commit import Committed
from optwrap_exporter.metrics.render import Renderer

from tests.exporter.running import Job, Served, served
from tests.polling import wait_until


def waiting(site: Served, run: str | None = None) -> tuple[list[str], list[str]]:
    answer = site.get("/-/drained", **({} if run is None else {"run": run}))
    assert answer["drained"] is not any((answer["reporting"], answer["unscraped"]))
    return answer["reporting"], answer["unscraped"]


def scrape_until(site: Served, run: str | None = None) -> None:
    """The exporter notes a scrape just after the client has the answer."""
    site.scrape()
    wait_until(lambda: waiting(site, run) == ([], []), 10)


def test_an_exporter_without_runs_is_drained(site: Served) -> None:
    assert waiting(site) == ([], [])


@pytest.mark.parametrize("state", ["finished", "failed", "stopped"])
def test_a_run_that_has_ended_waits_for_a_scrape(site: Served, state: str) -> None:
    job = Job(clock=site.clock)
    site.send(job.report())
    site.scrape()
    assert waiting(site) == (["lm"], [])
    job.step("accepted_not_finite", "NaN", w=1)
    site.send(job.report(state))
    assert waiting(site) == ([], ["lm"])
    assert site.client.head("/metrics").status_code == 200
    assert waiting(site) == ([], ["lm"])
    scrape_until(site)


def test_a_process_that_vanishes_has_ended_when_it_is_stale(site: Served) -> None:
    site.send(Job(clock=site.clock).report())
    site.scrape()
    assert waiting(site) == (["lm"], [])
    site.clock.advance(60)
    site.ingest.tick()
    assert waiting(site) == ([], ["lm"])
    scrape_until(site)


def test_every_process_of_a_run_must_have_ended_and_other_runs_can_be_left_out(site: Served) -> None:
    first, second = (Job(process=index, process_count=2, clock=site.clock) for index in (0, 1))
    site.send(first.report())
    site.send(second.report("finished"))
    site.send(Job("other", clock=site.clock).report())
    assert waiting(site) == (["lm", "other"], [])
    site.send(first.report("finished"))
    assert waiting(site) == (["other"], ["lm"])
    scrape_until(site, "lm")
    assert waiting(site) == (["other"], [])


def test_after_a_restart_a_new_scrape_is_needed(tmp_path: Path) -> None:
    """Nobody knows whether the last one before it was complete."""
    with served(tmp_path) as site:
        site.send(Job(clock=site.clock).report("finished"))
        scrape_until(site)
    with served(tmp_path, site.clock) as again:
        assert waiting(again) == ([], ["lm"])
        scrape_until(again)


def test_a_client_that_hangs_up_has_scraped_nothing(site: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    site.send(Job(clock=site.clock).report("finished"))
    begun, gone, rendered = threading.Event(), threading.Event(), threading.Event()

    def render(*_: object, **__: object) -> bytes:
        begun.set()
        assert gone.wait(30)
        rendered.set()
        return b""

    with monkeypatch.context() as patched:
        patched.setattr(Renderer, "render", render)
        with socket.create_connection(("127.0.0.1", httpx.URL(site.url).port)) as client:
            client.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert begun.wait(30)
        for _ in range(3):  # the exporter sees the end of the connection, and later the end of the scrape
            assert waiting(site) == ([], ["lm"])
        gone.set()
        assert rendered.wait(30)
    for _ in range(3):
        assert waiting(site) == ([], ["lm"])
    scrape_until(site)


class View(NamedTuple):
    """A run that has ended."""

    run: str
    live: int = 0


class Runs:
    """A ledger of such runs."""

    def run_views(self) -> list[View]:
        return [View(run) for run in "abc"]


@given(
    st.lists(
        st.one_of(
            st.sampled_from("abc").map(lambda run: ("commit", run)),
            st.just(("begin", "")),
            st.integers(0, 3).map(lambda index: ("complete", str(index))),
        )
    )
)
def test_a_run_is_scraped_if_a_complete_scrape_began_after_its_last_change(steps: list[tuple[str, str]]) -> None:
    """Scrapes overlap each other and commits, and may complete in any order, or never."""
    scraped = Scraped(Runs())  # type: ignore[arg-type]  # only run_views is used
    revision = 0
    last = dict.fromkeys("abc", 0)
    begun: list[int] = []
    best: int | None = None
    for what, which in steps:
        if what == "commit":
            revision += 1
            last[which] = revision
            scraped.committed(Committed(revision, frozenset(which)))
        elif what == "begin":
            begun.append(scraped.revision)
            assert begun[-1] == revision
        elif int(which) < len(begun):
            one = begun.pop(int(which))
            scraped.complete(one)
            best = one if best is None else max(best, one)
        missing = [run for run in "abc" if best is None or last[run] > best]
        assert scraped.missing().unscraped == missing


def test_drain_exits_with_what_it_found(site: Served, capsys: pytest.CaptureFixture[str]) -> None:
    def drain(*options: str) -> tuple[int, str]:
        code = cli.run(["drain", site.url, "--timeout", "0.01", *options])
        return code, capsys.readouterr().err

    assert drain() == (0, "")
    site.send(Job("trains", clock=site.clock).report())
    site.send(Job("gave-up", clock=site.clock).report("failed"))
    code, said = drain()
    assert code == 1
    assert said == (
        f"{site.url} is not drained after 0.01 s: still reporting: trains; ended, but not scraped since: gave-up\n"
    )
    assert drain("--run", "trains")[0] == 1
    scrape_until(site, "gave-up")
    assert drain("--run", "gave-up") == (0, "")
    code, said = drain("--run", "unknown")
    assert code == 2
    assert "no run 'unknown'" in said


def test_an_unknown_parameter_is_refused(site: Served) -> None:
    answer = httpx.get(f"{site.url}/-/drained?Run=lm", trust_env=False)
    assert answer.status_code == 422
    assert answer.json()["detail"] == [{"field": "Run", "value": "lm", "allowed": "only the parameters run"}]


def test_drain_of_no_exporter_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["drain", "http://127.0.0.1:1"]) == 2
    assert "no exporter answers" in capsys.readouterr().err
