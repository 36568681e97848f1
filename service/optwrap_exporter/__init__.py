"""Prometheus exporter, query API and live page for training jobs instrumented with optwrap."""

from optwrap_exporter._version import __version__ as __version__
