"""Read a Triton model repository before Triton does, so that its mistakes get one clear line each."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from google.protobuf import text_format  # type: ignore[import-untyped]  # protobuf carries no types
from tritonclient.grpc.model_config_pb2 import ModelConfig

# What Triton opens in a version folder where the config names nothing else, by the config's backend or platform.
DEFAULT_FILES = {"python": "model.py", "onnxruntime": "model.onnx", "tensorrt_plan": "model.plan"}


class RepositoryError(Exception):
    """The model repository cannot be served; str() says in one line what is wrong and what to do."""


def read_configs(repository: Path) -> dict[str, ModelConfig]:
    """The config of every model folder, by folder name.

    Raises:
        RepositoryError: there is no such folder, it holds no model, or a config does not parse.
    """
    if not repository.is_dir():
        raise RepositoryError(f"model repository {repository} does not exist; name one with --repository")
    configs = {}
    for path in sorted(repository.glob("*/config.pbtxt")):
        try:
            configs[path.parent.name] = text_format.Parse(path.read_text(), ModelConfig())
        except text_format.ParseError as error:
            raise RepositoryError(f"{path}: line {error}") from error
    if not configs:
        raise RepositoryError(f"model repository {repository} holds no */config.pbtxt")
    return configs


def with_parts(models: Iterable[str], configs: dict[str, ModelConfig]) -> list[str]:
    """The models and all models they are made of, each once, parts before what they are part of.

    Parts are an ensemble's steps, and the models that a python model calls by itself, which its config names in the
    parameter `calls`.

    Raises:
        RepositoryError: a name is not in the repository.
    """
    ordered: dict[str, None] = {}
    for model in models:
        if model not in configs:
            raise RepositoryError(f"no model {model} in the repository; it has {', '.join(configs)}")
        ordered.update(dict.fromkeys([*with_parts(_parts(configs[model]), configs), model]))
    return list(ordered)


def check_complete(repository: Path, models: Sequence[str], configs: dict[str, ModelConfig]) -> None:
    """Check that each model has its file: what an export writes, or the model.py that is committed.

    Raises:
        RepositoryError: names the models without.
    """
    # Triton 2.51 would not fail on these but wait for ever for the process that cannot start.
    if missing := _without_file(repository, models, configs, "python"):
        raise RepositoryError(f"no model.py for {', '.join(missing)}: restore it from the project's model_repository")
    for kind, option in (("onnxruntime", ""), ("tensorrt_plan", " --format tensorrt")):
        if missing := _without_file(repository, models, configs, kind):
            raise RepositoryError(
                f"no exported weights for {', '.join(missing)}: "
                f"run `medimage export MODEL --checkpoint DIR --repository {repository}{option}`"
            )


def check_served(models: Sequence[str], configs: dict[str, ModelConfig], backends: Path) -> None:
    """Check that a Triton has the backend for TensorRT plans, where there are any.

    Args:
        backends: the folder of its backends, each a folder.

    Raises:
        RepositoryError: names the models without a backend.
    """
    plans = [model for model in models if configs[model].platform == "tensorrt_plan"]
    if plans and not (backends / "tensorrt").is_dir():
        raise RepositoryError(
            f"{', '.join(plans)}: TensorRT plans, and this Triton has no {backends / 'tensorrt'}; serve them with the "
            "Triton in NVIDIA's container, or run `medimage export` with --format onnx"
        )


def exported_models(repository: Path, configs: dict[str, ModelConfig]) -> list[str]:
    """The models that can be served because all their parts have exported weights, parts first; all if none can.

    Raises:
        RepositoryError: a part is not in the repository.
    """

    def is_exported(model: str) -> bool:
        parts = with_parts([model], configs)
        return not any(_without_file(repository, parts, configs, kind) for kind in ("onnxruntime", "tensorrt_plan"))

    parts = {part for config in configs.values() for part in _parts(config)}
    whole = [model for model in configs if model not in parts and is_exported(model)]
    return with_parts(whole or configs, configs)


def _parts(config: ModelConfig) -> list[str]:
    calls = config.parameters["calls"].string_value if "calls" in config.parameters else ""
    return [*(step.model_name for step in config.ensemble_scheduling.step), *calls.split()]


def _without_file(repository: Path, models: Iterable[str], configs: dict[str, ModelConfig], kind: str) -> list[str]:
    """Those of the models whose config has that backend or platform, and whose file is missing."""
    return [
        model
        for model in models
        if kind in (configs[model].backend, configs[model].platform)
        and not any((repository / model).glob(f"[0-9]*/{configs[model].default_model_filename or DEFAULT_FILES[kind]}"))
    ]
