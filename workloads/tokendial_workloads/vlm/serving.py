"""An exported model as a server runs it (contract: tokendial.contracts.serving.Serving).

Shapes: I images, N patches, C tower width, k visual tokens, D language width, B rows, L positions, V vocabulary.
"""

from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokendial.contracts.precision import on_device
from tokendial.contracts.serving import Message, Row
from tokendial_kernels.graph import CallGraph
from torch import Tensor
from transformers import DynamicCache

from tokendial_workloads.images import decode_image

from .export import load, load_processor
from .model import TokendialForConditionalGeneration
from .prompting import PromptWriter
from .slots import SlotCache


class VlmServing:
    """Tower, projector and language model on one device, in evaluation mode, with their slots."""

    def __init__(self, folder: str | Path, device: torch.device, dtype: torch.dtype, num_slots: int) -> None:
        self._model: TokendialForConditionalGeneration = on_device(load(folder), device, dtype)
        self._processor = load_processor(folder)
        self._writer = PromptWriter(self._processor)
        self._device, self._dtype = device, dtype
        language: Any = self._model.config.text_config
        kinds = set(getattr(language, "layer_types", None) or ["full_attention"])
        if kinds != {"full_attention"}:
            raise ValueError(
                f"the language model has layers of kind {', '.join(sorted(kinds))}; only full_attention can be served"
            )
        self.counts: Sequence[int] = self._model.config.admissible_counts
        self.context = _context(language)
        self._cache = SlotCache(num_slots, language.num_hidden_layers, device, self.context)
        width = getattr(language, "head_dim", None) or language.hidden_size // language.num_attention_heads
        heads = getattr(language, "num_key_value_heads", None) or language.num_attention_heads
        keys_and_values = 2 * language.num_hidden_layers * heads * width
        self._position_bytes = num_slots * keys_and_values * dtype.itemsize
        self.stop_ids: Collection[int] = _ids(self._model.generation_config.eos_token_id)
        self.device = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        never = _ids(self._model.generation_config.suppress_tokens)
        self._never = torch.tensor(sorted(never), dtype=torch.long, device=device)
        # Of single images, as many launches of little work each are what these wait for: None encodes, k projects to k.
        self._graphs: dict[int | None, CallGraph] = {}

    def bound(self, num_bytes: int) -> None:
        """Let the slots' keys and values take no more than this: `context` falls to the positions that fit."""
        self.context = self._cache.context = min(self.context, num_bytes // self._position_bytes)

    def image(self, content: bytes) -> Tensor:
        """Pixels [3, H, W]; ValueError where the file is not a whole image of an allowed kind and size."""
        return self._processor.image_processor(decode_image(content), return_tensors="pt")["pixel_values"][0]

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Ids with one placeholder an image; ValueError where the conversation cannot be written."""
        return self._writer.ids(messages)

    def text(self, ids: Sequence[int]) -> str:
        """Ids as text, without special tokens."""
        return self._processor.tokenizer.decode(list(ids), skip_special_tokens=True)

    @torch.inference_mode()
    def encode(self, pixels_I3HW: Tensor) -> Tensor:
        """Patch features [I, N, C]."""
        return self._single(None, pixels_I3HW.to(self._device, self._dtype), self._model.encode)

    @torch.inference_mode()
    def project(self, features_INC: Tensor, k: int) -> Tensor:
        """Visual tokens [I, k, D]; ValueError where k is not admissible."""
        return self._single(k, features_INC, partial(self._model.project, k=k))

    def captures(self, pixels: Tensor, counts: Sequence[int]) -> Sequence[Callable[[], None]]:
        """On CUDA a graph of the tower and one of the projector at each count, all for a single image."""
        if self._device.type != "cuda":
            return ()
        return tuple(partial(self._capture, pixels, count) for count in (None, *counts))

    @torch.inference_mode()
    def _capture(self, pixels_3HW: Tensor, count: int | None) -> None:
        pixels_13HW = pixels_3HW[None].to(self._device, self._dtype)
        if count is None:
            self._graphs[None] = CallGraph(self._model.encode, pixels_13HW)
        else:
            self._graphs[count] = CallGraph(partial(self._model.project, k=count), self._model.encode(pixels_13HW))

    def _single(self, key: int | None, tensor: Tensor, call: Callable[[Tensor], Tensor]) -> Tensor:
        """The call, by its graph where the tensor is of one image and there is one; never the graph's own buffer."""
        graph = self._graphs.get(key)
        return graph(tensor).clone() if graph is not None and tensor.shape[0] == 1 else call(tensor)

    @torch.inference_mode()
    def prefill(self, rows: Sequence[Row]) -> Tensor:
        """Logits [B, V] at each row's last position; the rows take the next free slots.

        Rows are padded on the right, where causal attention lets nothing look, so no mask is needed.
        """
        expanded = [_expanded(row, self._model.config.image_token_id) for row in rows]
        lengths = [len(ids) for ids in expanded]
        ids_BL = torch.zeros(len(rows), max(lengths), dtype=torch.long)
        for row, ids in enumerate(expanded):
            ids_BL[row, : len(ids)] = torch.tensor(ids)
        ids_BL = ids_BL.to(self._device)
        embeds_BLD = self._model.get_input_embeddings()(ids_BL)
        if visual := [tokens for row in rows for tokens in row.visual]:
            is_image_BL1 = (ids_BL == self._model.config.image_token_id)[..., None]
            embeds_BLD = embeds_BLD.masked_scatter(is_image_BL1, torch.cat(visual).to(embeds_BLD))
        prompt = DynamicCache(config=self._model.config.text_config)
        hidden_BLD = self._model.model.language_model(
            inputs_embeds=embeds_BLD,
            position_ids=torch.arange(max(lengths), device=self._device)[None].expand(len(rows), -1),
            cache=prompt,
            use_cache=True,
        ).last_hidden_state
        last_B = torch.tensor(lengths, device=self._device) - 1
        logits_BV = self._logits(hidden_BLD[torch.arange(len(rows), device=self._device), last_B])
        # Last, as slots that are taken must be told of: what fails before takes none.
        self._cache.fill(prompt, lengths)
        return logits_BV

    @torch.inference_mode()
    def decode(self, ids: Sequence[int]) -> Tensor:
        """Logits [n, V] after one more id in every occupied slot."""
        positions_n1, mask_n11M = self._cache.extend()
        ids_n1 = torch.tensor(ids, dtype=torch.long, device=self._device)[:, None]
        hidden_n1D = self._model.model.language_model(
            inputs_embeds=self._model.get_input_embeddings()(ids_n1),
            attention_mask=mask_n11M,
            position_ids=positions_n1,
            cache=self._cache,
            use_cache=True,
        ).last_hidden_state
        return self._logits(hidden_n1D[:, 0])

    @torch.inference_mode()
    def release(self, slots: Collection[int]) -> list[int]:
        """Free slots; for each that is still occupied, in order, the slot it was before."""
        return self._cache.release(slots)

    def _logits(self, hidden_BD: Tensor) -> Tensor:
        return self._model.lm_head(hidden_BD).float().index_fill(-1, self._never, -torch.inf)


def _context(language: Any) -> int:
    """Positions up to which a row's answer is that of full attention, and its own whoever else is in the batch."""
    bounds = [language.max_position_embeddings]
    # Where no layer has a type, a window holds for all of them; transformers' cache lets go of what has left it.
    if getattr(language, "layer_types", None) is None and (window := getattr(language, "sliding_window", None)):
        bounds.append(window - 1)
    # Past its original length one row turns all rows of the batch by the factors for long ones.
    if (rope := getattr(language, "rope_parameters", None) or {}).get("rope_type") == "longrope":
        bounds.append(rope["original_max_position_embeddings"])
    return min(bounds)


def _expanded(row: Row, image_id: int) -> list[int]:
    """The row's ids with as many placeholders for each image as it has tokens."""
    lengths = iter([tokens.shape[0] for tokens in row.visual])
    return [out for index in row.ids for out in ([index] * next(lengths) if index == image_id else [index])]


def _ids(given: int | Sequence[int] | None) -> frozenset[int]:
    if given is None:
        return frozenset()
    return frozenset((given,) if isinstance(given, int) else given)
