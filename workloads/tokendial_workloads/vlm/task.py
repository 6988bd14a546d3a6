"""Image + conversation examples as a task: one placeholder per row, loss on answer tokens, logits at text positions.

A workload subclasses `ImageTextTask` and adds `grade` (and a warm-up head where it has one). A batch holds
pixel_values [B, 3, H, W], input_ids, attention_mask and labels [B, L] (-100 off answers), padded on the right.
Shapes: B rows, N patches, C tower width, L text tokens, k visual tokens, M = k + L - 1 positions, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokendial.contracts import Batch, RunConfig
from tokendial_kernels.cross_entropy import cross_entropy
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from .build import TextIds, build_model, part_modules
from .card import Card, card_text
from .configuration import TokendialConfig
from .decode import greedy, mask_positions
from .export import export, load
from .model import TokendialForConditionalGeneration
from .text import IGNORED, expand_placeholders, prompts, text_labels


class ImageTextTask:
    """The shared half of a workload's task (contract: tokendial.contracts.Task).

    `mean` and `std` are those that its data and the exported processor normalise pixels in [0, 1] by.
    """

    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        metric: str,
        image_token: str = "<image>",
        licence: str = "unknown",
        attribution: str = "",
        question: str = "",
    ) -> None:
        """`licence` and `attribution` of the data and an example question are for the model card."""
        self.tokenizer = tokenizer
        self.metric = metric
        self.image_token = image_token
        self.licence, self.attribution, self.question = licence, attribution, question
        self.ids = TextIds.of(tokenizer, image_token)

    def build_model(self, config: RunConfig[Any]) -> TokendialForConditionalGeneration:
        """The model of a run, its weights a function of the configuration alone."""
        return build_model(
            config.model,
            ids=self.ids,
            counts=config.schedule.counts,
            seed=config.seed,
            activation_checkpointing=config.activation_checkpointing,
        )

    def parts(self, model: nn.Module) -> Mapping[str, nn.Module]:
        """`tower`, `projector`, `language`, which together hold every parameter once (and `frozen` under LoRA)."""
        return part_modules(_own(model))

    def encode(self, model: nn.Module, batch: Batch) -> Tensor:
        """Patch features [B, N, C]."""
        return _own(model).encode(batch["pixel_values"])

    def pictures(self, batch: Batch) -> Tensor:
        """The images that the batch's pixels came from, 8-bit RGB [B, H, W, 3]."""
        pixels_BHW3 = batch["pixel_values"].float().movedim(1, -1)
        scaled_BHW3 = pixels_BHW3 * pixels_BHW3.new_tensor(self.std) + pixels_BHW3.new_tensor(self.mean)
        return (scaled_BHW3 * 255).round().clamp(0, 255).to(torch.uint8)

    def expand(self, batch: Batch, k: int) -> Batch:
        """The batch with k placeholders in each image slot."""
        return expand_placeholders(batch, k, self.ids.image)

    def logits(
        self,
        model: nn.Module,
        features: Tensor,
        batch: Batch,
        k: int,
        valid_B: Tensor | None = None,
    ) -> Tensor:
        """Logits [B, L, V] at the text positions of an expanded batch; the k - 1 visual ones before are never computed.

        With `valid_B`, example b attends to its first valid_B[b] visual tokens only, as if it had been expanded to
        that count (prefix projectors). Rows are padded on the right, so causal attention needs no other mask.
        """
        own = _own(model)
        attention_mask_BM = position_ids_BM = None
        if valid_B is not None:
            attention_mask_BM = _prefix_mask(batch, self.ids.image, valid_B)
            position_ids_BM = mask_positions(attention_mask_BM)
        hidden_BMD = own.model(
            input_ids=batch["input_ids"],
            image_features=features,
            num_visual_tokens=k,
            attention_mask=attention_mask_BM,
            position_ids=position_ids_BM,
            use_cache=False,
        ).last_hidden_state
        return own.lm_head(hidden_BMD.take_along_dim(self._head_positions(batch, valid_B), dim=1))

    def _head_positions(self, batch: Batch, valid_B: Tensor | None) -> Tensor:
        """Positions [B, L, 1] whose logits are wanted; the image column's is the last visual token attended to."""
        positions_BL = batch["text_positions"]
        if valid_B is not None:
            is_image_BL = batch["input_ids"].gather(1, positions_BL) == self.ids.image
            num_visual_B = (batch["input_ids"] == self.ids.image).sum(1)
            positions_BL = positions_BL - is_image_BL * (num_visual_B - valid_B)[:, None]
        return positions_BL[..., None]

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy summed over answer tokens, in nats and in fp32; the batch may be expanded or not."""
        labels_BL = text_labels(batch)
        # Teachers and pupils read the logits again: of several rows this flattens a copy, of one the logits themselves.
        return cross_entropy(
            logits[:, :-1].flatten(0, 1),
            labels_BL[:, 1:].flatten(),
            ignore_index=IGNORED,
            reduction="sum",
            keep_logits=len(logits) == 1,
        )

    def num_targets(self, batch: Batch) -> int:
        """Answer tokens in the batch."""
        return int((batch["labels"][:, 1:] != IGNORED).sum())

    def distil(self, student: Tensor, teacher: Tensor, batch: Batch, temperature: float) -> Tensor:
        """KL(teacher ‖ student) at `temperature`, summed over answer tokens, in nats; no gradient to the teacher.

        Both are logits [B, L, V] at text positions, so their counts may differ.
        """
        target_BL = text_labels(batch)[:, 1:] != IGNORED
        student_TV = student[:, :-1][target_BL].float().div(temperature).log_softmax(-1)
        teacher_TV = teacher[:, :-1][target_BL].detach().float().div(temperature).log_softmax(-1)
        return F.kl_div(student_TV, teacher_TV, reduction="sum", log_target=True)

    def answers(
        self,
        model: nn.Module,
        features: Tensor,
        batch: Batch,
        k: int,
        max_new_tokens: int,
    ) -> Sequence[str]:
        """Greedy answers to each row's first question, decoded without special tokens and stripped."""
        prompt = prompts(batch, self.ids.pad)
        new_ids_BT = greedy(
            _own(model),
            features,
            prompt["input_ids"],
            prompt["attention_mask"],
            k,
            max_new_tokens,
            stop_ids=(self.ids.eos,),
            pad_token_id=self.ids.pad,
        )
        return [text.strip() for text in self.tokenizer.batch_decode(new_ids_BT, skip_special_tokens=True)]

    def warmup_head(self, config: RunConfig[Any]) -> nn.Module | None:
        """No warm-up of the tower unless the workload has one."""
        return None

    def warmup_loss(self, head: nn.Module, features: Tensor, batch: Batch) -> tuple[Tensor, int]:
        """Refused: a workload with a `tower` objective overrides this."""
        raise ValueError(
            "this workload has no warm-up task for the vision tower; drop the stage with objective 'tower'"
        )

    def export(
        self, model: nn.Module, config: RunConfig[Any], folder: str, trained_counts: Sequence[int] | None = None
    ) -> None:
        """Write the Hugging Face folder; ids it generates are those that evaluation gave.

        Card, configuration and the processor's default tell the counts that were trained (None: the schedule's).
        """
        own = _own(model)
        if trained_counts is not None:
            own.config.counts = list(trained_counts)
        card = self.card(own.config, config)
        export(own, self.tokenizer, folder, card, self.mean, self.std, self.image_token)

    def load(self, folder: str) -> TokendialForConditionalGeneration:
        """Read an exported folder through our own classes, in evaluation mode."""
        return load(folder)

    def describe(
        self,
        folder: str,
        config: RunConfig[Any],
        quality: Mapping[int, float],
        cost_flops: Mapping[int, float],
        digests: Mapping[str, str],
        commit: str,
    ) -> None:
        """Write the card of an exported folder anew, now that the model is scored."""
        known = self.card(TokendialConfig.from_pretrained(folder), config)
        scored = replace(known, curve=quality, cost_flops=cost_flops, digests=digests, commit=commit)
        (Path(folder) / "README.md").write_text(card_text(scored), "utf-8")

    def card(self, model: TokendialConfig, config: RunConfig[Any]) -> Card:
        """What is known of the model before it is scored."""
        return Card(
            title=config.experiment,
            licence=self.licence,
            attribution=self.attribution,
            question=self.question,
            metric=self.metric,
            projector=model.projector,
            trained_counts=tuple(model.counts),
            admissible_counts=model.admissible_counts,
        )


def _own(model: nn.Module) -> TokendialForConditionalGeneration:
    assert isinstance(model, TokendialForConditionalGeneration), f"got a {type(model).__name__}"
    return model


def _prefix_mask(batch: Batch, image_token_id: int, valid_B: Tensor) -> Tensor:
    """The attention mask with each row's visual tokens from valid_B[b] on switched off."""
    is_image_BM = batch["input_ids"] == image_token_id
    rank_BM = is_image_BM.long().cumsum(1)
    return batch["attention_mask"] * (~is_image_BM | (rank_BM <= valid_B[:, None]))
