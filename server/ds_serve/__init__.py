"""One high-throughput server for every model a team has."""

__version__ = "0.1.0"
