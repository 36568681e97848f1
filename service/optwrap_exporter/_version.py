"""The version of the distribution `optwrap-exporter`, written here and nowhere else."""

__version__ = "0.1.0"
