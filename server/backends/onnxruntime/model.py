"""Python-based `onnxruntime` backend: serves every model whose config says `backend: "onnxruntime"`."""

import json
from pathlib import Path

import triton_python_backend_utils as pb_utils

from medimage_server.errors import InvalidInput
from medimage_server.onnx_backend import ModelLoadError, OnnxModel


class TritonPythonModel:
    def initialize(self, args):
        try:
            self.model = OnnxModel(
                json.loads(args["model_config"]),
                Path(args["model_repository"], args["model_version"]),
                kind=args["model_instance_kind"],
                device_id=int(args["model_instance_device_id"]),
            )
        except ModelLoadError as error:
            raise pb_utils.TritonModelException(str(error)) from None

    def execute(self, requests):
        tensors = [{tensor.name(): tensor.as_numpy() for tensor in request.inputs()} for request in requests]
        return [_response(answer) for answer in self.model.run(tensors)]


def _response(answer):
    if isinstance(answer, InvalidInput):
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(answer), pb_utils.TritonError.INVALID_ARG))
    if isinstance(answer, Exception):
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(answer), pb_utils.TritonError.INTERNAL))
    return pb_utils.InferenceResponse([pb_utils.Tensor(name, values) for name, values in answer.items()])
