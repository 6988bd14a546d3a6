"""From what the operator said to an open endpoint. Bad input ends here, before Ray is started."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from types import FrameType, TracebackType
from typing import Any, Self

from tokendial import environment, runs
from tokendial.experiments import ConfigError
from tokendial.serve.backend import Served
from tokendial.serve.keep import Keeper, Say, keep
from tokendial.serve.keys import key_store
from tokendial.serve.options import ServeSettings, serve_settings
from tokendial.serve.source import locate
from tokendial.tracking import resolve_uri


class OpenEndpoint:
    """An endpoint that answers; `wait` keeps it until SIGINT or SIGTERM, leaving the context closes it."""

    def __init__(self, keeper: Keeper, served: Served, url: str, settings: ServeSettings, keys: bool) -> None:
        self._keeper, self._settings = keeper, settings
        self.url = url
        self.about: Mapping[str, Any] = {
            "url": url, "model": served.name, "version": served.version, "counts": list(served.counts),
            "suggested": suggested(served), "keys": keys,
        }  # fmt: skip

    def wait(self) -> None:
        """Follow the alias until told to stop, be it in the midst of a change, then close."""
        before: dict[signal.Signals, Any] = {}

        def told(_signal: int, _frame: FrameType | None) -> None:
            # Another one would cut the end short.
            for each in before:
                signal.signal(each, signal.SIG_IGN)
            # Ray and asyncio let it through wherever they wait.
            raise KeyboardInterrupt

        try:
            for each in (signal.SIGINT, signal.SIGTERM):
                before[each] = signal.signal(each, told)
            keep(self._keeper, self._settings.follow_s)
        except KeyboardInterrupt:
            pass
        finally:
            self.close()
            for each, handler in before.items():
                signal.signal(each, handler)

    def look(self) -> None:
        """Follow the alias once, now."""
        self._keeper.look()

    def close(self) -> None:
        self._keeper.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def suggested(served: Served) -> int:
    """The smallest count whose quality is within two points of the best: what an example should show."""
    best = max(rung.quality for rung in served.rungs)
    return min(rung.count for rung in served.rungs if rung.quality >= best - 0.02)


def start(
    model: str | None, overrides: Sequence[str], tracking_uri: str | None, image_hosts: Sequence[str] | None, say: Say
) -> OpenEndpoint:
    """Open an endpoint on a model; raises ConfigError for bad input and WorkFailed where the model does not start."""
    settings = serve_settings(overrides, image_hosts=image_hosts)
    store = key_store()
    keyed = settings.keys or not settings.on_loopback
    if keyed and not store.any():
        why = "keys = true" if settings.keys else f"host = {settings.host!r}, which is not loopback,"
        raise ConfigError(f"{why} needs a key, and there is none: `tokendial keys add NAME` makes one")
    uri = resolve_uri(tracking_uri, runs.home())
    source, followed = locate(model, uri, settings.name)
    environment.apply()
    # Imports ray, which bad input need not wait for.
    from tokendial.serve.application import Endpoint, connect

    ours = connect()
    endpoint = Endpoint(settings, str(store.file) if keyed else None, ours, uri)
    keeper = Keeper(endpoint, followed, say)
    try:
        served = keeper.open(source)
    except BaseException:
        endpoint.give_up()
        raise
    return OpenEndpoint(keeper, served, endpoint.url, settings, keyed)
