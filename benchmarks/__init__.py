"""Measurements of the operators: ``python -m benchmarks.kernels``."""
