"""Every benchmark that fits a single machine, and a dated section of docs/benchmarks.md."""
