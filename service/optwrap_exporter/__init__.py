"""Prometheus exporter, query API and live page for training jobs that optwrap instruments."""
