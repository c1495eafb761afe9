"""Triton adapter of medimage_server.reports.generator: a study -> its report, as it is written."""

import json
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

from medimage_server import heartbeat
from medimage_server.bls import infer
from medimage_server.exported import report_model
from medimage_server.onnx_settings import ModelLoadError, cuda_options
from medimage_server.reports.generator import GeneratorSettings, ReportGenerator, StudyRequest
from medimage_server.reports.metrics import ReportMetrics
from medimage_server.reports.streamed_answer import StreamedAnswer


class TritonPythonModel:
    def initialize(self, args):
        heartbeat.start()
        config = json.loads(args["model_config"])
        parameters = {name: parameter["string_value"] for name, parameter in config["parameters"].items()}
        version_folder = Path(args["model_repository"]) / args["model_version"]
        try:
            self.generator = ReportGenerator(
                version_folder,
                GeneratorSettings.read(parameters),
                encode_images,
                kind=args["model_instance_kind"],
                device_id=int(args["model_instance_device_id"]),
                cuda_options=cuda_options(config),
            )
        except ModelLoadError as error:  # names the model
            raise pb_utils.TritonModelException(str(error)) from error
        except (OSError, ValueError) as error:
            raise pb_utils.TritonModelException(f"{args['model_name']}: {error}") from error
        self.model = report_model(version_folder)
        self.metrics = ReportMetrics(pb_utils, self.generator.scheduler, {"instance": args["model_instance_name"]})

    def execute(self, requests):
        """Hand the requests over; they are answered by the generator's threads, from which this returns at once."""
        for request in requests:
            parameters = json.loads(request.parameters())
            answer = StreamedAnswer(pb_utils, request, parameters, model=self.model)
            try:
                tensors = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
                self.generator.submit(StudyRequest.from_tensors(tensors, parameters), answer)
            except Exception as error:
                answer.fail(error)

    def finalize(self):
        self.generator.close()
        self.metrics.close()


def encode_images(images):
    column = np.array([[image] for image in images], dtype=object)
    pixels = infer(pb_utils, "cxr_image_preprocessing", {"image": column}, "pixels")
    return infer(pb_utils, "cxr_image_encoder", {"pixels": pixels}, "image_tokens")
