"""A structured fuzzer of POST /v1/reports: `make fuzz`, or `python -m tests.exporter.fuzz --help`.

Bases are reports that a real Monitor makes. `mutations` changes them, and `bombs` has bodies that are made to be
expensive. `victim` is a real exporter in a process of its own, whose processor time and memory are measured. `campaign`
sends and checks.
"""
