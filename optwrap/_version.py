"""The version of the distribution `optwrap`, written here and nowhere else."""

__version__ = "0.1.0"
