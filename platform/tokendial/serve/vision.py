"""Images to visual tokens, each computed once: encoder outputs by image, projected tokens by image and count.

Shapes: I images, N patches, C tower width, k visual tokens, D language width.
"""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from tokendial.contracts.serving import Serving
from tokendial.serve.cache import TensorCache
from tokendial.serve.job import Job

_IMAGES = 32  # encoded in one pass, which bounds memory


def digest_of(content: bytes) -> str:
    """The key that an image is cached by: the digest of its file."""
    return hashlib.sha256(content).hexdigest()


def _recorded() -> torch.cuda.Event | None:
    """A mark among what this process has the GPU do; None where it uses none."""
    if not torch.cuda.is_initialized():
        return None
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


class Vision:
    """Tower and projector of one served model behind a cache."""

    def __init__(self, serving: Serving, cache: TensorCache) -> None:
        self._serving, self._cache = serving, cache

    def pixels(self, content: bytes) -> tuple[str, Tensor]:
        """Digest and pixels [3, H, W] of an image file; ValueError where it is not admissible. From any thread."""
        digest = digest_of(content)
        found = self._cache.get((digest, "pixels"))
        if found is None:
            found = self._serving.image(content)
            self._cache.put((digest, "pixels"), found)
        return digest, found

    def tokens(self, jobs: Sequence[Job]) -> tuple[list[list[Tensor]], Callable[[], float]]:
        """Visual tokens [k, D] of each job's images, and the clock's reading when all encoding was done.

        On a GPU encoding is only begun here; its reading is to be had once the device was waited for.
        """
        keys = [key for job in jobs for key in zip(job.digests, job.counts, strict=True)]
        found = {key: held for key in dict.fromkeys(keys) if (held := self._cache.get(key)) is not None}
        missing = [key for key in dict.fromkeys(keys) if key not in found]
        pixels = {digest: held for job in jobs for digest, held in zip(job.digests, job.pixels, strict=True)}
        began, first = time.monotonic(), _recorded()
        features = self._features({digest: pixels[digest] for digest, _ in missing})
        ended, last = time.monotonic(), _recorded()
        for count in sorted({count for _, count in missing}):
            digests = [digest for digest, of in missing if of == count]
            tokens_IkD = self._serving.project(torch.stack([features[digest] for digest in digests]), count)
            for digest, tokens_kD in zip(digests, tokens_IkD, strict=True):
                found[digest, count] = tokens_kD
                self._cache.put((digest, count), tokens_kD)

        def encoded() -> float:
            return ended if first is None or last is None else began + 1e-3 * first.elapsed_time(last)

        return [[found[key] for key in zip(job.digests, job.counts, strict=True)] for job in jobs], encoded

    def _features(self, pixels: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Features [N, C] by digest."""
        found = {digest: held for digest in pixels if (held := self._cache.get((digest, "features"))) is not None}
        fresh = [digest for digest in pixels if digest not in found]
        for start in range(0, len(fresh), _IMAGES):
            digests = fresh[start : start + _IMAGES]
            features_INC = self._serving.encode(torch.stack([pixels[digest] for digest in digests]))
            for digest, features_NC in zip(digests, features_INC, strict=True):
                found[digest] = features_NC
                self._cache.put((digest, "features"), features_NC)
        return found
