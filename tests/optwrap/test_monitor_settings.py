"""What a Monitor may be told, by arguments and by the environment."""

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optwrap._monitor.monitor import Monitor, Parts
from optwrap._monitor.settings import DEFAULT_ENDPOINT, Settings, resolve


def settings(environ: dict[str, str] | None = None, /, **arguments: Any) -> Settings:
    found = resolve(environ or {}, **{"run": "r", **arguments})
    assert found is not None
    return found


def test_by_default_the_exporter_is_on_this_host() -> None:
    """One argument is enough."""
    found = settings()
    assert (found.endpoint.text, found.process, found.attempt, found.token_file, found.interval) == (
        DEFAULT_ENDPOINT,
        None,
        None,
        None,
        1.0,
    )
    assert (found.endpoint.host, found.endpoint.port, found.endpoint.socket_path) == ("127.0.0.1", 10425, None)


def test_the_environment_says_what_arguments_do_not(tmp_path: Path) -> None:
    """And an argument beats its variable; an empty variable is as good as none."""
    (tmp_path / "token").write_text("secret")
    environ = {
        "OPTWRAP_RUN": "from-environment",
        "OPTWRAP_ENDPOINT": "unix:///run/optwrap.sock",
        "OPTWRAP_ATTEMPT": "third",
        "OPTWRAP_TOKEN_FILE": str(tmp_path / "token"),
    }
    found = resolve(environ)
    assert found is not None
    assert (found.run, found.endpoint.socket_path, found.attempt, found.token_file) == (
        "from-environment",
        "/run/optwrap.sock",
        "third",
        str(tmp_path / "token"),
    )
    beaten = resolve(environ, run="argument", endpoint="http://[::1]:80/x", attempt="fourth")
    assert beaten is not None
    assert (beaten.run, beaten.endpoint.host, beaten.endpoint.prefix, beaten.attempt) == (
        "argument",
        "::1",
        "/x",
        "fourth",
    )
    assert settings(dict.fromkeys(environ, "")) == settings()


@pytest.mark.parametrize("how", ["argument", "variable"])
def test_off_is_off(how: str) -> None:
    """No thread and no name, no report; everything can be called all the same."""
    environ = {"OPTWRAP_ENDPOINT": "off"} if how == "variable" else {}
    with Monitor(endpoint="off" if how == "argument" else None, _parts=Parts(environ=environ)) as monitor:
        monitor.observe(None)
        assert monitor.flush()
        assert repr(monitor) == "Monitor(off)"
        assert monitor._work is None
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
def test_slurm_says_what_the_launch_is_called(environ: dict[str, str], attempt: str | None) -> None:
    """The same in all processes of a launch, another after a requeue, unless it is said otherwise."""
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
                "https://host:1",
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
        *[("token_file", bad) for bad in ("/nowhere/at/all", 7)],
    ],
)
def test_a_wrong_argument_is_refused_by_name_with_its_value_and_what_is_allowed(name: str, value: Any) -> None:
    """At construction, before anything is started."""
    with pytest.raises(ValueError, match=rf"(?s)^{name}\b.*allowed: ") as raised:
        settings(**{name: value})
    assert repr(value) in str(raised.value)
    with pytest.raises(ValueError, match=name):
        Monitor(**{"run": "r", name: value}, _parts=Parts(environ={}))


@pytest.mark.parametrize("name", ["run", "endpoint", "attempt", "token_file"])
def test_a_wrong_variable_is_refused_by_its_own_name(name: str) -> None:
    """Whoever set it can search for it."""
    variable = f"OPTWRAP_{name.upper()}"
    with pytest.raises(ValueError, match=rf"^{variable} \(or the argument {name}\): got 'a \?' *"):
        resolve({"OPTWRAP_RUN": "r", variable: "a ?"})


def test_a_missing_run_is_said_to_be_missing() -> None:
    """With both ways to give one, and the way to do without."""
    with pytest.raises(ValueError, match=r"OPTWRAP_RUN \(or the argument run\): got nothing.*OPTWRAP_ENDPOINT=off"):
        resolve({})


@pytest.mark.parametrize("content", ["", " \n", "two words", "t\u00f6ken", "x" * 5000])
def test_a_file_that_holds_no_token_is_refused_and_not_quoted(tmp_path: Path, content: str) -> None:
    """What is in it may be a secret all the same."""
    file = tmp_path / "token"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"token_file.*one word of at most 4096 printable ASCII characters") as raised:
        settings(token_file=file)
    assert not content.strip() or content not in str(raised.value)


def test_numbers_of_numpy_are_numbers() -> None:
    """As a process index comes out of many programs."""
    found = settings(process=np.int64(3), interval=np.float64(0.5))
    assert (found.process, found.interval) == (3, 0.5)
    assert type(found.process) is int


def test_a_token_file_may_be_a_path(tmp_path: Path) -> None:
    """Of either kind."""
    file = tmp_path / "token"
    file.write_text("secret\n")
    assert settings(token_file=file).token_file == settings(token_file=os.fspath(file)).token_file == str(file)
