"""The driver's own log file of a run, beside those of its ranks: what it did, and its warnings of all of tokendial."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tokendial.progress import detail

NAME = "driver"
LINE_EVERY_S = 30.0
Progress = Callable[[Mapping[str, Any]], None]

# The open files of this process, each with its driver's thread, and what is undone when the last of them is closed.
_open: dict[logging.Handler, int] = {}
_undo = ExitStack()
_lock = threading.Lock()


@contextmanager
def driver_log(folder: Path, progress: Progress) -> Iterator[Progress]:
    """A progress function that also writes to `folder/driver.log`: each stage, and a line every half minute.

    Drivers may run beside each other, a thread each: a file has its own driver's lines, and those of no driver.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(folder / f"{NAME}.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handler.addFilter(lambda record: _is_of(record, handler))
    written: dict[str, Any] = {"at": -LINE_EVERY_S, "stage": None}

    def log(latest: Mapping[str, Any]) -> None:
        progress(latest)
        now, stage = time.monotonic(), latest.get("stage")
        if stage == written["stage"] and now - written["at"] < LINE_EVERY_S:
            return
        written.update(at=now, stage=stage)
        place = f" {latest['step']}/{latest['total']}" if "total" in latest else ""
        line = f"{stage}{place} {detail(latest)}".rstrip()
        # Progress is told of by other threads than the driver's.
        logging.getLogger("tokendial.driver").info("%s", line, extra={"driver": handler})

    _add(handler)
    try:
        yield log
    except BaseException as error:
        # For the file only: the command itself says it on stderr.
        said = ("tokendial.driver", logging.ERROR, __file__, 0, "%s: %s", (type(error).__name__, error), None)
        handler.handle(logging.LogRecord(*said))
        raise
    finally:
        _remove(handler)
        handler.close()


def _is_of(record: logging.LogRecord, handler: logging.Handler) -> bool:
    driver = getattr(record, "driver", None)
    if driver is not None:
        return driver is handler
    return record.thread == _open.get(handler) or record.thread not in _open.values()


def _add(handler: logging.Handler) -> None:
    root, last = logging.getLogger("tokendial"), logging.lastResort
    with _lock:
        if not _open:
            _undo.callback(root.setLevel, root.level)
            root.setLevel(logging.INFO)
            # With a handler of its own, a logger's warnings would no longer reach stderr by themselves.
            if not root.hasHandlers() and last is not None:
                root.addHandler(last)
                _undo.callback(root.removeHandler, last)
        _open[handler] = threading.get_ident()
        root.addHandler(handler)


def _remove(handler: logging.Handler) -> None:
    with _lock:
        logging.getLogger("tokendial").removeHandler(handler)
        del _open[handler]
        if not _open:
            _undo.close()
