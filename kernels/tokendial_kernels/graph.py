"""A captured CUDA graph of a function of one tensor: one launch in place of many, which is what batch 1 waits for.

`graph = CallGraph(lambda x: projector(x, (32, 32), 8, *weights), features_BNC)`, then `graph(features_BNC)`.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from tokendial_kernels.validation import check_alike


class CallGraph:
    """Holds the graph, its input buffer and its output buffer; each call overwrites the result of the one before.

    What the function reads besides its argument, such as weights, is read where it lies at every replay.
    """

    def __init__(self, call: Callable[[Tensor], Tensor], example: Tensor) -> None:
        """Capture `call` at the shape, dtype and device of `example`; ValueError where that is no CUDA device."""
        if not example.is_cuda:
            raise ValueError(f"example is on {example.device}; admissible: a CUDA device")
        # An ordinary tensor even where the caller is in inference mode, so that later calls may write it anywhere.
        with torch.inference_mode(False), torch.no_grad():
            self.input = torch.empty_like(example).copy_(example)
        self.graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.device(example.device):
            side_stream = torch.cuda.Stream()
            side_stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side_stream):
                # Compiles kernels and uploads tables, neither of which may happen during capture.
                for _ in range(2):
                    call(self.input)
            torch.cuda.current_stream().wait_stream(side_stream)
            with torch.cuda.graph(self.graph):
                self.output = call(self.input)

    def __call__(self, tensor: Tensor) -> Tensor:
        """Copy the tensor in, replay, and return the graph's own output buffer."""
        check_alike("tensor", tensor, "the captured example", self.input, self.input.shape)
        self.input.copy_(tensor)
        self.graph.replay()
        return self.output
