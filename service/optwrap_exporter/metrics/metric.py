"""One metric family: its name, type, unit, help and labels."""

import dataclasses
from typing import Literal

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    UnknownMetricFamily,
)

Kind = Literal["counter", "gauge", "histogram", "info", "unknown"]
Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily | InfoMetricFamily | UnknownMetricFamily


@dataclasses.dataclass(frozen=True)
class Metric:
    """One metric family."""

    name: str
    """The name in queries. A counter's ends in `_total`, an info's in `_info`."""
    type: Kind
    help: str
    labels: tuple[str, ...] = ()
    unit: str = ""
    note: str = ""
    """The values of its labels, for the documentation."""

    def family(self) -> Family:
        """A new family without samples."""
        match self.type:
            case "counter":
                return CounterMetricFamily(self.name, self.help, labels=self.labels, unit=self.unit)
            case "gauge":
                return GaugeMetricFamily(self.name, self.help, labels=self.labels, unit=self.unit)
            case "histogram":
                return HistogramMetricFamily(self.name, self.help, labels=self.labels, unit=self.unit)
            case "info":
                return InfoMetricFamily(self.name.removesuffix("_info"), self.help, labels=self.labels)
            case "unknown":
                return UnknownMetricFamily(self.name, self.help, labels=self.labels)
