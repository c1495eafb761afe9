"""Tritons that are found by a name: `dns+grpc://name:8001` is one Triton at each address of the name.

So do a headless Service of Kubernetes and a scaled service of Compose name theirs. One that is added is found, and one
that is taken away is left, while the endpoint runs.
"""

import asyncio
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import SplitResult, urlsplit

from medimage_client.errors import InvalidInput
from medimage_client.wire.triton import SOCKET, Endpoint

DNS = "dns+"  # before a URL
SCHEMES = ("grpc", "http")  # without TLS, whose certificates are for names
LOOK_UP_LIMIT_S = 4.0


@dataclass(frozen=True, slots=True)
class TritonName:
    """A name, and how the Tritons at its addresses are asked."""

    parts: SplitResult

    @classmethod
    def parse(cls, url: str) -> Self:
        """`dns+grpc://name:port` or `dns+http://name:port`; without a port, Triton's default.

        Raises:
            InvalidInput: anything else.
        """
        bare = url.removeprefix(DNS)
        endpoint = Endpoint.parse(bare)
        if endpoint.scheme not in SCHEMES or bare.startswith(SOCKET):
            raise InvalidInput(
                "url is not dns+grpc://name:port or dns+http://name:port; Tritons with TLS are given one by one, by "
                "the names in their certificates"
            )
        return cls(urlsplit(f"{endpoint.scheme}://{endpoint.address}"))

    async def look_up(self) -> list[str]:
        """URLs of the Tritons, in order; none where the name has no address now, or none can be asked for."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(LOOK_UP_LIMIT_S):
                found = await loop.getaddrinfo(self.parts.hostname, self.parts.port, type=socket.SOCK_STREAM)
        except OSError:  # of which TimeoutError is one
            return []
        return self._urls(found)

    def look_up_now(self) -> list[str]:
        """The same where no event loop runs."""
        try:
            return self._urls(socket.getaddrinfo(self.parts.hostname, self.parts.port, type=socket.SOCK_STREAM))
        except OSError:
            return []

    def _urls(self, found: Iterable[tuple[Any, Any, Any, Any, tuple[Any, ...]]]) -> list[str]:
        hosts = sorted({f"[{address[0]}]" if ":" in address[0] else str(address[0]) for *_, address in found})
        return [self.parts._replace(netloc=f"{host}:{self.parts.port}").geturl() for host in hosts]


def tritons_now(urls: Iterable[str]) -> list[str]:
    """URLs of the Tritons that there are now, where some of `urls` may be names.

    Raises:
        InvalidInput: one begins with dns+ and is no such URL.
    """
    return [found for url in urls for found in (TritonName.parse(url).look_up_now() if url.startswith(DNS) else [url])]
