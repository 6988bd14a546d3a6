"""An answer's text as its ids come: whole characters only, ended before the first stop string."""

from collections.abc import Callable, Sequence


class Writing:
    """Turns ids into pieces of text. What may be the beginning of a stop string is held back until it is not one."""

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stop = tuple(text for text in stop if text)
        self._ids: list[int] = []
        # Ids before `_from` are written out; those up to `_upto` too, but are decoded again: words join by context.
        self._from = self._upto = 0
        self._held = ""
        self.stopped = False

    def push(self, index: int) -> str:
        """The text that is certain now; `stopped` where a stop string ended it."""
        self._ids.append(index)
        before = self._decode(self._ids[self._from : self._upto])
        after = self._decode(self._ids[self._from :])
        # A replacement character at the end is most often the first bytes of a character to come.
        if after.endswith("\ufffd"):
            return ""
        self._from, self._upto = self._upto, len(self._ids)
        return self._release(after[len(before) :])

    def finish(self) -> str:
        """What is still held back when generation ends by itself."""
        before = self._decode(self._ids[self._from : self._upto])
        rest = self._release(self._decode(self._ids[self._from :])[len(before) :])
        held, self._held = ("" if self.stopped else self._held), ""
        return rest + held

    def _release(self, text: str) -> str:
        if not self._stop:
            return text
        self._held += text
        found = [at for at in (self._held.find(stop) for stop in self._stop) if at >= 0]
        if found:
            certain, self._held, self.stopped = self._held[: min(found)], "", True
            return certain
        kept = max(_overlap(self._held, stop) for stop in self._stop)
        certain, self._held = self._held[: len(self._held) - kept], self._held[len(self._held) - kept :]
        return certain


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of `text` that begin `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
