"""Tools for breaking runs on purpose, used by `python -m benchmarks.evidence.faults`."""
