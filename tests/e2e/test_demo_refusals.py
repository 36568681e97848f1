"""What the demo refuses, and how: one line that names what is wrong."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from examples.demo.options import parse
from tests.e2e.demos import REPOSITORY, assert_one_line_says, demo

pytestmark = pytest.mark.timeout(240)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--bogus"], ["--bogus"]),
        (["--steps", "0"], ["--steps", "'0'"]),
        (["--seed", "-1"], ["--seed"]),
        (["--emit", "smoke"], ["--emit", "'smoke'", "callback"]),
        (["--listen", "0.0.0.0:10425"], ["--listen", "'0.0.0.0:10425'", "loopback"]),
        (["--listen", "127.0.0.1:99999"], ["--listen", "'127.0.0.1:99999'"]),
        (["--endpoint", "http://127.0.0.1:1", "--data-dir", "x"], ["--data-dir", "--endpoint"]),
        (["--endpoint", "http://127.0.0.1:1", "--hold"], ["--hold", "--endpoint"]),
    ],
)
def test_a_wrong_argument_is_one_line_that_names_it(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        parse(arguments)
    output, errors = capsys.readouterr()
    assert_one_line_says(subprocess.CompletedProcess(arguments, int(exit_.value.code or 0), output, errors), *words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--endpoint", "gopher://hole"], ["gopher://hole", "http://HOST:PORT"]),
        (["--endpoint", "http://127.0.0.1:1", "--run", "a b"], ["run", "'a b'"]),
    ],
)
def test_what_the_monitor_refuses_is_one_line(arguments: list[str], words: list[str]) -> None:
    assert_one_line_says(demo(*arguments), *words)


def test_a_port_in_use_is_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        assert_one_line_says(demo("--listen", listen), listen, "in use", "--listen")


def test_a_data_directory_that_cannot_be_one_is_one_line(tmp_path: Path) -> None:
    """A file in its place: the super-user, too, is refused there."""
    place = tmp_path / "file"
    place.write_text("")
    assert_one_line_says(demo("--listen", "127.0.0.1:0", "--data-dir", str(place)), "--data-dir", str(place))


def test_without_jax_it_says_what_lacks() -> None:
    without = "import runpy, sys; sys.modules['jax'] = None; runpy.run_module('examples.demo', run_name='__main__')"
    ran = subprocess.run(
        [sys.executable, "-c", without], cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False
    )
    assert_one_line_says(ran, "jax", "make setup")
