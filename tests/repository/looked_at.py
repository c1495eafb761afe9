"""A gRPC server in the place of Triton, as far as a look at it goes, and what watches it."""

import subprocess
from contextlib import closing, contextmanager
from types import SimpleNamespace

from tritonclient.grpc import service_pb2, service_pb2_grpc

from medimage_server.launcher import TritonServer
from medimage_server.listening import Ports
from tests.client.grpc_server import grpc_serving


class LookedAt(service_pb2_grpc.GRPCInferenceServiceServicer):
    """A Triton that is there, and ready when it is told."""

    def __init__(self):
        self.is_live, self.version = False, "2.51.0"

    def ServerLive(self, request, context):
        return service_pb2.ServerLiveResponse(live=self.is_live)

    def ServerMetadata(self, request, context):
        return service_pb2.ServerMetadataResponse(name="triton", version=self.version)


@contextmanager
def launched(triton, command=("sleep", "60")):
    """What has started `triton`, over a process that does nothing."""
    with grpc_serving(triton) as url:
        port = int(url.rpartition(":")[2])
        process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        run = SimpleNamespace(path=None, region_prefix="none-of-this-name-")
        served = SimpleNamespace(faults={}, configs={}, changed=list)
        with closing(TritonServer(process, Ports("127.0.0.1", port, port, None), run, served, ["a"], None)) as server:
            yield server
