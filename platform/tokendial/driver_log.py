"""The driver's own log file of a run, beside those of its ranks: what it did, and warnings of all of tokendial."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokendial.progress import detail

NAME = "driver"
LINE_EVERY_S = 30.0
Progress = Callable[[Mapping[str, Any]], None]


@contextmanager
def driver_log(folder: Path, progress: Progress) -> Iterator[Progress]:
    """A progress function that also writes to `folder/driver.log`: each stage, and a line every half minute."""
    folder.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(folder / f"{NAME}.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger("tokendial")
    before, last = root.level, logging.lastResort
    # With a handler of its own, a logger's warnings would no longer reach stderr by themselves.
    handlers = [handler] if root.hasHandlers() or last is None else [handler, last]
    for added in handlers:
        root.addHandler(added)
    root.setLevel(logging.INFO)
    written: dict[str, Any] = {"at": -LINE_EVERY_S, "stage": None}

    def log(latest: Mapping[str, Any]) -> None:
        progress(latest)
        now, stage = time.monotonic(), latest.get("stage")
        if stage == written["stage"] and now - written["at"] < LINE_EVERY_S:
            return
        written.update(at=now, stage=stage)
        place = f" {latest['step']}/{latest['total']}" if "total" in latest else ""
        logging.getLogger("tokendial.driver").info("%s", f"{stage}{place} {detail(latest)}".rstrip())

    try:
        yield log
    except BaseException as error:
        # For the file only: the command itself says it on stderr.
        said = ("tokendial.driver", logging.ERROR, __file__, 0, "%s: %s", (type(error).__name__, error), None)
        handler.handle(logging.LogRecord(*said))
        raise
    finally:
        for added in handlers:
            root.removeHandler(added)
        root.setLevel(before)
        handler.close()
