"""The settings of a Monitor: its arguments and the environment."""

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optwrap._monitor.monitor import Monitor
from optwrap._monitor.settings import DEFAULT_ENDPOINT, Settings, resolve
from optwrap._monitor.thread import Parts
from tests.optwrap.monitoring import StubExporter, log_lines


def settings(environ: dict[str, str] | None = None, /, **arguments: Any) -> Settings:
    found = resolve(environ or {}, **{"run": "r", **arguments})
    assert found is not None
    return found


def test_by_default_the_exporter_is_on_this_host() -> None:
    """The run's name is the only setting needed."""
    found = settings()
    assert (found.endpoint.text, found.process, found.attempt, found.token_file, found.interval) == (
        DEFAULT_ENDPOINT,
        None,
        None,
        None,
        1.0,
    )
    assert (found.endpoint.host, found.endpoint.port, found.endpoint.socket_path) == ("127.0.0.1", 10425, None)


def test_a_variable_sets_what_no_argument_does() -> None:
    """An argument overrides its variable; an empty variable counts as absent."""
    environ = {
        "OPTWRAP_RUN": "from-environment",
        "OPTWRAP_ENDPOINT": "unix:///run/optwrap.sock",
        "OPTWRAP_ATTEMPT": "third",
        "OPTWRAP_TOKEN_FILE": "/run/secrets/token",
        "OPTWRAP_CA_FILE": "/run/secrets/ca",
    }
    found = resolve(environ)
    assert found is not None
    assert (found.run, found.endpoint.socket_path, found.attempt, found.token_file) == (
        "from-environment",
        "/run/optwrap.sock",
        "third",
        "/run/secrets/token",
    )
    assert found.endpoint.ca_file == "/run/secrets/ca"
    overridden = resolve(environ, run="argument", endpoint="https://[::1]:80/x", attempt="fourth")
    assert overridden is not None
    assert overridden.endpoint.secure
    assert (overridden.run, overridden.endpoint.host, overridden.endpoint.prefix, overridden.attempt) == (
        "argument",
        "::1",
        "/x",
        "fourth",
    )
    assert settings(dict.fromkeys(environ, "")) == settings()


@pytest.mark.parametrize("how", ["argument", "variable"])
def test_off_turns_everything_off(how: str) -> None:
    """No thread, no name needed, no report; every method can still be called."""
    environ = {"OPTWRAP_ENDPOINT": "off"} if how == "variable" else {}
    with Monitor(endpoint="off" if how == "argument" else None, _parts=Parts(environ=environ)) as monitor:
        monitor.observe(None)
        assert monitor.flush()
        assert repr(monitor) == "Monitor(off)"
        assert monitor._lifecycle.worker is None
    monitor.observe(None)


SLURM = {"SLURM_JOB_ID": "4711"}


@pytest.mark.parametrize(
    ("environ", "attempt"),
    [
        (SLURM, "slurm-4711-0"),
        ({**SLURM, "SLURM_RESTART_COUNT": "2", "SLURM_STEP_ID": "1", "SLURM_PROCID": "7"}, "slurm-4711-2-1"),
        ({**SLURM, "OPTWRAP_ATTEMPT": "mine"}, "mine"),
        ({"SLURM_JOB_ID": "not a name"}, None),
        ({"SLURM_RESTART_COUNT": "2"}, None),
    ],
)
def test_slurm_names_the_attempt(environ: dict[str, str], attempt: str | None) -> None:
    """The same in all processes of a launch, another one after a requeue; OPTWRAP_ATTEMPT overrides it."""
    assert settings(environ).attempt == attempt


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("run", bad) for bad in ("", " ", "-x", ".x", "a b", "a/b", "x" * 129, "é", "a\n", 7, b"x")],
        *[("attempt", bad) for bad in ("", "a b", "x" * 129, 7, "a\n")],
        *[
            ("endpoint", bad)
            for bad in (
                "",
                "127.0.0.1:10425",
                "http://",
                "http://host",
                "http://host:x",
                "http://host:70000",
                "http://host:0",
                "https://host",
                "http://user@host:1",
                "http://host:1/?a",
                "http://host:1/#a",
                "http://ho st:1",
                "http://host:1/a b",
                "ftp://host:1",
                "unix://relative",
                "unix://",
                "unix:///" + "x" * 200,
                "OFF",
                7,
            )
        ],
        *[("process", bad) for bad in (-1, 65_536, 1.0, "0", True, math.nan)],
        *[("interval", bad) for bad in (0, -1, 3601, math.nan, math.inf, "1", True, None)],
        *[(file, bad) for file in ("token_file", "ca_file") for bad in (7, True, b"path")],
    ],
)
def test_a_wrong_argument_raises_with_its_name_its_value_and_what_is_allowed(name: str, value: Any) -> None:
    """When the Monitor is made."""
    with pytest.raises(ValueError, match=rf"(?s)^{name}\b.*allowed: ") as raised:
        settings(**{name: value})
    assert repr(value) in str(raised.value)
    with pytest.raises(ValueError, match=name):
        Monitor(**{"run": "r", name: value}, _parts=Parts(environ={}))


@pytest.mark.parametrize("name", ["run", "endpoint", "attempt"])
def test_a_wrong_variable_raises_with_the_name_of_the_variable(name: str) -> None:
    variable = f"OPTWRAP_{name.upper()}"
    with pytest.raises(ValueError, match=rf"^{variable} \(or the argument {name}\): got 'a \?' *"):
        resolve({"OPTWRAP_RUN": "r", variable: "a ?"})


def test_without_a_run_the_message_says_how_to_name_one() -> None:
    """By argument or variable; and how to turn reporting off."""
    with pytest.raises(ValueError, match=r"OPTWRAP_RUN \(or the argument run\): got nothing.*OPTWRAP_ENDPOINT=off"):
        resolve({})


@pytest.mark.parametrize("content", [None, "", " \n", "two words", "t\u00f6ken", "x" * 5000])
def test_a_token_file_without_a_token_is_one_line_in_the_log_and_may_come_later(
    stub: StubExporter, tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str | None
) -> None:
    """Its content may be secret and is not in the log. Reports go without a token until it is there."""
    file = tmp_path / "token"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    with Monitor("r", stub.endpoint, 0, token_file=file, _parts=Parts(environ={})) as monitor:
        (line,) = log_lines(caplog)
        assert f"cannot read the token file {file}" in line
        assert ("No such file" if content is None else "one word of at most 4096 printable ASCII characters") in line
        assert not (content and content.strip()) or content not in line
        assert monitor.flush(30)
        file.write_text("secret")
    tokens = [headers.get("Authorization") for _, headers, _ in stub.requests]
    assert (tokens[0], tokens[-1]) == (None, "Bearer secret")
    assert len(log_lines(caplog)) == 1


def test_numpy_numbers_are_accepted() -> None:
    """Many programs have their process index as one."""
    found = settings(process=np.int64(3), interval=np.float64(0.5))
    assert (found.process, found.interval) == (3, 0.5)
    assert type(found.process) is int


def test_a_token_file_may_be_a_path(tmp_path: Path) -> None:
    """A str or a Path."""
    file = tmp_path / "token"
    assert settings(token_file=file).token_file == settings(token_file=os.fspath(file)).token_file == str(file)
