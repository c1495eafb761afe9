"""Read a Triton model repository before Triton does, so that its mistakes get one clear line each."""

from collections.abc import Iterable, Sequence
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


def check_complete(repository: Path, models: Sequence[str], configs: dict[str, ModelConfig]) -> None:
    """Check that each model has its file: the ONNX file that an export writes, or the model.py that is committed.

    Raises:
        RepositoryError: names the models without.
    """

    def without(backend: str, file: str) -> list[str]:
        return [
            model
            for model in models
            if configs[model].backend == backend
            and not any((repository / model).glob(f"[0-9]*/{configs[model].default_model_filename or file}"))
        ]

    # Triton 2.51 would not fail on these but wait for ever for the process that cannot start.
    if missing := without("python", "model.py"):
        raise RepositoryError(f"no model.py for {', '.join(missing)}: restore it from the project's model_repository")
    if missing := without("onnxruntime", "model.onnx"):
        raise RepositoryError(
            f"no exported weights for {', '.join(missing)}: "
            f"run `medimage export medimageinsight --checkpoint DIR --repository {repository}`"
        )
