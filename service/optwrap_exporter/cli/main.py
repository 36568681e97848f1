"""The command line: `optwrap-exporter` and its commands."""

import os
import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Final

import click

from optwrap_exporter._version import __version__
from optwrap_exporter.cli.options import (
    ca_file_option,
    data_dir_option,
    given,
    health_option,
    host_name,
    option_type,
    parse_healths,
    run_option,
    urls_argument,
)
from optwrap_exporter.settings import (
    DEFAULT_LISTEN,
    DEFAULT_NEW_RUNS,
    DEFAULT_RETENTION_BYTES,
    DEFAULT_RETENTION_DAYS,
    Settings,
    default_data_dir,
    parse_addresses,
    parse_announcement,
    parse_group,
    parse_mode,
    parse_number,
    parse_size,
    parse_web_url,
    parse_webhook,
    read_token,
)
from optwrap_exporter.wire.vocabulary import HEALTHS, SCOPES

PROGRAM: Final = "optwrap-exporter"
HEALTHY: Final = frozenset({"ok", "starting", "skipping", "finished"})
"""Health that needs no action. `skipping` becomes `starved` or `gave_up` if the wrapper does not recover."""
UNHEALTHY: Final = tuple(health for health in HEALTHS if health not in HEALTHY)
"""The healths that `status` exits with 1 on, unless it is told others."""


@click.group(
    PROGRAM,
    invoke_without_command=True,
    context_settings={
        "auto_envvar_prefix": "OPTWRAP_EXPORTER",
        "help_option_names": ["-h", "--help"],
        "show_default": True,
        "max_content_width": 100,
    },
    epilog="Every option can be set in the environment, as shown. An acknowledged report is committed: it survives a "
    "crash of the exporter, but not a power cut.",
)
@click.option(
    "--listen",
    type=option_type(parse_addresses),
    metavar="HOST:PORT",
    multiple=True,
    default=[DEFAULT_LISTEN],
    show_envvar=True,
    envvar="OPTWRAP_EXPORTER_LISTEN",
    callback=lambda _ctx, _param, given: tuple(chain.from_iterable(given)),
    help="Address of the page, the API and /metrics; port 0 chooses a free one. Repeat it, or separate them by commas, "
    "for more addresses. Beyond loopback reports are accepted only with --token-file. A loopback address beside "
    "another one needs no token.",
)
@data_dir_option
@click.option(
    "--ingest-socket",
    type=click.Path(path_type=Path, dir_okay=False),
    show_envvar=True,
    help="Unix socket that also accepts reports, without a token, of everybody who may write to it.",
)
@click.option(
    "--ingest-socket-mode",
    type=option_type(parse_mode),
    metavar="MODE",
    show_envvar=True,
    help="Mode of the socket file, in octal.  [default: 0600, or 0660 with a group]",
)
@click.option(
    "--ingest-socket-group",
    type=option_type(parse_group),
    metavar="GROUP",
    show_envvar=True,
    help="Group of the socket file, by name or number.",
)
@click.option(
    "--token-file",
    "token",
    type=option_type(lambda path: read_token(Path(path))),
    metavar="FILE",
    envvar="OPTWRAP_EXPORTER_TOKEN_FILE",
    show_envvar=True,
    help="File with the bearer token that reports over TCP must carry.",
)
@click.option(
    "--retention-days",
    type=option_type(lambda text: parse_number(text, 0, 36_500)),
    metavar="DAYS",
    default=DEFAULT_RETENTION_DAYS,
    show_envvar=True,
    help="Delete step records and events after this many days, and runs that have not reported for as long.",
)
@click.option(
    "--retention-bytes",
    type=option_type(parse_size),
    metavar="SIZE",
    default=DEFAULT_RETENTION_BYTES,
    show_envvar=True,
    help="Size of the store above which the oldest step records are deleted: 500MB, 2GiB, ...",
)
@click.option(
    "--new-runs-per-minute",
    type=click.IntRange(1, 1_000_000),
    metavar="N",
    default=DEFAULT_NEW_RUNS,
    show_envvar=True,
    help="Refuse new runs beyond this many per minute for the time being (429). Known runs are never affected.",
)
@click.option(
    "--recover",
    is_flag=True,
    show_envvar=True,
    help="If the database is damaged, move it aside and begin a new one. Without this the exporter does not start.",
)
@click.option(
    "--allowed-host",
    "allowed_hosts",
    type=option_type(host_name),
    metavar="NAME",
    multiple=True,
    show_envvar=True,
    envvar="OPTWRAP_EXPORTER_ALLOWED_HOST",
    help="Another name of this exporter that the Host header of a request may carry; repeat it for more.",
)
@click.option(
    "--scope",
    type=click.Choice(SCOPES),
    default="host",
    show_envvar=True,
    help="Which processes report to this exporter: those of its own host, or all of a job. With job a process that has "
    "not reported is missing, and its run is degraded.",
)
@click.option(
    "--grafana-url",
    type=option_type(parse_web_url),
    metavar="URL",
    show_envvar=True,
    help="Address of the Grafana with the dashboards of deploy/grafana, as browsers reach it; the page links to it.",
)
@click.option(
    "--announce",
    type=option_type(parse_announcement),
    metavar="FILE",
    show_envvar=True,
    help="Have the address in this file, as JSON for Prometheus' file_sd, until the exporter stops.",
)
@click.option(
    "--event-log",
    metavar="FILE",
    show_envvar=True,
    help="Append every event to this file as one line of JSON; - is standard output.",
)
@click.option(
    "--webhook",
    type=option_type(parse_webhook),
    metavar="URL",
    show_envvar=True,
    help="Post incidents as they open and end to this URL, as JSON with the `text` that Slack shows.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"], case_sensitive=False),
    default="info",
    show_envvar=True,
    help="Level of the messages on standard error.",
)
@click.version_option(__version__, "--version", prog_name=PROGRAM)
@click.pass_context
def main(ctx: click.Context, /, data_dir: Path | None, **options: Any) -> None:
    """Store and show the skipped steps and non-finite gradients of training jobs.

    Without a command it serves the live page at /, the API under /v1 and Prometheus metrics at /metrics.
    """
    ctx.obj = data_dir
    if ctx.invoked_subcommand is not None:
        return
    from optwrap_exporter.http.app import serve  # noqa: PLC0415 - each command loads only what it needs

    if options["ingest_socket"] is None:
        for name in ("ingest_socket_mode", "ingest_socket_group"):
            if options[name] is not None:
                raise click.UsageError(f"--{name.replace('_', '-')} needs --ingest-socket")
    settings = Settings(data_dir=_directory(data_dir), **options)
    serve(settings)


@main.command()
@urls_argument
@run_option
@health_option
@ca_file_option
@click.option("--json", "as_json", is_flag=True, help="Print the API's answer: one object for a NAME, else a list.")
@click.option(
    "--exit-on",
    type=option_type(parse_healths),
    metavar="HEALTH,...",
    default=",".join(UNHEALTHY),
    help="Exit with 1 if a run has one of these healths.",
)
@click.pass_context
def status(
    ctx: click.Context,
    /,
    *,
    urls: tuple[str, ...],
    run: str | None,
    healths: tuple[str, ...],
    as_json: bool,
    exit_on: tuple[str, ...],
    ca_file: Path | None,
) -> None:
    """Show the runs of the exporters at URL... once, worst first.

    Exits with 0 if no run needs attention; with 1 if a run has a health in --exit-on that nobody has acknowledged, or
    an exporter stores no reports; and with 2 if an exporter does not answer. URL is http(s)://host:port or unix:///path;
    the default is OPTWRAP_ENDPOINT, or else http://127.0.0.1:10425.
    """
    from optwrap_exporter.cli.client import Chosen, show_status  # noqa: PLC0415 - each command loads only what it needs

    ctx.exit(show_status(given(urls), Chosen(run, healths), ca_file=ca_file, as_json=as_json, exit_on=exit_on))


@main.command()
@urls_argument
@run_option
@health_option
@ca_file_option
@click.option(
    "--interval",
    type=option_type(lambda text: parse_number(text, 0, 3600)),
    metavar="SECONDS",
    default="1",
    help="Seconds between queries.",
)
def watch(
    *, urls: tuple[str, ...], run: str | None, healths: tuple[str, ...], interval: float, ca_file: Path | None
) -> None:
    """Show the runs of the exporters at URL..., worst first, live, until Ctrl-C."""
    from optwrap_exporter.cli.client import Chosen, watch_runs  # noqa: PLC0415 - each command loads only what it needs

    watch_runs(given(urls), Chosen(run, healths), interval, ca_file=ca_file)


@main.command()
@click.argument("url", required=False, metavar="[URL]")
@click.option("--run", metavar="NAME", help="Wait for this run only.")
@click.option(
    "--timeout",
    type=option_type(lambda text: parse_number(text, 0, 86_400)),
    metavar="SECONDS",
    default="90",
    help="How long to wait at most.",
)
@ca_file_option
@click.pass_context
def drain(ctx: click.Context, /, *, url: str | None, run: str | None, timeout: float, ca_file: Path | None) -> None:
    """Wait until Prometheus has scraped the end of every run of the exporter at URL. Do this before you stop it.

    A run has ended when its processes have finished, failed or stopped, or have gone silent. Exits with 0 when a scrape
    that began after the end of every run is complete, with 1 after --timeout, and with 2 if the exporter does not
    answer. The exporter itself goes on.
    """
    from optwrap_exporter.cli.client import drain_runs  # noqa: PLC0415 - each command loads only what it needs

    ctx.exit(drain_runs(given([url] if url else [])[0], run, timeout, ca_file=ca_file))


@main.command()
@click.argument("run")
@data_dir_option
@click.pass_obj
def forget(data_dir_before: Path | None, run: str, data_dir: Path | None) -> None:
    """Delete everything about RUN. Stop the exporter of the directory first."""
    from optwrap_exporter.http.app import forget_run  # noqa: PLC0415 - each command loads only what it needs

    directory = _directory(data_dir or data_dir_before)
    forget_run(directory, run)
    click.echo(f"deleted run {run!r} from {directory}", err=True)


def _directory(given: Path | None) -> Path:
    try:
        return given if given is not None else default_data_dir()
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. A failure is one line on standard error and a status other than 0."""
    try:
        result = main.main(args=arguments, prog_name=PROGRAM, standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        message = error.format_message()
    except (click.Abort, KeyboardInterrupt):
        return 130
    except BrokenPipeError:
        # The reader of the pipe is gone. Without this, Python would report an error when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        message = str(error)
    else:
        return result if isinstance(result, int) else 0
    print(f"{PROGRAM}: {' '.join(message.split())}", file=sys.stderr)
    return 2
