"""A gRPC server in the place of Triton, as far as a look at it goes, and what watches it."""

import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from types import SimpleNamespace

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from medimage_server.launcher import TritonServer
from medimage_server.listening import Ports


class LookedAt(service_pb2_grpc.GRPCInferenceServiceServicer):
    """A Triton that is there, and ready when it is told."""

    def __init__(self):
        self.is_live, self.version = False, "2.51.0"

    def ServerLive(self, request, context):
        return service_pb2.ServerLiveResponse(live=self.is_live)

    def ServerMetadata(self, request, context):
        return service_pb2.ServerMetadataResponse(name="triton", version=self.version)


@contextmanager
def launched(triton):
    """What has started `triton`, over a process that does nothing."""
    listener = grpc.server(ThreadPoolExecutor(2))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(triton, listener)
    port = listener.add_insecure_port("127.0.0.1:0")
    listener.start()
    try:
        process = subprocess.Popen(["sleep", "60"], stdin=subprocess.PIPE, start_new_session=True)
        run = SimpleNamespace(path=None, region_prefix="none-of-this-name-")
        served = SimpleNamespace(faults={}, configs={}, changed=list)
        ports = Ports("127.0.0.1", port, port, None)
        with closing(TritonServer(process, ports, run, served, ["a"], None)) as server:
            yield server
    finally:
        listener.stop(grace=None).wait()
