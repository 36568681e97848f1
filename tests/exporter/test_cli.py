"""The command line: options, their environment variables, and one line for every failure."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import httpx
import pytest
from optwrap_exporter.cli import main as cli
from optwrap_exporter.http import app
from optwrap_exporter.settings import Address, Settings

from tests.conftest import RunningExporter

Start = Callable[..., RunningExporter]


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("OPTWRAP_ENDPOINT", "OPTWRAP_EXPORTER_LISTEN", "OPTWRAP_EXPORTER_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    # Python's logging outlives the test, and the standard error that it would write to does not.
    monkeypatch.setattr(app, "configure_logging", lambda _: None)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """The settings that would be served."""
    kept: list[Settings] = []
    monkeypatch.setattr(app, "serve", kept.append)
    return kept


def test_the_defaults_are_loopback_and_the_xdg_state_directory(told: list[Settings], tmp_path: Path) -> None:
    assert cli.run([]) == 0
    (settings,) = told
    assert settings.listen == (Address("127.0.0.1", 10425),)
    assert settings.data_dir == tmp_path / "state" / "optwrap-exporter"
    assert settings.retention_days == 30
    assert settings.retention_bytes == 1 << 30
    assert settings.token is None
    assert settings.ingest_socket is None


def test_every_option_reaches_the_settings(told: list[Settings], tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("hush\n")
    arguments = [
        "--listen",
        "[::]:0",
        "--listen",
        "127.0.0.1:1, [::1]:2",
        "--data-dir",
        f"{tmp_path}/d",
        "--ingest-socket",
        f"{tmp_path}/s",
        "--token-file",
    ]
    arguments += [
        str(token),
        "--retention-days",
        "1.5",
        "--retention-bytes",
        "2MiB",
        "--log-level",
        "debug",
        "--scope",
        "job",
    ]
    arguments += ["--announce", f"{tmp_path}/a.json", "--ingest-socket-mode", "666", "--ingest-socket-group", "7"]
    arguments += ["--event-log", "-", "--webhook", "https://hooks.example/a?b=c"]
    arguments += ["--allowed-host", "A.example", "--allowed-host", "fd00::1"]
    assert cli.run(arguments) == 0
    assert told == [
        Settings(
            listen=(Address("::", 0), Address("127.0.0.1", 1), Address("::1", 2)),
            data_dir=tmp_path / "d",
            ingest_socket=tmp_path / "s",
            ingest_socket_mode=0o666,
            ingest_socket_group=7,
            token="hush",
            retention_days=1.5,
            retention_bytes=2 << 20,
            allowed_hosts=("a.example", "fd00::1"),
            log_level="debug",
            announce=tmp_path / "a.json",
            event_log="-",
            webhook="https://hooks.example/a?b=c",
            scope="job",
        )
    ]


def test_every_option_can_come_from_the_environment(
    told: list[Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text("hush")
    given = {
        "LISTEN": "0.0.0.0:1,127.0.0.1:2 127.0.0.1:3",
        "DATA_DIR": f"{tmp_path}/d",
        "INGEST_SOCKET": f"{tmp_path}/s",
        "INGEST_SOCKET_MODE": "0660",
        "INGEST_SOCKET_GROUP": "root",
        "TOKEN_FILE": f"{tmp_path}/token",
        "RETENTION_DAYS": "3",
        "RETENTION_BYTES": "1GB",
        "ALLOWED_HOST": "a.example b.example",
        "LOG_LEVEL": "error",
        "GRAFANA_URL": "https://grafana.example/sub/",
        "NEW_RUNS_PER_MINUTE": "7",
        "RECOVER": "1",
        "ANNOUNCE": f"{tmp_path}/a.json",
        "EVENT_LOG": f"{tmp_path}/events",
        "WEBHOOK": "http://h",
        "SCOPE": "job",
    }
    options = [param for param in cli.main.params if isinstance(param, click.Option) and param.name != "version"]
    assert len(given) == len(options), "an option has no environment variable in this test"
    for name, value in given.items():
        monkeypatch.setenv(f"OPTWRAP_EXPORTER_{name}", value)
    assert cli.run([]) == 0
    assert told == [
        Settings(
            listen=(Address("0.0.0.0", 1), Address("127.0.0.1", 2), Address("127.0.0.1", 3)),
            data_dir=tmp_path / "d",
            ingest_socket=tmp_path / "s",
            ingest_socket_mode=0o660,
            ingest_socket_group=0,
            token="hush",
            retention_days=3,
            retention_bytes=10**9,
            allowed_hosts=("a.example", "b.example"),
            log_level="error",
            grafana_url="https://grafana.example/sub",
            new_runs_per_minute=7,
            recover=True,
            announce=tmp_path / "a.json",
            event_log=f"{tmp_path}/events",
            webhook="http://h",
            scope="job",
        )
    ]


def failure(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.run(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("optwrap-exporter: ")
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    return err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--lisen", "x"], "--lisen"),
        (["sttus"], "sttus"),
        (["--listen", "10425"], "'10425' is not host:port"),
        (["--listen", "127.0.0.1:99999"], "99999"),
        (["--listen", "127.0.0.1:0,"], "'' is not host:port"),
        (["--retention-days", "0"], "--retention-days"),
        (["--retention-days", "nan"], "--retention-days"),
        (["--retention-bytes", "lots"], "'lots' is not a size"),
        (["--token-file", "/nonexistent/token"], "No such file"),
        (["--token-file", "/dev/null"], "one token"),
        (["--allowed-host", "http://x"], "is not a host name"),
        (["--log-level", "loud"], "loud"),
        (["--ingest-socket-mode", "0660"], "--ingest-socket-mode needs --ingest-socket"),
        (["--ingest-socket-mode", "0460"], "'0460' is not an octal mode"),
        (["--ingest-socket-mode", "4660"], "'4660' is not an octal mode"),
        (["--ingest-socket-mode", "rw"], "'rw' is not an octal mode"),
        (["--ingest-socket-group", "no such"], "'no such' is not the name of a group"),
        (["--announce", "targets"], "'targets' does not end in .json"),
        (["--webhook", "hooks.example"], "is not a URL such as https://hooks"),
        (["--event-log", "/nonexistent/events"], "--event-log /nonexistent/events: No such file"),
        (["--announce", "/nonexistent/a.json"], "--announce /nonexistent/a.json: No such file"),
        (["--data-dir", "/proc/nope/x"], "/proc/nope/x"),
        (["--data-dir", "/dev/null"], "/dev/null: not a directory"),
        (["--ingest-socket", "/proc/nope/x"], "/proc/nope/x"),
        (["status", "http://127.0.0.1:1"], "no exporter answers at http://127.0.0.1:1"),
        (["status", "unix:///nonexistent/socket"], "no exporter answers"),
        (["status", "127.0.0.1:10425"], "is not an exporter's URL"),
        (["status", "http://127.0.0.1:port"], "is not an exporter's URL"),
        (["watch", "http://127.0.0.1:1"], "no exporter answers"),
        (["watch", "--interval", "0"], "--interval"),
        (["forget", "x", "--data-dir", "/nonexistent"], "/nonexistent"),
        (["forget"], "RUN"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_failure_is_one_line_with_the_wrong_value(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if arguments[0].startswith("--") and "--listen" not in arguments:
        arguments = ["--listen", "127.0.0.1:0", *arguments]
    assert said in failure(capsys, *arguments)


def test_a_port_in_use_is_one_line(
    exporter: RunningExporter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = exporter.url.removeprefix("http://")
    said = failure(capsys, "--listen", address, "--data-dir", str(tmp_path / "other"))
    assert address in said
    assert "in use" in said
    assert httpx.get(f"{exporter.url}/-/healthy", trust_env=False).status_code == 200


def test_a_second_exporter_on_one_directory_is_refused(
    exporter: RunningExporter, capsys: pytest.CaptureFixture[str]
) -> None:
    said = failure(capsys, "--listen", "127.0.0.1:0", "--data-dir", str(exporter.data_dir))
    assert str(exporter.data_dir) in said
    assert httpx.get(f"{exporter.url}/-/healthy", trust_env=False).status_code == 200


def test_help_and_version_exit_with_success() -> None:
    for arguments in (["--help"], ["-h"], ["--version"], *([name, "--help"] for name in cli.main.commands)):
        assert cli.run(arguments) == 0


def test_the_script_and_python_m_are_the_same_program() -> None:
    script = Path(sys.executable).with_name("optwrap-exporter")
    module = [sys.executable, "-m", "optwrap_exporter"]
    said = {subprocess.run([*way, "--version"], capture_output=True, check=True).stdout for way in ([script], module)}
    assert len(said) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_exporter_cleanly(exporter: RunningExporter, number: int) -> None:
    assert exporter.stop(number) == 0
    assert "Traceback" not in exporter.log


def test_the_start_line_has_the_address_and_the_directory(start_exporter: Start, tmp_path: Path) -> None:
    socket = tmp_path / "run" / "s"
    running = start_exporter("--ingest-socket", str(socket), "--log-level", "error")
    assert running.log == (
        f"optwrap-exporter: listening on {running.url}, data in {running.data_dir}, reports also over {socket}\n"
    )


def test_the_start_line_says_that_a_wildcard_is_every_address(start_exporter: Start) -> None:
    running = start_exporter("--listen", "127.0.0.1:0,:0", "--log-level", "error")
    first, _, second = running.log.partition(" and ")
    assert first.startswith("optwrap-exporter: listening on http://127.0.0.1:")
    assert "every address" not in first
    assert " (every address), data in " in second


def test_forget_deletes_a_run_but_not_while_an_exporter_runs(
    exporter: RunningExporter, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.exporter.running import Job

    for name in ("kept", "gone"):
        answer = httpx.post(f"{exporter.url}/v1/reports", json=Job(run=name).report("starting"), trust_env=False)
        assert answer.status_code == 200, answer.text
    forget = ["forget", "gone", "--data-dir", str(exporter.data_dir)]
    assert str(exporter.data_dir) in failure(capsys, *forget)
    exporter.stop()
    assert cli.run(forget) == 0
    capsys.readouterr()
    assert "'gone'" in failure(capsys, *forget)
    exporter.start()
    runs = httpx.get(f"{exporter.url}/v1/runs", trust_env=False).json()["items"]
    assert [run["run"] for run in runs] == ["kept"]


def test_forget_does_not_create_a_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"{tmp_path}: contains no store" in failure(capsys, "forget", "lm", "--data-dir", str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_the_documentation_has_every_option_and_its_environment_variable() -> None:
    text = (Path(__file__).parents[2] / "docs" / "reference" / "exporter.md").read_text()
    for command in (cli.main, *cli.main.commands.values()):
        assert command is cli.main or f"`optwrap-exporter {command.name}" in text
        for param in command.params:
            if isinstance(param, click.Option):
                assert f"{param.opts[0]}" in text, param.opts
                if command is cli.main and param.name != "version":
                    assert f"`OPTWRAP_EXPORTER_{param.opts[0][2:].replace('-', '_').upper()}`" in text, param.opts
