"""A Python model for Triton that answers nothing before its gate, a named pipe, has a writer.

It stands in for the text tokenizer (`text` -> zeros) and for any slow step, without a sleep.
"""

import json
import os

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.config = json.loads(args["model_config"])

    def execute(self, requests):
        with open(os.environ["MEDIMAGE_TEST_GATE"]):  # blocks until the test opens it for writing
            return [self._answer(request) for request in requests]

    def _answer(self, request):
        rows = len(request.inputs()[0].as_numpy())
        outputs = [
            pb_utils.Tensor(
                output["name"],
                np.zeros((rows, *output["dims"]), pb_utils.triton_string_to_numpy(output["data_type"])),
            )
            for output in self.config["output"]
        ]
        return pb_utils.InferenceResponse(outputs)
