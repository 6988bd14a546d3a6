"""One captured CUDA graph of the projector for one batch size and one count: a single launch at batch 1.

`graph = ProjectorGraph(features_BNC, (32, 32), 8, weights)`, then `tokens_BkD = graph(features_BNC)` per image.
"""

from typing import Literal

import torch
from torch import Tensor

from tokendial_kernels.projector import projector
from tokendial_kernels.route import runs_kernel
from tokendial_kernels.validation import check_alike, check_pooling

# norm weight and bias, then gate, up and down, each weight and bias: the order of `projector`.
Weights = tuple[Tensor, Tensor | None, Tensor, Tensor | None, Tensor, Tensor | None, Tensor, Tensor | None]


class ProjectorGraph:
    """Holds the graph, its input buffer and its output buffer; each call overwrites the tokens of the one before."""

    def __init__(
        self,
        features_BNC: Tensor,
        grid: tuple[int, int],
        n: int,
        weights: Weights,
        *,
        eps: float = 1e-6,
        method: Literal["adaptive_avg", "resize_then_avg"] = "adaptive_avg",
    ) -> None:
        """Capture `projector(features_BNC, grid, n, *weights)`; the weights are read where they lie at every replay."""
        if not features_BNC.is_cuda:
            raise ValueError(f"features_BNC is on {features_BNC.device}; admissible: a CUDA device")
        check_pooling(features_BNC, grid, n, method)
        # An ordinary tensor even where the caller is in inference mode, so that later calls may write it anywhere.
        with torch.inference_mode(False), torch.no_grad():
            self.features_BNC = torch.empty_like(features_BNC).copy_(features_BNC)
        self.weights = weights
        self.tables = self._window_tables(grid, n, method)
        self.graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.device(features_BNC.device):
            side_stream = torch.cuda.Stream()
            side_stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side_stream):
                # Compiles the kernels and uploads the window tables, neither of which may happen during capture.
                for _ in range(2):
                    projector(self.features_BNC, grid, n, *weights, eps=eps, method=method)
            torch.cuda.current_stream().wait_stream(side_stream)
            with torch.cuda.graph(self.graph):
                self.tokens_BkD = projector(self.features_BNC, grid, n, *weights, eps=eps, method=method)

    def _window_tables(self, grid: tuple[int, int], n: int, method: str) -> object:
        """The pooling tables that the graph reads at every replay: kept alive here, as their cache may drop them."""
        if not runs_kernel(self.features_BNC):
            return None
        from tokendial_kernels.pool.kernel import pool_tables

        return pool_tables(grid[0], grid[1], (n,), method, self.features_BNC.device)

    def __call__(self, features_BNC: Tensor) -> Tensor:
        """Copy the features in, replay, and return the graph's own output buffer [B, n*n, D]."""
        check_alike("features_BNC", features_BNC, "the captured features", self.features_BNC, self.features_BNC.shape)
        self.features_BNC.copy_(features_BNC)
        self.graph.replay()
        return self.tokens_BkD
