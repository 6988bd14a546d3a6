"""Images by URL: off unless hosts are allowed by name, and then https only, from public addresses, without redirects.

The host is resolved once, every address it has must be public, and the connection goes to one of those addresses, so
a name that answers differently the second time gains nothing. Certificates are checked against the name. Size and time
are capped; proxies and credentials of the environment are not used.
"""

import asyncio
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from tokendial.serve.options import HOST
from tokendial.serve.request import BadRequest

SETTING = "--allow-image-host"
VISIBLE = re.compile(r"[!-~]+")
TIMEOUT_S = 10.0

Addresses = Callable[[str], Awaitable[Sequence[str]]]


def allowed_host(url: str, hosts: frozenset[str]) -> str:
    """The host of a URL that may be fetched; raises ValueError that says why it may not be."""
    if not hosts:
        raise ValueError(f"images by URL are off; send a data URI, or start the server with {SETTING} HOST")
    # Anything a URL parser could read in two ways is refused: spaces, controls, backslashes, credentials.
    if not VISIBLE.fullmatch(url) or "\\" in url:
        raise ValueError("the URL has characters that must be percent-encoded")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError("the URL cannot be read") from None
    if parts.scheme != "https" or not url.lower().startswith("https://"):
        raise ValueError("the URL must begin with https://")
    if "@" in parts.netloc or port not in (None, 443) or parts.netloc.endswith(":"):
        raise ValueError("the URL must name a host alone: no user, no port")
    host = parts.netloc.partition(":")[0].lower()
    if not HOST.fullmatch(host) or host.rpartition(".")[2].isdigit():
        raise ValueError("the URL's host must be a full domain name")
    if host not in hosts:
        raise ValueError(f"host {host!r} is not allowed; the server was started with {', '.join(sorted(hosts))}")
    return host


def public(address: str) -> bool:
    """Whether an address is on the public internet, also where it is written inside an IPv6 address."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo or (None, None))[1]
        # NAT64 and the deprecated ::a.b.c.d carry an IPv4 address in the last 32 bits.
        if found in ipaddress.ip_network("64:ff9b::/96") or int(found) < 2**32:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        # fec0::/10 was made for private use once and passes for global in Python.
        if found.is_site_local or (inner is not None and not public(str(inner))):
            return False
    return found.is_global and not found.is_multicast and not found.is_reserved


async def addresses(host: str) -> list[str]:
    """What the system's resolver says."""
    found = await asyncio.get_running_loop().getaddrinfo(host, 443, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


class _Pinned(AbstractResolver):
    """Answers with addresses that were vetted, for one host only."""

    def __init__(self, host: str, vetted: Sequence[str]) -> None:
        self._host, self._vetted = host, vetted

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        assert host == self._host
        return [
            {
                "hostname": host, "host": address, "port": port, "proto": 0,
                "family": socket.AF_INET6 if ":" in address else socket.AF_INET,
                "flags": socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            }
            for address in self._vetted
        ]  # fmt: skip

    async def close(self) -> None:
        return None


async def fetch(
    where: str,
    url: str,
    hosts: frozenset[str],
    max_bytes: int,
    resolve: Addresses = addresses,
    timeout_s: float = TIMEOUT_S,
    **connector: Any,
) -> bytes:
    """The image at a URL; raises BadRequest naming the field `where`.

    Args:
        hosts: the names that may be fetched from; empty: none.
        resolve: addresses of a host name.
        connector: further arguments of aiohttp's connector, such as `ssl`.
    """
    try:
        host = allowed_host(url, hosts)
        async with asyncio.timeout(timeout_s):
            return await _read(url, host, max_bytes, resolve, connector)
    except TimeoutError:
        raise BadRequest(f"{where}.url", f"the image did not arrive within {timeout_s:g} s") from None
    # Before ValueError, which some of these are too, with more in their text than a stranger should read.
    except (aiohttp.ClientError, OSError) as error:
        raise BadRequest(f"{where}.url", f"the image cannot be fetched: {type(error).__name__}") from None
    except ValueError as error:
        raise BadRequest(f"{where}.url", str(error)) from None


async def _read(url: str, host: str, max_bytes: int, resolve: Addresses, connector: dict[str, Any]) -> bytes:
    vetted = list(await resolve(host))
    if not vetted or not all(public(address) for address in vetted):
        raise ValueError(f"host {host!r} has an address that is not public")
    pinned = aiohttp.TCPConnector(resolver=_Pinned(host, vetted), use_dns_cache=False, force_close=True, **connector)
    headers = {"Accept": "image/*", "Accept-Encoding": "identity", "User-Agent": "tokendial"}
    async with (
        aiohttp.ClientSession(connector=pinned, trust_env=False, auto_decompress=False, headers=headers) as session,
        session.get(url, allow_redirects=False, max_line_size=8190) as answer,
    ):
        if answer.status != 200:
            raise ValueError(f"the image's host answered {answer.status}; redirects are not followed")
        content = bytearray()
        async for piece in answer.content.iter_chunked(65_536):
            content += piece
            if len(content) > max_bytes:
                raise ValueError(f"the image has more than {max_bytes} bytes")
    return bytes(content)
