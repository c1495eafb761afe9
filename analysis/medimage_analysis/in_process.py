"""The model in this process, computed by ONNX Runtime from an exported repository: what Triton would serve of it.

It takes the preprocessing, the tokenizer and the sessions of the package `medimage_server`, and its configs.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from google.protobuf import json_format  # type: ignore[import-untyped]  # protobuf carries no types
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup

from medimage_analysis.bulk import Server
from medimage_analysis.served import PREPROCESSING, model_of
from medimage_analysis.table import Model
from medimage_analysis.throttle import MOST
from medimage_client.async_client import AsyncMedImageInsight
from medimage_client.embeddings import IMAGE_ENCODER
from medimage_client.errors import InvalidInput, ServerError
from medimage_client.images.windowing import DicomWindow
from medimage_client.wire.transport import Call, Outputs
from medimage_server.errors import InferenceFailed, LaunchError
from medimage_server.errors import InvalidInput as Refused
from medimage_server.image_preprocessing import ImagePreprocessor, ImageSettings
from medimage_server.model_repository import read_configs
from medimage_server.onnx_backend import OnnxModel
from medimage_server.onnx_settings import ModelLoadError
from medimage_server.text_tokenizer import TextTokenizer

VERSION = "1"


class InProcessTransport:
    """In the place of a connection.

    Args:
        repository: a model repository, with the ONNX files of an export.
        threads: of each encoder's session; 0 for one a core.

    Raises:
        InvalidInput: it is no repository, or nothing was exported into it.
    """

    def __init__(self, repository: Path, *, threads: int = 0) -> None:
        try:
            self.configs, _ = read_configs(repository)
            settings = ImageSettings.read(
                parameters_of(self.configs[PREPROCESSING]), repository / PREPROCESSING / VERSION / "preprocessing.json"
            )
            self._preprocess = ImagePreprocessor(settings)
            self._tokenize = TextTokenizer.from_file(repository / "text_tokenizer" / VERSION / "tokenizer.json")
            self._image_encoder = session(repository, self.configs["image_encoder"], threads)
            self._text_encoder = session(repository, self.configs["text_encoder"], threads)
        except KeyError as error:
            raise InvalidInput(f"{repository}: has no model {error.args[0]}") from None
        except (LaunchError, ModelLoadError, OSError, ValueError) as error:
            raise InvalidInput(f"{repository}: {error}") from None

    async def infer(self, call: Call, *, timeout: float) -> Outputs:
        try:
            return await asyncio.to_thread(self._infer, call)
        except Refused as error:
            raise InvalidInput(error.reason, row=error.row) from None
        except InferenceFailed as error:
            raise ServerError(str(error)) from None

    async def stream(self, call: Call, *, timeout: float) -> AsyncGenerator[Outputs, None]:
        yield await self.infer(call, timeout=timeout)

    async def is_ready(self, models: Sequence[str]) -> bool:
        return True

    async def close(self) -> None:
        pass

    def _infer(self, call: Call) -> Outputs:
        (values,) = call.inputs.values()
        inputs: list[bytes] = [bytes(value) for value in values[:, 0]]
        if call.model == IMAGE_ENCODER.model:
            (answer,) = self._image_encoder.run([{"pixels": self._preprocess(inputs, call.parameters)}])
        else:
            ids, mask = self._tokenize(inputs)
            (answer,) = self._text_encoder.run([{"input_ids": ids, "attention_mask": mask}])
        if isinstance(answer, Exception):
            raise answer
        return {name: np.asarray(answer[name]) for name in call.output_names}


def session(repository: Path, config: ModelConfig, threads: int) -> OnnxModel:
    """As Triton would make it: on a GPU where ONNX Runtime has one and the config lets it."""
    values: dict[str, Any] = json.loads(
        json_format.MessageToJson(config, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    )
    if threads:
        values["parameters"]["intra_op_thread_count"] = {"string_value": str(threads)}
    on_cpu = all(group.kind == ModelInstanceGroup.KIND_CPU for group in config.instance_group)
    has_gpu = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    kind = "GPU" if has_gpu and not on_cpu else "CPU"
    return OnnxModel(values, repository / config.name / VERSION, kind=kind, device_id=0)


def parameters_of(config: ModelConfig) -> dict[str, str]:
    return {name: value.string_value for name, value in config.parameters.items()}


@lru_cache(maxsize=1)
def loaded(repository: Path, threads: int) -> InProcessTransport:
    """Once a process: an actor makes many shards."""
    return InProcessTransport(repository, threads=threads)


def in_process(repository: Path, windowing: DicomWindow, *, threads: int = 0) -> Server:
    """
    Raises:
        InvalidInput: see `InProcessTransport`, or the repository does not say which model it has.
    """
    model = model_in(repository, windowing)
    transport = loaded(repository, threads)

    async def told() -> Model:
        return model

    client = AsyncMedImageInsight("grpc://in-process", retries=0, concurrency=MOST, transport=transport)
    return Server(name=str(repository), client=client, model=told)


def model_in(repository: Path, windowing: DicomWindow) -> Model:
    """Which model a repository has."""
    try:
        configs, _ = read_configs(repository)
        exported, preprocessing = parameters_of(configs[IMAGE_ENCODER.model]), parameters_of(configs[PREPROCESSING])
    except KeyError as error:
        raise InvalidInput(f"{repository}: has no model {error.args[0]}") from None
    except LaunchError as error:
        raise InvalidInput(str(error)) from None
    return model_of(exported, preprocessing, windowing, place=str(repository))
