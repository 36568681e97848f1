"""Options and arguments that several commands have, and how options are parsed."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeVar

import click

from optwrap_exporter.settings import DEFAULT_LISTEN, parse_address
from optwrap_exporter.wire.vocabulary import HEALTHS

DEFAULT_URL: Final = f"http://{DEFAULT_LISTEN}"

T = TypeVar("T")


def option_type(parse: Callable[[str], T]) -> Callable[[str], T]:
    """`parse` as the type of an option: the message of its ValueError or OSError is the usage error."""

    def convert(text: str) -> T:
        try:
            return parse(text)
        except OSError as error:
            raise click.BadParameter(f"{text!r}: {error.strerror or error}") from error
        except ValueError as error:
            raise click.BadParameter(str(error)) from error

    return convert


def host_name(text: str) -> str:
    """Parse the name that a Host header may carry.

    Raises:
      ValueError: the text is no host name and no IP address.
    """
    try:
        return parse_address(f"[{text}]:0" if ":" in text else f"{text}:0").host.lower()
    except ValueError as error:
        raise ValueError(f"{text!r} is not a host name or an IP address without port and scheme") from error


data_dir_option = click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="OPTWRAP_EXPORTER_DATA_DIR",
    show_envvar=True,
    help="Directory of the store, on a local disk; created if missing.  "
    "[default: $XDG_STATE_HOME/optwrap-exporter, or ~/.local/state/optwrap-exporter]",
)

urls_argument = click.argument("urls", nargs=-1, metavar="[URL]...")
ca_file_option = click.option(
    "--ca-file",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="OPTWRAP_CA_FILE",
    show_envvar=True,
    help="Certificates, in PEM, that https URLs are checked against, instead of the system's.",
)
run_option = click.option(
    "--run", metavar="NAME", help="Only this run; a pattern such as 'lm-*' shows all that match it."
)
health_option = click.option(
    "--health",
    "healths",
    type=click.Choice(HEALTHS),
    metavar="HEALTH",
    multiple=True,
    help="Only runs of this health; repeat it for more.",
)


def given(urls: Sequence[str]) -> Sequence[str]:
    """The URLs, or the default one if there are none."""
    return urls or [os.environ.get("OPTWRAP_ENDPOINT") or DEFAULT_URL]


def parse_healths(text: str) -> tuple[str, ...]:
    """Parse healths separated by commas.

    Raises:
      ValueError: one of them is no health.
    """
    named = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in named:
        if name not in HEALTHS:
            raise ValueError(f"{name!r} is no health: expected some of {', '.join(HEALTHS)}")
    return named
