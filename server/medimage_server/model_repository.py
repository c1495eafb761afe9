"""Read a Triton model repository before Triton does, so that its mistakes get one clear line each."""

import json
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

from google.protobuf import text_format  # type: ignore[import-untyped]  # protobuf carries no types
from tritonclient.grpc.model_config_pb2 import ModelConfig

from medimage_install.places import STAMP
from medimage_server.errors import LaunchError
from medimage_server.exported import Export

# What Triton opens in a version folder where the config names nothing else, by the config's backend or platform.
LARGE_FILE_BYTES = 2**20
HEAD_KEY = "head"  # parameter of the models of an exported head
ENCODER_KEY = "encoder_sha256"  # parameter of that for images: the checkpoint of the encoder with which it was exported
ENCODER = "medimageinsight_image"  # whose parameter `checkpoint_sha256` tells the exported one
DEFAULT_FILES = {"python": "model.py", "onnxruntime": "model.onnx", "tensorrt_plan": "model.plan"}


class ServedModels:
    """What is served of a repository, as it is now: what changes in it later is not taken up in silence.

    Args:
        models: these and the models they are made of; empty means all that were exported.

    Raises:
        LaunchError: there is nothing to serve, or one of `models` is not complete.
    """

    def __init__(self, repository: Path, models: Sequence[str] = ()) -> None:
        self.repository = repository.absolute()
        self.configs, self.faults = read_configs(self.repository)  # the latter a line for each that is left out
        for name in _stale_heads(self.configs):
            self.faults[name] = f"{name}: its head is for another encoder than is exported now; export the head again"
            del self.configs[name]
        for name in _without_file(self.repository, self.configs, self.configs, "python"):
            self.faults[name] = f"{name}: no model.py; `medimage init` restores it"
        self.names = with_parts(models, self.configs) if models else exported_models(self.repository, self.configs)
        check_complete(self.repository, self.names, self.configs)
        self._states = {name: self._state(name) for name in self.names}

    def unchanged(self) -> list[str]:
        """The models all of whose files, and those of their parts, are what they were.

        Raises:
            LaunchError: there is none.
        """
        changed = self.changed()
        names = [name for name in self.names if not changed & set(with_parts([name], self.configs))]
        if not names:
            raise LaunchError(f"{changed_line(changed)}; there is nothing else to serve")
        return names

    def changed(self) -> set[str]:
        return {name for name, state in self._states.items() if self._state(name) != state}

    def exports(self) -> dict[str, Export]:
        """What the manifests say, by the model in whose folder `medimage export` leaves one."""
        found = {name: Export.read(path) for name in self.names for path in self._files(name, "manifest.json")}
        return {name: export for name, export in found.items() if export is not None}

    def heads(self) -> list[str]:
        """Those of the models that `medimage export head` has made for images."""
        return [
            name
            for name in self.names
            if HEAD_KEY in self.configs[name].parameters and self.configs[name].platform == "ensemble"
        ]

    def _state(self, name: str) -> str:
        """A hash of what is small, and of size and time of what is large: weights are many gigabytes."""
        state = sha256()
        for path in sorted([self.repository / name / "config.pbtxt", *self._files(name, "**/*")]):
            try:
                status = path.stat()
                state.update(f"{path.relative_to(self.repository)} {status.st_size} ".encode())
                is_small = status.st_size < LARGE_FILE_BYTES
                state.update(path.read_bytes() if is_small else str(status.st_mtime_ns).encode())
            except OSError as error:
                state.update(f"{path.name} {error.strerror}".encode())
        return state.hexdigest()

    def _files(self, name: str, pattern: str) -> list[Path]:
        found = (self.repository / name).glob(f"[0-9]*/{pattern}")
        return [path for path in found if path.is_file() and path.parent.name != "__pycache__"]


def other_version(repository: Path) -> str | None:
    """A line for the operator, if another version of this package wrote the configs and adapters."""
    try:
        before = json.loads((repository / STAMP).read_text(encoding="utf-8"))["version"]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # a checkout's, or one that was made by hand
    now = version("medimage-triton")
    if before == now:
        return None
    return f"{repository} is of version {before}, and this is {now}: run `medimage init --repository {repository}`"


def changed_line(models: Iterable[str]) -> str:
    return f"{', '.join(sorted(models))}: exported or edited since the start; restart to serve what is there now"


def read_configs(repository: Path) -> tuple[dict[str, ModelConfig], dict[str, str]]:
    """The config of every model folder, by folder name, and a line for each that does not parse.

    Raises:
        LaunchError: there is no such folder, it holds no model, or none whose config parses.
    """
    if not repository.is_dir():
        raise LaunchError(f"model repository {repository} does not exist; name one with --repository")
    configs, faults = {}, {}
    for path in sorted(repository.glob("*/config.pbtxt")):
        try:
            configs[path.parent.name] = text_format.Parse(path.read_text(), ModelConfig())
        except (OSError, UnicodeDecodeError) as error:
            faults[path.parent.name] = f"{path}: cannot be read: {getattr(error, 'strerror', None) or 'not text'}"
        except text_format.ParseError as error:
            faults[path.parent.name] = f"{path}: line {error}"
    if not configs:
        raise LaunchError(next(iter(faults.values()), f"model repository {repository} holds no */config.pbtxt"))
    return configs, faults


def with_parts(models: Iterable[str], configs: dict[str, ModelConfig]) -> list[str]:
    """The models and all models they are made of, each once, parts before what they are part of.

    Parts are an ensemble's steps, and the models that a python model calls by itself, which its config names in the
    parameter `calls`.

    Raises:
        LaunchError: a name is not in the repository.
    """
    ordered: dict[str, None] = {}
    for model in models:
        if model not in configs:
            raise LaunchError(f"no model {model} in the repository; it has {', '.join(configs)}")
        ordered.update(dict.fromkeys([*with_parts(_parts(configs[model]), configs), model]))
    return list(ordered)


def check_complete(repository: Path, models: Sequence[str], configs: dict[str, ModelConfig]) -> None:
    """Check that each model has its file: what an export writes, or the model.py that is committed.

    Raises:
        LaunchError: names the models without.
    """
    # Triton would wait for ever for the process that cannot start, see triton_workarounds.py
    if missing := _without_file(repository, models, configs, "python"):
        raise LaunchError(f"no model.py for {', '.join(missing)}: run `medimage init --repository {repository}`")
    for kind, option in (("onnxruntime", ""), ("tensorrt_plan", " --format tensorrt")):
        if missing := _without_file(repository, models, configs, kind):
            raise LaunchError(
                f"no exported weights for {', '.join(missing)}: "
                f"run `medimage export MODEL --checkpoint DIR --repository {repository}{option}`"
            )


def check_served(models: Sequence[str], configs: dict[str, ModelConfig], backends: Path) -> None:
    """Check that a Triton has the backend for TensorRT plans, where there are any.

    Args:
        backends: the folder of its backends, each a folder.

    Raises:
        LaunchError: names the models without a backend.
    """
    plans = [model for model in models if configs[model].platform == "tensorrt_plan"]
    if plans and not (backends / "tensorrt").is_dir():
        raise LaunchError(
            f"{', '.join(plans)}: TensorRT plans, and this Triton has no {backends / 'tensorrt'}; serve them with the "
            "Triton in NVIDIA's container, or run `medimage export` with --format onnx"
        )


def exported_models(repository: Path, configs: dict[str, ModelConfig]) -> list[str]:
    """The models that can be served because all their parts are there, parts first; all if none can.

    Raises:
        LaunchError: none can, and a part is not in the repository.
    """

    def is_exported(model: str) -> bool:
        try:
            parts = with_parts([model], configs)
        except LaunchError:
            return False
        return not any(_without_file(repository, parts, configs, kind) for kind in DEFAULT_FILES)

    parts = {part for config in configs.values() for part in _parts(config)}
    whole = [model for model in configs if model not in parts and is_exported(model)]
    return with_parts(whole or configs, configs)


def _stale_heads(configs: Mapping[str, ModelConfig]) -> list[str]:
    """Heads for images behind another encoder than the one with which they were exported."""

    def told(model: str, key: str) -> str:
        return configs[model].parameters[key].string_value if key in configs[model].parameters else ""

    heads = [name for name, config in configs.items() if ENCODER_KEY in config.parameters]
    now = told(ENCODER, "checkpoint_sha256") if ENCODER in configs else ""
    return [name for name in heads if told(name, ENCODER_KEY) != now]


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
