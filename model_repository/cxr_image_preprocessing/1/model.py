"""Triton adapter of medimage_server.reports.chest_xray: `image` -> `pixels`."""

import json
from pathlib import Path

import triton_python_backend_utils as pb_utils

from medimage_server import heartbeat
from medimage_server.errors import error_response
from medimage_server.image_process import ImageProcess
from medimage_server.reports.chest_xray import ChestXrayPreprocessor, ChestXraySettings, OneChestXray


class TritonPythonModel:
    def initialize(self, args):
        heartbeat.start()
        config = json.loads(args["model_config"])
        parameters = {name: parameter["string_value"] for name, parameter in config["parameters"].items()}
        version_folder = Path(args["model_repository"]) / args["model_version"]
        try:
            settings = ChestXraySettings.read(parameters, version_folder / "preprocessing.json")
        except (OSError, ValueError) as error:
            raise pb_utils.TritonModelException(f"{args['model_name']}: {error}") from error
        one_image = OneChestXray(settings)
        self.process = ImageProcess(one_image, one_image.shape)
        self.preprocess = ChestXrayPreprocessor(settings, self.process.run)

    def finalize(self):
        self.process.close()

    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        try:
            images = pb_utils.get_input_tensor_by_name(request, "image").as_numpy().reshape(-1)
            pixels = self.preprocess(images, request.is_cancelled)
        except Exception as error:
            return error_response(pb_utils, request, error)
        return pb_utils.InferenceResponse([pb_utils.Tensor("pixels", pixels)])
