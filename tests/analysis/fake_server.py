"""A Triton of this process that commands in other processes can ask, with the answers of `FakeTriton`."""

import asyncio
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Lock

import numpy as np
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc
from tritonclient.utils import deserialize_bytes_tensor

from medimage_client.wire.transport import Call
from tests.client.fake_triton import FakeTriton
from tests.client.grpc_server import grpc_serving


class Servicer(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Counts the rows that it is asked for; holds its answers while `go_on` is not set."""

    def __init__(self) -> None:
        self.n_rows = 0
        self.go_on = Event()
        self.go_on.set()
        self.told = FakeTriton().told
        self._lock = Lock()

    def ServerMetadata(self, request, context):
        return service_pb2.ServerMetadataResponse(version="2.60.0")

    def ModelConfig(self, request, context):
        parameters = {
            name: model_config_pb2.ModelParameter(string_value=value) for name, value in self.told[request.name].items()
        }
        return service_pb2.ModelConfigResponse(config=model_config_pb2.ModelConfig(parameters=parameters))

    def ModelInfer(self, request, context):
        values = deserialize_bytes_tensor(request.raw_input_contents[0]).reshape(-1, 1)
        names = [output.name for output in request.outputs]
        call = Call(request.model_name, {request.inputs[0].name: values}, names, {})
        outputs = asyncio.run(FakeTriton().infer(call, timeout=1))
        with self._lock:
            self.n_rows += len(values)
        self.go_on.wait()
        answer = service_pb2.ModelInferResponse(model_name=request.model_name)
        for name in names:
            array = np.ascontiguousarray(outputs[name], np.float32)
            answer.outputs.add(name=name, datatype="FP32", shape=array.shape)
            answer.raw_output_contents.append(array.tobytes())
        return answer


@contextmanager
def fake_server(port: int = 0) -> Iterator[tuple[str, Servicer]]:
    """Its url, and what it does."""
    servicer = Servicer()
    with grpc_serving(servicer, port) as url:
        try:
            yield url, servicer
        finally:
            servicer.go_on.set()


if __name__ == "__main__":  # a process that can be killed; its argument is the port
    with fake_server(int(sys.argv[1])) as (address, _):
        print("ready:", address, flush=True)  # noqa: T201
        signal.pause()
