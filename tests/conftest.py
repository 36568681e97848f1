"""What tests of every part share: programs that have to be there, and a real exporter in a process of its own."""

import itertools
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.compiling import compile_quickly, drop_programs
from tests.polling import wait_until
from tests.programs import located
from tests.thinning import thinned


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--thorough", action="store_true", help="every case of the tests over large tables")
    parser.addoption("--sample", type=int, default=1, metavar="N", help="one in N of the cases that would run")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "thin(n): without --thorough, one in n of the test's cases runs")
    if not config.getoption("thorough"):
        compile_quickly()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out cases of long tables, unless they were asked for: by --thorough, or as the few of a selection."""
    if config.getoption("thorough") or config.getoption("keyword") or any("::" in arg for arg in config.args):
        return
    stay, left_out = thinned(items, config.getoption("sample"))
    items[:] = stay
    config.hook.pytest_deselected(items=left_out)


_tests_run = itertools.count(1)


def pytest_runtest_teardown() -> None:
    if next(_tests_run) % 20 == 0:  # to count memory maps takes some milliseconds
        drop_programs()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """`@pytest.mark.programs(...)`: skip where a program lacks; in CI, where set-up installs them all, fail."""
    for marker in item.iter_markers("programs"):
        missing = [name for name in marker.args if located(name) is None]
        if not missing:
            continue
        reason = f"not on PATH: {', '.join(missing)} (.ci/run installs them)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)


class RunningExporter:
    """`python -m optwrap_exporter` on a free port of 127.0.0.1, which it keeps over restarts.

    Args:
      data_dir: its data directory; the log is beside it.
      options: further options.
      listen: where it listens.
      files: the most files that it may open; None leaves the limit as it is.
    """

    def __init__(self, data_dir: Path, *options: str, listen: str = "127.0.0.1:0", files: int | None = None) -> None:
        self.data_dir = data_dir
        self.options = options
        self.url = ""
        self._listen = listen
        self._limited = () if files is None else ("sh", "-c", 'ulimit -n "$0" && exec "$@"', str(files))
        self._process: subprocess.Popen[bytes] | None = None
        self._log = data_dir.with_name(data_dir.name + ".log")
        self.start()

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "the exporter has been stopped"
        return self._process

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        """What it has written to standard error, all its starts together."""
        return self._log.read_text()

    def start(self) -> None:
        """Start it and wait until it is ready."""
        assert self._process is None, "it runs already"
        before = len(self.log) if self._log.exists() else 0
        environment = {name: value for name, value in os.environ.items() if not name.startswith("OPTWRAP_")}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *self._limited,
                    *(sys.executable, "-m", "optwrap_exporter", "--listen", self._listen),
                    *("--data-dir", str(self.data_dir), *self.options),
                ],
                stdout=subprocess.DEVNULL,
                stderr=log,
                env=environment,
            )

        def listening() -> re.Match[str] | None:
            found = re.search(r"listening on (http://\S+:(\d+))", self.log[before:])
            assert found or self.process.poll() is None, f"the exporter did not start: {self.log[before:]}"
            return found

        try:
            said = wait_until(listening, problem=lambda: self.log[before:])
        except BaseException:
            self.stop()
            raise
        self.url = said[1]
        self._listen = f"{self._listen.rpartition(':')[0]}:{said[2]}"
        assert httpx.get(f"{self.url}/-/ready", trust_env=False).status_code == 200

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send it a signal and wait for its end; its exit status. Nothing where it is stopped already."""
        if self._process is None:
            return 0
        process, self._process = self._process, None
        process.send_signal(number)
        try:
            return process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise

    def kill9(self) -> None:
        """End it as a crash of the machine's memory killer would: no time to write anything."""
        self.stop(signal.SIGKILL)

    def restart(self) -> None:
        """Stop it if it runs, and start it again on the same port and directory."""
        self.stop()
        self.start()


@pytest.fixture
def start_exporter(tmp_path: Path) -> Iterator[Callable[..., RunningExporter]]:
    """Starts exporters with further options, each on a directory of its own; ends them after the test."""
    started: list[RunningExporter] = []

    def start(
        *options: str, listen: str = "127.0.0.1:0", data_dir: Path | None = None, files: int | None = None
    ) -> RunningExporter:
        directory = data_dir or tmp_path / f"exporter-{len(started)}"
        started.append(RunningExporter(directory, *options, listen=listen, files=files))
        return started[-1]

    yield start
    for exporter in started:
        exporter.stop()


@pytest.fixture
def exporter(start_exporter: Callable[..., RunningExporter]) -> RunningExporter:
    """A real exporter: `url`, `pid`, `data_dir`, `log`, `stop()`, `kill9()`, `restart()`."""
    return start_exporter()
