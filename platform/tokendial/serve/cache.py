"""What was computed for images seen lately, bounded in bytes; the longest unused goes first."""

import threading
from collections import OrderedDict
from collections.abc import Hashable

from torch import Tensor


class TensorCache:
    """Tensors by key. Only one thread may rely on a key still being there after it asked."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held: OrderedDict[Hashable, Tensor] = OrderedDict()
        self._lock = threading.Lock()
        self.num_bytes = self.hits = self.misses = 0

    def __contains__(self, key: Hashable) -> bool:
        with self._lock:
            return key in self._held

    def get(self, key: Hashable) -> Tensor | None:
        with self._lock:
            found = self._held.get(key)
            if found is None:
                self.misses += 1
            else:
                self.hits += 1
                self._held.move_to_end(key)
            return found

    def put(self, key: Hashable, tensor: Tensor) -> None:
        """Keep a tensor, if it fits at all; what shares its storage with others is copied off."""
        if tensor.nbytes > self._max_bytes:
            return
        if tensor.untyped_storage().nbytes() > tensor.nbytes:
            tensor = tensor.clone()
        with self._lock:
            if (old := self._held.pop(key, None)) is not None:
                self.num_bytes -= old.nbytes
            self._held[key] = tensor
            self.num_bytes += tensor.nbytes
            while self.num_bytes > self._max_bytes:
                self.num_bytes -= self._held.popitem(last=False)[1].nbytes
