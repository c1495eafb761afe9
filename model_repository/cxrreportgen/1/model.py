"""Triton adapter of medimage_server.reports.collected_answers: a study -> its whole report."""

import json

import triton_python_backend_utils as pb_utils

from medimage_server import heartbeat
from medimage_server.image_requests import positive
from medimage_server.reports.collected_answers import CollectedAnswers


class TritonPythonModel:
    def initialize(self, args):
        heartbeat.start()
        config = json.loads(args["model_config"])
        parameters = {name: parameter["string_value"] for name, parameter in config["parameters"].items()}
        try:
            self.answers = CollectedAnswers(pb_utils, positive(parameters, "max_requests"))
        except ValueError as error:
            raise pb_utils.TritonModelException(f"{args['model_name']}: {error}") from error

    def execute(self, requests):
        """Hand the requests over; they are answered by threads of their own, from which this returns at once."""
        for request in requests:
            self.answers.add(request, json.loads(request.parameters()))

    def finalize(self):
        self.answers.close()
