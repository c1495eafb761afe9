"""Triton adapter of medimage_server.text_tokenizer: `text` -> `input_ids`, `attention_mask`."""

import traceback
from pathlib import Path

import triton_python_backend_utils as pb_utils

from medimage_server.errors import InvalidInput
from medimage_server.text_tokenizer import TextTokenizer


class TritonPythonModel:
    def initialize(self, args):
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
        except InvalidInput as error:
            return refusal(str(error), pb_utils.TritonError.INVALID_ARG)
        except Exception as error:
            # type and place, but not the error's text, which may quote the input
            where = "".join(traceback.format_tb(error.__traceback__))
            pb_utils.Logger.log_error(f"request {request.request_id()}: {type(error).__name__}\n{where}")
            return refusal("internal error", pb_utils.TritonError.INTERNAL)
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor("input_ids", input_ids), pb_utils.Tensor("attention_mask", attention_mask)]
        )


def refusal(message, code):
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
