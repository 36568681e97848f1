"""Renders a scrape as text.

prometheus-client needs seconds for the 100,000 series of 4,096 processes, because it makes several objects for each. So
it renders one sample of each family only. That text is the template for all other samples of the family, and what the
exporter tells about itself comes from prometheus-client alone. A test compares both renderings byte for byte.
"""

import dataclasses
import functools
import re
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from prometheus_client import exposition
from prometheus_client.core import Metric as Family
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from optwrap_exporter.ledger.clocks import Clock
from optwrap_exporter.ledger.ledger import Ledger
from optwrap_exporter.metrics import samples
from optwrap_exporter.metrics.metric import Metric
from optwrap_exporter.metrics.table import METRICS

_SLICE: Final = 128
"""Processes rendered at once: some ten milliseconds, in which other threads wait for the interpreter now and then."""
_PAUSE: Final = 0.0005
"""Seconds between two slices, in which reports are taken."""
_CACHED: Final = 10_000
"""Label values, and counts, whose text is kept during a scrape."""
_GZIP: Final = 31
"""zlib's window bits for gzip."""
_END: Final = b"# EOF\n"
"""The last line in OpenMetrics."""


@dataclasses.dataclass(frozen=True)
class Format:
    """A text format."""

    content_type: str
    encode: Callable[[Any], bytes]
    """prometheus-client's encoder of a collector."""


TEXT: Final = Format(exposition.CONTENT_TYPE_PLAIN_0_0_4, exposition.generate_latest)
OPENMETRICS: Final = Format(openmetrics.CONTENT_TYPE_LATEST, openmetrics.generate_latest)


@dataclasses.dataclass(frozen=True, slots=True)
class _Template:
    """How prometheus-client writes one family."""

    head: bytes
    """Its help, type and unit."""
    line: Callable[..., str]
    """Formats a sample. The arguments are the values of the labels in the table's order, escaped, then the number."""


@dataclasses.dataclass(frozen=True)
class _One(Collector):
    """A registry with one family, for an encoder."""

    family: Any

    def collect(self) -> Iterable[Family]:
        return [self.family]


def _template(metric: Metric, shape: Format) -> _Template:
    family: Any = metric.family()
    family.add_metric([f"<{index}>" for index in range(len(metric.labels))], {} if metric.type == "info" else 1)
    text = shape.encode(_One(family)).removesuffix(_END).decode()
    head, line = re.fullmatch(r"((?:#.*\n)+)(.*) 1\.0\n", text).groups()  # type: ignore[union-attr]  # it matches
    line = re.sub(r"<(\d+)>", r"{\1}", line.replace("{", "{{").replace("}", "}}"))
    return _Template(head.encode(), f"{line} {{{len(metric.labels)}}}\n".format)


def escaped(label: str) -> str:
    """A label value as both formats write it."""
    return label.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


class Renderer:
    """Renders scrapes of the ledger and of the exporter itself. One thread at a time may use it.

    Args:
      ledger: the committed state of all runs.
      own: collects what the exporter tells about itself.
      clock: the exporter's clock.
      pause: called between two slices, so that other threads run.
    """

    def __init__(
        self,
        ledger: Ledger,
        own: Collector,
        *,
        clock: Clock,
        pause: Callable[[], None] = lambda: time.sleep(_PAUSE),
    ) -> None:
        self._ledger = ledger
        self._own = own
        self._clock = clock
        self._pause = pause
        shown = [metric for metric in METRICS if metric.labels[:1] == ("run",)]
        self._templates = {
            shape: {metric.name: _template(metric, shape) for metric in shown} for shape in (TEXT, OPENMETRICS)
        }

    def render(self, shape: Format, *, compress: bool) -> bytes:
        """The text of a scrape in a format, compressed with gzip if asked for."""
        parts = self._parts(shape)
        if not compress:
            return b"".join(parts)
        # Level 1: higher levels take several times as long and save little.
        packer = zlib.compressobj(1, zlib.DEFLATED, _GZIP)
        packed = [packer.compress(part) for part in parts]
        return b"".join([*packed, packer.flush()])

    def _parts(self, shape: Format) -> Iterator[bytes]:
        """The text in pieces: every family of processes and runs, then the exporter's own."""
        templates = self._templates[shape]
        blocks: dict[str, list[bytes]] = {name: [template.head] for name, template in templates.items()}
        for lines in self._slices(templates):
            for name, found in lines.items():
                blocks[name].append("".join(found).encode())
            self._pause()
        for name in templates:
            yield b"".join(blocks.pop(name))
        yield shape.encode(self._own)

    def _slices(self, templates: dict[str, _Template]) -> Iterator[dict[str, list[str]]]:
        """The lines of some processes, or of a run, by family."""
        formats = {name: template.line for name, template in templates.items()}
        lines: dict[str, list[str]] = {name: [] for name in templates}
        now = self._clock()
        labels: tuple[str, ...] = ()
        escape = functools.lru_cache(_CACHED)(escaped)
        count = functools.lru_cache(_CACHED)(floatToGoString)

        def add(name: str, value: float, *further: str) -> None:
            # Most counts are the same in many processes. Floats are not cached: 0.0 and -0.0 are equal.
            number = count(value) if type(value) is int else floatToGoString(value)  # type: ignore[no-untyped-call]
            lines[name].append(formats[name](*labels, *map(escape, further), number))

        for index, process in enumerate(self._ledger.process_views(), 1):
            labels = (escaped(process.run), str(process.process))
            samples.of_process(process, now, add)
            if index % _SLICE == 0:
                yield lines
                lines = {name: [] for name in templates}
        yield lines
        for run in self._ledger.run_views():
            lines = {name: [] for name in templates}
            labels = (escaped(run.run),)
            samples.of_run(run, now, add)
            yield lines
