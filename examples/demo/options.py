"""The demo's command line."""

import argparse
import dataclasses
import ipaddress
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NoReturn, cast

from examples.demo.settings import FULL, QUICK, Settings


@dataclasses.dataclass(frozen=True)
class Options:
    """The command line's options."""

    settings: Settings
    seed: int
    run: str
    """Name of the run at the exporter."""
    emit: Literal["reading", "callback"]
    listen: str
    """`host:port` on loopback for the exporter to start."""
    data_dir: Path | None
    """Data directory of that exporter; None for one that is deleted with the demo."""
    endpoint: str | None
    """Address of a running exporter to use instead."""
    baseline: bool
    """Whether to train without optwrap as well."""
    hold: bool
    """Whether the exporter keeps running at the end."""
    processes: int
    """Number of processes that train together, stop and roll back; 0 for the training in one process."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"demo: {message}; --help lists what there is\n")


def parse(arguments: Sequence[str] | None = None) -> Options:
    """Read `arguments`, or the process's own.

    Raises:
      SystemExit: status 2 after one line on stderr if they are wrong, status 0 after --help.
    """
    parser = _Parser(
        prog="python -m examples.demo",
        description="Train a small character-level transformer on data with faults, and watch what optwrap skips. The "
        "last line on stdout is what the exporter answers about the run, as JSON.",
        allow_abbrev=False,
    )
    parser.add_argument("--quick", action="store_true", help="a smaller model and fewer steps: some 15 seconds")
    parser.add_argument(
        "--pod",
        action="store_true",
        help="instead, let four processes (quick: two) train together, stop at the same step, and roll back",
    )
    parser.add_argument("--steps", type=_positive, help=f"micro-steps ({FULL.steps}; quick: {QUICK.steps})")
    parser.add_argument("--seed", type=_seed, default=0, help="of parameters and batches (%(default)s)")
    parser.add_argument("--run", default="demo", help="the run's name (%(default)s)")
    parser.add_argument(
        "--emit",
        choices=("reading", "callback"),
        default="reading",
        help="how the counters leave the step: returned and observed, or by a host callback (%(default)s)",
    )
    parser.add_argument(
        "--no-baseline", action="store_true", help="leave out the training without optwrap, and the autopsy"
    )
    parser.add_argument("--hold", action="store_true", help="leave the exporter and its page up until Ctrl-C")
    where = parser.add_argument_group("the exporter")
    where.add_argument(
        "--listen", type=_loopback, help="HOST:PORT to start it on (127.0.0.1:10425); port 0: a free one"
    )
    where.add_argument("--data-dir", type=Path, help="its data directory (default: one that is deleted at the end)")
    where.add_argument("--endpoint", help="report to this exporter and start none: http://HOST:PORT or unix:///PATH")
    found = parser.parse_args(arguments)
    if found.endpoint is not None:
        for name in ("listen", "data_dir", "hold"):
            if getattr(found, name):
                parser.error(
                    f"--{name.replace('_', '-')} is for an exporter that the demo starts, and --endpoint starts none"
                )

    if found.pod:
        for name in ("steps", "seed", "run", "emit", "no_baseline"):
            if getattr(found, name) != parser.get_default(name):
                parser.error(f"--{name.replace('_', '-')} has no meaning with --pod")

    settings = QUICK if found.quick else FULL
    if found.steps is not None:
        settings = dataclasses.replace(settings, steps=found.steps)
    return Options(
        settings=settings,
        seed=found.seed,
        run=found.run,
        emit=cast(Literal["reading", "callback"], found.emit),  # one of its choices
        listen=found.listen or "127.0.0.1:10425",
        data_dir=found.data_dir,
        endpoint=found.endpoint,
        baseline=not found.no_baseline,
        hold=found.hold,
        processes=(2 if found.quick else 4) if found.pod else 0,
    )


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 1 << 32:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 2**32 - 1")
    return int(text)


def _loopback(text: str) -> str:
    host, _, port = text.rpartition(":")
    address = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        loopback = address == "localhost" or ipaddress.ip_address(address).is_loopback
    except ValueError:
        loopback = False
    if not loopback or not port.isdecimal() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT with a loopback address such as 127.0.0.1:10425")
    return text
