"""Measurements: ``python -m benchmarks`` prints tables of medians, and ratios within one run."""
