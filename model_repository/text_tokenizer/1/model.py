"""Triton adapter of medimage_server.text_tokenizer: `text` -> `input_ids`, `attention_mask`."""

from pathlib import Path

import triton_python_backend_utils as pb_utils

from medimage_server import heartbeat
from medimage_server.errors import error_response
from medimage_server.text_tokenizer import TextTokenizer


class TritonPythonModel:
    def initialize(self, args):
        heartbeat.start()
        version_folder = Path(args["model_repository"]) / args["model_version"]
        try:
            self.tokenize = TextTokenizer.from_file(version_folder / "tokenizer.json")
        except (OSError, ValueError) as error:
            raise pb_utils.TritonModelException(f"{args['model_name']}: {error}") from error

    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        try:
            texts = pb_utils.get_input_tensor_by_name(request, "text").as_numpy().reshape(-1)
            input_ids, attention_mask = self.tokenize(texts)
        except Exception as error:
            return error_response(pb_utils, request, error)
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor("input_ids", input_ids), pb_utils.Tensor("attention_mask", attention_mask)]
        )
