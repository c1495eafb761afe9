"""Names of several Tritons, against what this machine's own resolver says."""

import socket

import pytest

from medimage_client.errors import InvalidInput
from medimage_server.endpoint.discovery import TritonName, tritons_now


async def test_tritons_are_at_the_addresses_that_the_name_has():
    addresses = {address[0] for *_, address in socket.getaddrinfo("localhost", None)}
    hosts = sorted(f"[{address}]" if ":" in address else address for address in addresses)
    assert await TritonName.parse("dns+grpc://localhost:7001").look_up() == [f"grpc://{host}:7001" for host in hosts]
    assert tritons_now(["unix:/a", "dns+grpc://localhost"]) == ["unix:/a", *(f"grpc://{host}:8001" for host in hosts)]


def test_address_of_ipv6_and_path_of_http_stay_as_they_are():
    assert tritons_now(["dns+http://[::1]/triton"]) == ["http://[::1]:8000/triton"]


async def test_unknown_name_has_no_tritons():
    assert await TritonName.parse("dns+grpc://no-such-name.invalid:8001").look_up() == []
    assert tritons_now(["dns+grpc://no-such-name.invalid:8001"]) == []


def test_what_else_than_a_name_is_refused():
    with pytest.raises(InvalidInput, match=r"url is not dns\+grpc://name:port or dns\+http://name:port; .*TLS"):
        tritons_now(["dns+grpcs://localhost:8001"])
