"""Prometheus exporter, query API and live page for training jobs that optwrap instruments."""

from optwrap_exporter._version import __version__ as __version__
