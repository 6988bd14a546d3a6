"""A limit on the time that a client takes over a request's head, which neither Ray Serve's proxy nor uvicorn has."""

import asyncio
from typing import cast

import uvicorn.config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_S = 10.0
_TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class TimelyProtocol(HttpToolsProtocol):
    """uvicorn's HTTP connection; it hangs up where a head is not whole `head_s` after it began, or after connecting."""

    head_s = HEAD_S
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast("asyncio.Transport", transport))
        self._expect_head()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._expect_head()

    def on_headers_complete(self) -> None:
        self._stop_timer()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(self.head_s, self._hang_up)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _hang_up(self) -> None:
        # A second request may be late while the first one's answer is being sent.
        if self.cycle is None or self.cycle.response_complete:
            self.transport.write(_TOO_SLOW)
        self.transport.close()


def install() -> None:
    """Make it what every uvicorn server of this process speaks unless it is told otherwise."""
    uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{TimelyProtocol.__name__}"
