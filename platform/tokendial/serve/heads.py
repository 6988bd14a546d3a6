"""Limits that neither Ray Serve's proxy nor uvicorn has: on open connections, and on a request head's time and size."""

import asyncio
import json
import os
from typing import cast

import uvicorn.config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tokendial.serve.schema import problem

HEAD_S = 10.0
# The endpoint's own limit on headers is smaller; this one bounds what is held before they can be counted.
MOST_BYTES = 65_536
MOST_CONNECTIONS = 4096
SETTING = "TOKENDIAL_MAX_CONNECTIONS"


def _answer(status: int, reason: str, message: str, header: str = "") -> bytes:
    body = json.dumps(problem(status, message))
    head = f"HTTP/1.1 {status} {reason}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n{header}"
    return f"{head}connection: close\r\n\r\n{body}".encode()


_SLOW = _answer(408, "Request Timeout", "the request's head did not arrive in time")
_LARGE = _answer(431, "Request Header Fields Too Large", f"the request's head has more than {MOST_BYTES} bytes")
_CROWDED = _answer(
    503, "Service Unavailable", "the server has as many connections as it takes; try again", "retry-after: 1\r\n"
)


class TimelyProtocol(HttpToolsProtocol):
    """uvicorn's HTTP connection; it hangs up where there are too many of them, and where a head is too large.

    So it does where a head is not whole `head_s` after it began, or after connecting.
    """

    head_s = HEAD_S
    most_connections = MOST_CONNECTIONS
    _timer: asyncio.TimerHandle | None = None
    _head_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast("asyncio.Transport", transport))
        if len(self.connections) > self.most_connections:
            self._hang_up(_CROWDED)
        else:
            self._expect_head()

    def data_received(self, data: bytes) -> None:
        head = self._timer
        super().data_received(data)
        # All of it was of the same head, which is not at its end.
        if head is not None and head is self._timer:
            self._head_bytes += len(data)
            if self._head_bytes > MOST_BYTES:
                self._hang_up(_LARGE)

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
            self._head_bytes = 0
            self._timer = self.loop.call_later(self.head_s, self._hang_up, _SLOW)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _hang_up(self, answer: bytes) -> None:
        # A second request may be at fault while the first one's answer is being sent.
        if self.cycle is None or self.cycle.response_complete:
            self.transport.write(answer)
        self.transport.close()


def install() -> None:
    """Make it what every uvicorn server of this process speaks unless it is told otherwise."""
    TimelyProtocol.most_connections = int(os.environ.get(SETTING, MOST_CONNECTIONS))
    uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{TimelyProtocol.__name__}"
