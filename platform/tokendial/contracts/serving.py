"""What a workload offers a server: a loaded model taken apart into the steps that an endpoint batches.

Shapes: I images, N patches, C tower width, k visual tokens, D language width, B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Message(Protocol):
    """One turn of a conversation; `parts` are texts and indices into the request's images."""

    @property
    def role(self) -> str: ...

    @property
    def parts(self) -> Sequence[str | int]: ...


@dataclass(frozen=True, eq=False)
class Row:
    """A prompt ready for the language model: ids with one placeholder an image, and each image's tokens [k, D]."""

    ids: Sequence[int]
    visual: Sequence[Tensor]


class Serving(Protocol):
    """A model on its device with a cache of `num_slots` sequences; occupied slots are always 0 … n-1.

    `image` and `prompt` may be called from any thread, everything else from one thread only. Logits never favour a
    token that the model must not write.
    """

    @property
    def counts(self) -> Sequence[int]:
        """Every admissible count, rising."""
        ...

    @property
    def context(self) -> int:
        """Longest sequence, visual tokens included."""
        ...

    @property
    def stop_ids(self) -> Collection[int]:
        """Ids that end an answer."""
        ...

    @property
    def device(self) -> str:
        """Name of the device, for ladders."""
        ...

    def bound(self, num_bytes: int) -> None:
        """Keep what all slots hold within this: `context` falls to what then fits. Called before any slot is taken."""
        ...

    def image(self, content: bytes) -> Tensor:
        """Pixels [3, H, W] of an image file; ValueError, in one sentence, where it is not a whole and allowed one."""
        ...

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a conversation that awaits its answer, one placeholder an image; text never becomes a special token.

        ValueError where the conversation cannot be written.
        """
        ...

    def text(self, ids: Sequence[int]) -> str:
        """Ids as text, without special tokens."""
        ...

    def encode(self, pixels_I3HW: Tensor) -> Tensor:
        """Patch features [I, N, C]."""
        ...

    def project(self, features_INC: Tensor, k: int) -> Tensor:
        """Visual tokens [I, k, D] at an admissible count."""
        ...

    def captures(self, pixels: Tensor, counts: Sequence[int]) -> Sequence[Callable[[], None]]:
        """Calls, some tens of milliseconds each, after which single images of this shape are served faster at `counts`.

        They are made on the model's thread while it serves; one that raises leaves things as they were. May be empty.
        """
        ...

    def prefill(self, rows: Sequence[Row]) -> Tensor:
        """Put rows into the next free slots, in order; logits [B, V] of each row's first new token."""
        ...

    def decode(self, ids: Sequence[int]) -> Tensor:
        """Append one id to every occupied slot, in order; logits [n, V] of what follows."""
        ...

    def release(self, slots: Collection[int]) -> list[int]:
        """Free slots and close the gaps; for each slot still occupied, in order, the slot it was before."""
        ...
