"""Benchmarks of the kernels; see `tokendial_kernels.bench.main`."""

from tokendial_kernels.bench.run import main

__all__ = ["main"]
