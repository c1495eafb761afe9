"""Read a Triton model repository before Triton does, so that its mistakes get one clear line each."""

from collections.abc import Iterable
from pathlib import Path

from google.protobuf import text_format  # type: ignore[import-untyped]  # protobuf carries no types
from tritonclient.grpc.model_config_pb2 import ModelConfig


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


def with_steps(models: Iterable[str], configs: dict[str, ModelConfig]) -> list[str]:
    """The models and, for ensembles, all models they are made of, each once, steps before their ensemble.

    Raises:
        RepositoryError: a name is not in the repository.
    """
    ordered: dict[str, None] = {}
    for model in models:
        if model not in configs:
            raise RepositoryError(f"no model {model} in the repository; it has {', '.join(configs)}")
        steps = [step.model_name for step in configs[model].ensemble_scheduling.step]
        ordered.update(dict.fromkeys([*with_steps(steps, configs), model]))
    return list(ordered)


def check_exported(repository: Path, models: Iterable[str], configs: dict[str, ModelConfig]) -> None:
    """Raise RepositoryError naming the models whose ONNX file no export has written yet."""
    missing = [
        model
        for model in models
        if configs[model].backend == "onnxruntime"
        and not any((repository / model).glob(f"[0-9]*/{configs[model].default_model_filename or 'model.onnx'}"))
    ]
    if missing:
        raise RepositoryError(
            f"no exported weights for {', '.join(missing)}: "
            f"run `medimage export medimageinsight --checkpoint DIR --repository {repository}`"
        )
