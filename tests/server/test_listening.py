"""When Triton counts as listening: on all of its ports or sockets, of which it opens that of gRPC first."""

import socket
from contextlib import closing

import pytest

from medimage_server.listening import Ports, Sockets, choose_ports


@pytest.mark.parametrize("with_http", [True, False])
def test_ports_are_open_once_each_of_them_is(with_http):
    wanted = ["grpc", "http", "metrics"] if with_http else ["grpc", "metrics"]
    chosen = choose_ports("127.0.0.1", dict.fromkeys(wanted, 0))
    ports, listeners = Ports("127.0.0.1", **{"http": None, **chosen}), []
    try:
        for name in wanted:
            assert not ports.is_open()
            listeners.append(socket.create_server(("127.0.0.1", chosen[name])))
        assert ports.is_open()
    finally:
        for listener in listeners:
            listener.close()


def test_sockets_are_open_once_both_are(tmp_path):
    sockets = Sockets(tmp_path)
    with closing(socket.socket(socket.AF_UNIX)) as grpc, closing(socket.socket(socket.AF_UNIX)) as metrics:
        for listener, url in ((grpc, sockets.url), (metrics, sockets.metrics_url)):
            assert not sockets.is_open()
            listener.bind(url.removeprefix("unix:"))
            listener.listen()
        assert sockets.is_open()
