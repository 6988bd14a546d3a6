"""What a workload offers the platform: data that never sees a count, and a task that turns a count into logits.

Shapes: B examples, N patches, D tower width, L text tokens, k visual tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from tokendial.contracts.config import RunConfig
    from tokendial.contracts.serving import Serving

Example = Mapping[str, Any]
Batch = dict[str, Any]


@dataclass(frozen=True)
class Grade:
    """How one answer did: `quality` in [0, 1], a `group` (question type) and the `source` item bootstraps resample.

    `extra` holds secondary measures by name; `row` is the example's row in its batch and `question` its text, for
    tables that people look at.
    """

    quality: float
    group: str
    source: str
    prediction: str
    target: str
    extra: Mapping[str, float] = field(default_factory=dict)
    row: int = 0
    question: str = ""


class Data(Protocol):
    """Where examples come from. Never sees a token count."""

    def datasets(self, config: RunConfig[Any]) -> Mapping[str, Sequence[Example]]:
        """Map-style datasets `train`, `validation`, `test`; item i is a pure function of (config.seed, split, i)."""
        ...

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Tensors whose first axis is the example; text is right-padded to `data.text_tokens`, one image slot each."""
        ...

    def digests(self, config: RunConfig[Any]) -> Mapping[str, str]:
        """SHA-256 per split of what the examples are made from; of `train` alone it may depend on `config.seed`.

        Runs are grouped over seeds, and their answers paired, where the digest of the split they were scored on is one.
        """
        ...


class Task(Protocol):
    """What is learned. Sums and counts, never means: the platform normalises over the global batch."""

    metric: str

    def build_model(self, config: RunConfig[Any]) -> nn.Module:
        """The whole model with parts `tower`, `projector`, `language` reachable through `parts`."""
        ...

    def parts(self, model: nn.Module) -> Mapping[str, nn.Module]:
        """The modules named `tower`, `projector`, `language`; together they hold every parameter once."""
        ...

    def encode(self, model: nn.Module, batch: Batch) -> Tensor:
        """Patch features [B, N, D], once per example whatever the number of counts."""
        ...

    def pictures(self, batch: Batch) -> Tensor:
        """The images that the batch's pixels came from, 8-bit RGB [B, H, W, 3]; asked of the model, they give them."""
        ...

    def expand(self, batch: Batch, k: int) -> Batch:
        """The batch with k placeholders in each image slot; a pure function."""
        ...

    def logits(
        self, model: nn.Module, features: Tensor, batch: Batch, k: int, valid_B: Tensor | None = None
    ) -> Tensor:
        """Logits [B, L, V] at the text columns of an expanded batch, for every count (the image column's are the last
        visual token's); with `valid_B`, example b attends to its first valid_B[b] visual tokens."""
        ...

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy summed over answer tokens, in nats (a scalar); the batch may be expanded or not."""
        ...

    def num_targets(self, batch: Batch) -> int:
        """Answer tokens in the batch."""
        ...

    def distil(self, student: Tensor, teacher: Tensor, batch: Batch, temperature: float) -> Tensor:
        """KL(teacher ‖ student) summed over answer tokens, in nats; `batch` is unexpanded, logits may differ in k."""
        ...

    def warmup_head(self, config: RunConfig[Any]) -> nn.Module | None:
        """The throw-away head of the `tower` objective, or None where the workload has none."""
        ...

    def warmup_loss(self, head: nn.Module, features: Tensor, batch: Batch) -> tuple[Tensor, int]:
        """Summed loss and number of targets of the `tower` objective."""
        ...

    def grade(
        self, model: nn.Module, features: Tensor, batch: Batch, k: int, max_new_tokens: int
    ) -> list[Grade]:
        """Greedy answers of an unexpanded evaluation batch at count k, graded against its targets."""
        ...

    def export(
        self, model: nn.Module, config: RunConfig[Any], folder: str, trained_counts: Sequence[int] | None = None
    ) -> None:
        """Write the Hugging Face folder: safetensors, processor, tokenizer, chat template, code that travels along.

        It tells the counts that were trained; None: all of the schedule.
        """
        ...

    def describe(
        self,
        folder: str,
        config: RunConfig[Any],
        quality: Mapping[int, float],
        cost_flops: Mapping[int, float],
        digests: Mapping[str, str],
        commit: str,
    ) -> None:
        """Write the model card of an exported folder: curve and cost by count, data digests, licence, snippet."""
        ...

    def load(self, folder: str) -> nn.Module:
        """Read an exported folder back through our own classes, never through remote code."""
        ...


class Cost(Protocol):
    """Analytic FLOPs of one configuration (1 multiply-add = 2), padding included. Imports no torch."""

    @property
    def num_patches(self) -> int:
        """Patch features of one image."""
        ...

    @property
    def num_parameters(self) -> Mapping[str, int]:
        """Parameters by part."""
        ...

    def tower_flops(self, trained: bool) -> float:
        """Tower, one example, forward (and backward where trained)."""
        ...

    def language_flops(self, k: int, trained: frozenset[str], backward: bool = True) -> float:
        """Projector and language model, one example at count k; `trained` names parts, False: forward only."""
        ...

    def warmup_flops(self) -> float:
        """One example of the `tower` objective, forward and backward."""
        ...


@dataclass(frozen=True)
class Workload:
    """A named workload; `load` and `serve` are where torch is imported.

    `check` and `check_data` raise ValueError: where settings cannot work together, on any machine; and where the data
    they name is not there, on the machine that will read it. `serve` reads an exported folder as a server runs it, with
    room for a number of answers at once; it needs nothing but the folder. None: the workload cannot be served.
    """

    name: str
    metric: str
    licence: str
    attribution: str
    check: Callable[[RunConfig[Any]], None]
    cost: Callable[[RunConfig[Any]], Cost]
    load: Callable[[RunConfig[Any]], tuple[Data, Task]]
    serve: Callable[[str, torch.device, torch.dtype, int], Serving] | None = None
    check_data: Callable[[RunConfig[Any]], None] = lambda config: None
