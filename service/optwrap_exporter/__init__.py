"""Prometheus exporter, query API and live page for training jobs instrumented with optwrap."""
