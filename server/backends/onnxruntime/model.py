"""Python-based `onnxruntime` backend: serves every model whose config says `backend: "onnxruntime"`."""

import json
from pathlib import Path

import triton_python_backend_utils as pb_utils

from medimage_server import heartbeat
from medimage_server.errors import error_response
from medimage_server.onnx_backend import OnnxModel
from medimage_server.onnx_settings import ModelLoadError


class TritonPythonModel:
    def initialize(self, args):
        heartbeat.start()
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
        try:
            tensors = [{tensor.name(): tensor.as_numpy() for tensor in request.inputs()} for request in requests]
            answers = self.model.run(tensors)
            return [_response(request, answer) for request, answer in zip(requests, answers, strict=True)]
        except Exception as error:  # what leaves execute fails the whole batch, and hands its text to every caller
            return [error_response(pb_utils, request, error) for request in requests]


def _response(request, answer):
    if isinstance(answer, Exception):
        return error_response(pb_utils, request, answer)
    return pb_utils.InferenceResponse([pb_utils.Tensor(name, values) for name, values in answer.items()])
