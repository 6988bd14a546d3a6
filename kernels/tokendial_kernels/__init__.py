"""Kernels for vision-language models whose number of visual tokens is a dial.

One folder per op, each exporting one function: `from tokendial_kernels.pool import pool`. On CUDA a Triton kernel runs;
elsewhere the fastest library route does. Importing this package, or running any op on a CPU, never imports triton.
"""

__all__ = ["OPS"]

OPS = ("pool", "pool_norm", "swiglu", "projector", "bipartite_merge", "gather_prune")
